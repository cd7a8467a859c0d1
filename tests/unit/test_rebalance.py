"""Partitions that come and go: what is finished before, what stays as it is, and what is taken over anew."""

import asyncio
from types import SimpleNamespace

import pytest
from faust.types import TP

from streams.membership import NOBODY, Membership
from streams.transport import Fetch
from tests.partition_scene import Held, Scene, play


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


@pytest.mark.parametrize("now", [Membership("another", 2), Membership("us", 3)])
def test_who_missed_a_rebalance_takes_over_anew_what_others_may_have_worked_on(now: Membership) -> None:
    async def act() -> None:
        scene = Scene(Held())
        await scene.assign(0)
        scene.put("events", 0, *range(10))
        await scene.settle()
        await scene.owner.revoked()
        scene.committer.stored = {TP("events", 0): 20}  # by who had it meanwhile
        scene.said.clear()
        await scene.assign(0, membership=now)
        scene.owner.put(Fetch("events", 0, 2, 0, tuple(SimpleNamespace(offset=at) for at in (20, 21))))
        await scene.settle()
        assert ("close", "events", 0, False) in scene.said
        assert [each[1:] for each in scene.of("open") if each[1] == "events"] == [
            ("events", 0, {TP("events", 0): 20})
        ]
        assert [each[3] for each in scene.of("process")] == [{"events": [20, 21]}]
        await scene.owner.close()

    play(act)


def test_what_was_put_off_is_committed_before_partitions_go_and_at_the_end() -> None:
    async def act() -> None:
        scene = Scene(Held())
        await scene.assign(0)
        scene.put("events", 0, 0)
        await scene.settle()
        await scene.owner.revoked()
        assert scene.committer.settled == [1]
        await scene.assign(0, membership=Membership("us", 2))
        scene.put("events", 0, 1)
        await scene.settle()
        await scene.owner.close()
        assert scene.committer.settled == [1, 2]

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
