"""The owner of a worker's partitions, with a committer that holds back its answers: what is processed and when."""

import pytest
from aiokafka.errors import ProducerFenced
from faust.types import TP

import streams.partitions as owner
from streams.partitions import EXIT_AGAIN
from tests.partition_scene import US, Held, Scene, play


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
