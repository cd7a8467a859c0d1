"""A worker that is alone processes what it writes for itself before it comes back: in the log's order and once.

A log in memory takes the place of Kafka: a commit appends to it, and leaves a mark behind; fetches come from it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

import streams.partitions as owner
from streams.membership import Membership
from streams.partitions import EXIT_AGAIN, Partitions
from streams.transaction import Displaced, Outputs
from streams.transport import Fetch

GROUPS = {"events": "events", "by-item": "by-item", "by-shop": "by-shop"}
PARTITIONS = 2
MARK = None  # what stands at the offset of a mark


class Kafka:
    """The later logs, with what was committed; a committer for one worker."""

    def __init__(self, marks: int) -> None:
        self.marks = marks
        self.logs: dict[TP, list[bytes | None]] = {}
        self.committed: dict[TP, int] = {}
        self.commits = 0
        self.free = asyncio.Event()
        self.free.set()

    def log(self, at: tuple[str, int]) -> list[bytes | None]:
        return self.logs.setdefault(TP(*at), [])

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        return {tp: self.committed.get(tp, 0) for tp in sources}

    def joined(self, membership: Membership) -> None:
        pass

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        await self.free.wait()
        for at in outputs.records:
            if outputs.expected.get(at, len(self.log(at))) != len(self.log(at)):
                raise Displaced(str(at))
        for at, records in outputs.records.items():
            self.log(at).extend(value for _, value, _ in records)
            outputs.ends[at] = len(self.log(at))
            self.log(at).extend([MARK] * self.marks)
        self.committed |= offsets
        self.commits += 1

    async def settle(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Passing:
    """A step that notes what it gets, and writes it for the next group: to partition 0 or 1, by its last byte."""

    def __init__(self, found: dict[TP, list[tuple[int, bytes]]], group: str, partition: int) -> None:
        self._found, self._at = found.setdefault(TP(group, partition), []), TP(group, partition)
        names = list(GROUPS)
        self._next = names[names.index(group) + 1] if group != names[-1] else ""

    async def open(self, committed: Mapping[TP, int]) -> None:
        del self._found[sum(offset < committed[self._at] for offset, _ in self._found) :]

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        for record in records[self._at]:
            self._found.append((record.offset, record.value))
            if self._next:
                outputs.add(self._next, record.value[-1] % PARTITIONS, record.value)

    async def quiet(self, outputs: Outputs) -> float | None:
        return None

    def close(self, *, final: bool) -> None:
        pass


class Scene:
    """A worker on the log, and how far its consumer has read."""

    def __init__(self, marks: int = 1, alone: bool = True) -> None:
        self.kafka, self.ends = Kafka(marks), list[int]()
        self.found: dict[TP, list[tuple[int, bytes]]] = {}
        self._read, self._sequence = dict[TP, int](), dict[TP, int]()
        self.events = 0
        self.owner = Partitions(
            lambda group, partition: Passing(self.found, group, partition), lambda: self.kafka, GROUPS,
            partitions=PARTITIONS if alone else PARTITIONS + 1, quiet_ms=10**6,
        )  # fmt: skip

    async def assign(self) -> None:
        tps = [TP(topic, partition) for topic in GROUPS for partition in range(PARTITIONS)]
        await self.owner.assigned(tps, Membership("us", 1))
        await self.settle()

    async def act(self, name: str, *arguments: Any) -> None:
        """One of ACTIONS."""
        if name == "event":
            await self.event(*arguments[0])
        elif name == "fetch":
            await self.fetch(*arguments)
        elif name == "assign":
            self.kafka.free.set()
            await self.assign()
        elif name == "another":
            self.kafka.log((arguments[0], arguments[1])).append(b"\0")
        elif arguments[0]:
            self.kafka.free.clear()
        else:
            self.kafka.free.set()
        await self.settle()

    async def event(self, *values: int) -> None:
        """Events are fetched."""
        tp = TP("events", 0)
        self._put(tp, [(self.events + i, bytes([value])) for i, value in enumerate(values)])
        self.events += len(values)
        await self.settle()

    async def fetch(self, topic: str, partition: int) -> None:
        """What the log has more comes with a fetch."""
        tp = TP(topic, partition)
        read = self._read.get(tp, 0)
        self._read[tp] = len(log := self.kafka.log(tp))
        if records := [(at, log[at]) for at in range(read, len(log)) if log[at] is not MARK]:
            self._put(tp, records)
        await self.settle()

    def _put(self, tp: TP, records: Sequence[tuple[int, bytes | None]]) -> None:
        sequence = self._sequence[tp] = self._sequence.get(tp, -1) + 1
        made = tuple(SimpleNamespace(offset=offset, value=value) for offset, value in records)
        self.owner.put(Fetch(*tp, 0, sequence, made))

    async def settle(self) -> None:
        for _ in range(60):
            await asyncio.sleep(0)

    def check(self, topic: str, partition: int, *, to_the_end: bool) -> None:
        """What was folded is the log; after a worker ended, what it had committed is the beginning of the log."""
        found, written = self.found[TP(topic, partition)], self.written(topic, partition)
        if not to_the_end:
            below = self.kafka.committed.get(TP(topic, partition), 0)
            found, written = ([each for each in log if each[0] < below] for log in (found, written))
        assert found == written

    def written(self, topic: str, partition: int) -> list[tuple[int, bytes]]:
        """The records of a log: offset and value."""
        return [
            (at, value) for at, value in enumerate(self.kafka.log((topic, partition))) if value is not MARK
        ]


def play(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(act(), 180))


@pytest.mark.parametrize("marks", [0, 1])
def test_what_was_written_once_and_has_come_back_is_from_then_on_processed_in_the_same_pass(
    marks: int,
) -> None:
    async def act() -> None:
        scene = Scene(marks)
        await scene.assign()
        await scene.event(2)
        assert scene.found[TP("by-item", 0)] == []  # nobody knew where it would stand
        await scene.fetch("by-item", 0)
        await scene.fetch("by-shop", 0)
        for value in (4, 6, 8):
            await scene.event(value)
        assert [value[0] for _, value in scene.found[TP("by-shop", 0)]] == [2, 4, 6, 8]
        assert (
            scene.kafka.commits == 6
        )  # of three groups, then of one pass each, and the first one's two fetches
        assert scene.kafka.committed[TP("by-shop", 0)] == 4 + 3 * marks
        for topic in ("by-item", "by-shop"):
            assert scene.found[TP(topic, 0)] == scene.written(topic, 0)
            await scene.fetch(topic, 0)  # skipped
            assert scene.found[TP(topic, 0)] == scene.written(topic, 0)
        assert scene.kafka.commits == 6
        ends = {TP("by-item", 0): (0, len(scene.kafka.log(("by-item", 0))))}
        assert scene.owner.behind(ends) == {"by-item": marks}
        await scene.owner.close()

    play(act)


def test_earlier_groups_wait_for_what_they_wrote_to_come_back_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act() -> None:
        scene = Scene()
        await scene.assign()
        await scene.event(2)
        await scene.event(4)
        assert [value for _, value in scene.found[TP("events", 0)]] == [b"\2"]
        await scene.fetch("by-item", 0)  # writes for by-shop, and that must come back too
        assert len(scene.found[TP("events", 0)]) == 1
        await scene.fetch("by-shop", 0)
        assert [value for _, value in scene.found[TP("by-shop", 0)]] == [b"\2", b"\4"]
        await scene.event(3)  # the other partition of by-item
        monkeypatch.setattr(owner, "_OWED_S", 0.0)
        while len(scene.found[TP("events", 0)]) < 3:
            await scene.settle()
        await scene.event(5)
        while len(scene.found[TP("events", 0)]) < 4:
            await scene.settle()
        assert [value for _, value in scene.found[TP("events", 0)]] == [b"\2", b"\4", b"\3", b"\5"]
        await scene.owner.close()

    play(act)


def test_who_is_not_alone_waits_for_every_fetch() -> None:
    async def act() -> None:
        scene = Scene(alone=False)
        await scene.assign()
        for value in (2, 4):
            await scene.event(value)
            await scene.fetch("by-item", 0)
        await scene.event(6)
        assert [value for _, value in scene.found[TP("by-item", 0)]] == [b"\2", b"\4"]
        await scene.owner.close()

    play(act)


def test_another_s_record_between_ours_ends_the_worker_before_it_commits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(owner, "end", ends.append)

    async def act() -> None:
        scene = Scene()
        await scene.assign()
        await scene.event(2)
        await scene.fetch("by-item", 0)
        await scene.fetch("by-shop", 0)
        scene.kafka.log(("by-item", 0)).append(b"not ours")
        await scene.event(4)
        assert ends == [EXIT_AGAIN]
        assert scene.kafka.committed[TP("events", 0)] == 1
        await scene.owner.close()

    play(act)
    assert "somebody else writes to its topics" in caplog.text
    assert "Traceback" not in caplog.text


ACTIONS = st.one_of(
    st.tuples(st.just("event"), st.lists(st.integers(0, 255), min_size=1, max_size=4)),
    st.tuples(st.just("fetch"), st.sampled_from(["by-item", "by-shop"]), st.integers(0, PARTITIONS - 1)),
    st.tuples(st.just("hold"), st.booleans()),
    st.tuples(st.just("assign")),
    st.tuples(st.just("another"), st.sampled_from(["by-item", "by-shop"]), st.integers(0, PARTITIONS - 1)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=25), st.integers(0, 1), st.sampled_from([1, 3, 1000]))
def test_every_log_is_folded_in_its_order_and_once_whatever_happens(
    actions: Sequence[Any], marks: int, ahead: int
) -> None:
    """Commits that hang, passes that overlap, fetches at any time, rebalances, others' records."""
    ends: list[int] = []

    async def act() -> None:
        scene = Scene(marks)
        await scene.assign()
        for action in actions:
            await scene.act(*action)
        scene.kafka.free.set()
        for _ in range(8):  # all that is left
            for topic in ("by-item", "by-shop"):
                for partition in range(PARTITIONS):
                    await scene.fetch(topic, partition)
        assert not ends or any(name == "another" for name, *_ in actions)
        for topic in ("by-item", "by-shop"):
            for partition in range(PARTITIONS):
                scene.check(topic, partition, to_the_end=not ends)
        await scene.owner.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "end", ends.append)
        patch.setattr(owner, "_AHEAD_RECORDS", ahead)
        play(act)
