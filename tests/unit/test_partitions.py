"""The owner of a worker's partitions, with a committer that holds back its answers: what is processed and when."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import ProducerFenced
from faust.types import TP

import streams.partitions as owner
from streams.membership import NOBODY, Membership
from streams.partitions import EXIT_AGAIN, Partitions
from streams.transaction import Outputs
from streams.transport import Fetch

US = Membership("us", 1)
GROUPS = {"events": "events", "by-item": "by-item", "feedback": "by-item"}


class Held:
    """A committer whose commits wait for `go`, if `holding`; it notes what it was asked for."""

    marks = 1

    def __init__(self, *, holding: bool = False, error: Exception | None = None) -> None:
        self.commits: list[tuple[Outputs, dict[TP, int]]] = []
        self.stored: dict[TP, int] = {}
        self.members: list[Membership] = []
        self.go, self._error = asyncio.Event(), error
        if not holding:
            self.go.set()

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        return {tp: self.stored.get(tp, 0) for tp in sources}

    def joined(self, membership: Membership) -> None:
        self.members.append(membership)

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        self.commits.append((outputs, dict(offsets)))
        await self.go.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        pass


class Noting:
    """A step that notes what it is told, and says after each commit up to which offset it went."""

    def __init__(
        self, log: list[Any], group: str, partition: int, opening: Awaitable[Any] | None = None
    ) -> None:
        self._log, self._at, self._opening = log, (group, partition), opening

    async def open(self, committed: Mapping[TP, int]) -> None:
        if self._opening is not None:
            await self._opening
        self._log.append(("open", *self._at, dict(committed)))

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        found = {tp.topic: [record.offset for record in batch] for tp, batch in records.items()}
        self._log.append(("process", *self._at, found))
        outputs.after.append(lambda: self._log.append(("after", *self._at, found)))

    async def quiet(self, outputs: Outputs) -> float | None:
        self._log.append(("quiet", *self._at))
        return None

    def close(self, *, final: bool) -> None:
        self._log.append(("close", *self._at, final))


class Scene:
    """Partitions with all of the above; `said` is the log."""

    def __init__(self, committer: Held, openings: Mapping[tuple[str, int], Any] | None = None) -> None:
        self.said: list[Any] = []
        self.committer, self._sequence = committer, dict[TP, int]()
        openings = openings or {}
        self.owner = Partitions(
            lambda group, partition: Noting(self.said, group, partition, openings.get((group, partition))),
            lambda: committer, GROUPS, finish=self.finish, quiet_ms=10**6,
        )  # fmt: skip

    async def finish(self, outputs: Outputs) -> None:
        self.said.append(("finish", len(outputs.after)))

    def put(self, topic: str, partition: int, *offsets: int, skip: int = 0) -> None:
        tp = TP(topic, partition)
        sequence = self._sequence.get(tp, 0) + skip
        self._sequence[tp] = sequence + 1
        records = tuple(SimpleNamespace(offset=offset) for offset in offsets)
        self.owner.put(Fetch(topic, partition, 0, sequence, records))

    async def assign(self, *partitions: int, membership: Membership = US) -> None:
        await self.owner.assigned([TP(t, p) for t in GROUPS for p in partitions], membership)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    def of(self, *kinds: str) -> list[Any]:
        return [each for each in self.said if each[0] in kinds]


def play(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(act(), 180))


def test_one_pass_takes_what_waits_for_all_partitions_and_commits_it_together() -> None:
    async def act() -> None:
        scene = Scene(Held())
        for partition in (0, 1):
            scene.put("events", partition, 0, 1)
        scene.put("by-item", 0, 0)
        scene.put("feedback", 0, 0)
        await scene.assign(0, 1)
        assert sorted(each[1:3] for each in scene.of("process")) == [
            ("by-item", 0),
            ("events", 0),
            ("events", 1),
        ]
        ((outputs, offsets),) = scene.committer.commits
        assert offsets == {TP("events", 0): 2, TP("events", 1): 2, TP("by-item", 0): 1, TP("feedback", 0): 1}
        assert len(outputs.after) == len(scene.of("after")) == 3
        assert scene.of("finish") == [("finish", 3)]
        assert scene.committer.members == [US]
        await scene.owner.close()
        assert len(scene.of("close")) == 4
        assert all(final for _, _, _, final in scene.of("close"))

    play(act)


def test_while_a_pass_is_committed_the_next_one_gathers() -> None:
    async def act() -> None:
        scene = Scene(Held(holding=True))
        await scene.assign(0)
        scene.put("events", 0, 0)
        await scene.settle()
        scene.put("events", 0, 1)
        await scene.settle()
        scene.put("events", 0, 2)
        await scene.settle()
        assert [each[3] for each in scene.of("process")] == [{"events": [0]}]
        assert scene.of("after") == []
        scene.committer.go.set()
        await scene.settle()
        assert [each[3] for each in scene.of("process")] == [{"events": [0]}, {"events": [1, 2]}]
        assert [offsets for _, offsets in scene.committer.commits] == [
            {TP("events", 0): 1},
            {TP("events", 0): 3},
        ]
        await scene.owner.close()

    play(act)


def test_much_that_waits_is_worked_on_during_the_commit_but_committed_after_it() -> None:
    async def act() -> None:
        scene = Scene(Held(holding=True))
        await scene.assign(0)
        scene.put("events", 0, 0)
        await scene.settle()
        scene.put("events", 0, *range(1, 1 + owner._AHEAD_RECORDS))
        await scene.settle()
        assert len(scene.of("process")) == 2
        assert len(scene.committer.commits) == 1
        assert scene.of("after") == []
        scene.committer.go.set()
        await scene.settle()
        assert [each[0] for each in scene.of("process", "after")] == ["process", "process", "after", "after"]
        await scene.owner.close()

    play(act)


def test_a_full_pass_leaves_the_rest_to_the_next_one_and_nobody_is_passed_over() -> None:
    async def act() -> None:
        scene = Scene(Held())
        many = range(owner._MOST_RECORDS)
        for partition in range(3):
            scene.put("events", partition, *many)
        await scene.assign(0, 1, 2)
        for partition in range(3):  # while the last ones wait, the first has more
            scene.put("events", partition, *[offset + len(many) for offset in many])
        await scene.settle()
        assert [each[2] for each in scene.of("process")] == [0, 1, 2, 0, 1, 2]
        assert [len(offsets) for _, offsets in scene.committer.commits] == [1] * 6
        await scene.owner.close()

    play(act)


def test_records_below_the_committed_offset_are_skipped() -> None:
    async def act() -> None:
        committer = Held()
        committer.stored = {TP("events", 0): 3}
        scene = Scene(committer)
        await scene.assign(0)
        assert ("open", "events", 0, {TP("events", 0): 3}) in scene.said
        scene.put("events", 0, 1, 2)
        scene.put("events", 0, 2, 3, 5)
        await scene.settle()
        assert [each[3] for each in scene.of("process")] == [{"events": [3, 5]}]
        assert committer.commits[-1][1] == {TP("events", 0): 6}
        await scene.owner.close()

    play(act)


def test_a_rebalance_waits_for_the_commit_keeps_what_stays_and_lets_go_of_the_rest() -> None:
    async def act() -> None:
        scene = Scene(Held(holding=True))
        await scene.assign(0, 1)
        scene.put("events", 0, 0)
        await scene.settle()
        revoked = asyncio.ensure_future(scene.owner.revoked())
        await scene.settle()
        assert not revoked.done()
        scene.committer.go.set()
        await revoked
        scene.put("events", 0, 1)
        await scene.settle()
        assert len(scene.of("process")) == 1  # nothing is begun before the partitions are handed out again
        await scene.assign(0, membership=Membership("us", 2))
        assert sorted(each[1:] for each in scene.of("close")) == [("by-item", 1, False), ("events", 1, False)]
        assert len(scene.of("open")) == 4
        assert [each[3] for each in scene.of("process")] == [{"events": [0]}, {"events": [1]}]
        assert [member.generation for member in scene.committer.members] == [1, 2]
        await scene.owner.close()

    play(act)


def test_who_is_expelled_while_partitions_are_handed_out_waits_for_the_next_time() -> None:
    async def act() -> None:
        scene = Scene(Held())
        await scene.assign(0, membership=NOBODY)
        scene.put("events", 0, 0)
        await scene.settle()
        assert scene.of("open", "process") == []
        assert scene.committer.members == []
        await scene.assign(0)
        assert len(scene.of("process")) == 1
        await scene.owner.close()

    play(act)


def test_a_partition_that_goes_while_it_is_taken_over_is_closed_once_it_is_open() -> None:
    async def act() -> None:
        gate = asyncio.Event()
        scene = Scene(Held(), {("events", 1): gate.wait()})
        await scene.assign(0, 1)
        scene.put("events", 1, 0)
        scene.put("events", 0, 0)
        await scene.settle()
        assert [each[1:3] for each in scene.of("process")] == [("events", 0)]  # the others do not wait for it
        await scene.owner.revoked()
        await scene.assign(0)
        assert ("close", "events", 1, False) not in scene.said
        gate.set()
        await scene.settle()
        assert ("close", "events", 1, False) in scene.said
        assert [each[1:3] for each in scene.of("process")] == [("events", 0)]
        await scene.owner.close()

    play(act)


@pytest.mark.parametrize(
    ("error", "words"), [(ProducerFenced(), "another worker"), (OSError("no"), "failed")]
)
def test_a_commit_that_fails_ends_the_worker(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(owner, "end", ends.append)

    async def act() -> None:
        scene = Scene(Held(error=error))
        await scene.assign(0)
        scene.put("events", 0, 0)
        await scene.settle()
        assert ends == [EXIT_AGAIN]
        assert scene.of("after") == []
        await scene.owner.close()

    play(act)
    assert words in caplog.text
    assert "starts again from the last commit" in caplog.text


def test_a_lost_fetch_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(owner, "end", ends.append)

    async def act() -> None:
        scene = Scene(Held())
        await scene.assign(0)
        scene.put("events", 0, 0)
        scene.put("events", 0, 1, skip=1)
        await scene.settle()
        assert ends == [EXIT_AGAIN]
        await scene.owner.close()

    play(act)
    assert "does not follow the last one" in caplog.text


def test_nothing_more_is_read_for_who_is_behind_nor_for_those_that_feed_it() -> None:
    async def act() -> None:
        scene = Scene(Held())
        scene.put("by-item", 1, *range(owner._QUEUED_RECORDS))
        scene.put("events", 0, 0)
        scene.put("events", 1, 0)
        busy = await scene.owner.gate()
        assert busy == {TP("events", 0), TP("events", 1), TP("by-item", 1), TP("feedback", 1)}
        await scene.assign(0, 1)
        assert await scene.owner.gate() == set()
        await scene.owner.close()

    play(act)


def test_how_far_behind_it_is_counts_what_waits_and_what_was_not_read() -> None:
    async def act() -> None:
        scene = Scene(Held(holding=True))
        scene.committer.stored = {TP("events", 1): 2}
        await scene.assign(0, 1)
        scene.put("events", 0, 0, 1)
        await scene.settle()  # worked on; what comes now waits for the commit
        scene.put("events", 0, 2, 3)
        scene.put("events", 1, 2)
        ends = {
            TP("events", 0): (4, 10),
            TP("events", 1): (3, 3),
            TP("by-item", 0): (7, 7),
            TP("gone", 0): (1, 2),
        }
        assert scene.owner.behind(ends) == {"events": 8 + 1, "by-item": 0, "gone": 1}
        scene.committer.go.set()
        await scene.settle()
        assert scene.owner.behind(ends) == {"events": 6, "by-item": 0, "gone": 1}
        await scene.owner.close()

    play(act)


def test_a_silent_partition_is_told_once_and_what_it_writes_is_committed() -> None:
    async def act() -> None:
        scene = Scene(Held())
        scene.owner._quiet_s = 0.0
        await scene.assign(0)
        assert sorted(each[1:] for each in scene.of("quiet")) == [("by-item", 0), ("events", 0)]
        offsets: dict[TP, int] = {}
        for _, found in scene.committer.commits:
            offsets |= found
        assert offsets == {TP("events", 0): 0, TP("by-item", 0): 0, TP("feedback", 0): 0}
        await scene.owner.close()

    play(act)
