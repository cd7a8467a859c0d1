"""Offsets that are committed after what was written: soon, the last of them too, and before partitions go."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from faust.types import TP

from streams import transaction
from streams.membership import NOBODY
from streams.transaction import AtLeastOnce, Outputs

A, B = TP("events", 0), TP("events", 1)


class Slow:
    """A consumer whose commits take a while."""

    def __init__(self) -> None:
        self.stored: dict[TP, int] = {}
        self.commits = 0
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        self.commits += 1
        self.asked.set()
        await self.go.wait()
        self.stored |= offsets
        return True


@pytest.fixture(autouse=True)
def _nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(*_: Any) -> None:
        pass

    monkeypatch.setattr(transaction, "_send", send)
    monkeypatch.setattr(transaction, "_OFFSETS_EVERY_S", 0.01)


async def until(consumer: Slow, stored: dict[TP, int]) -> None:
    for _ in range(3_000):
        if consumer.stored == stored:
            return
        await asyncio.sleep(0.01)
    assert consumer.stored == stored


async def amid_a_commit() -> tuple[Slow, AtLeastOnce]:
    """A committer that waits for Kafka to take the first record of A."""
    consumer = Slow()
    committer = AtLeastOnce("localhost:1", "group", consumer)
    await committer.commit(Outputs(), {A: 1})
    await consumer.asked.wait()
    return consumer, committer


def test_what_comes_while_kafka_answers_is_committed_too() -> None:
    async def act() -> None:
        consumer, committer = await amid_a_commit()
        await committer.commit(Outputs(), {A: 2, B: 5})  # nothing comes after this one
        consumer.go.set()
        await until(consumer, {A: 2, B: 5})
        commits = consumer.commits
        await asyncio.sleep(0.05)
        assert consumer.commits == commits  # what is committed is not committed again
        await committer.close()

    asyncio.run(act())


def test_settling_waits_for_the_commit_under_way_and_leaves_nothing() -> None:
    async def act() -> None:
        consumer, committer = await amid_a_commit()
        await committer.commit(Outputs(), {A: 2})
        settled = asyncio.ensure_future(committer.settle())
        await asyncio.sleep(0)
        assert not settled.done()
        consumer.go.set()
        await settled
        assert consumer.stored == {A: 2}
        await committer.close()

    asyncio.run(act())


def test_who_was_given_partitions_anew_commits_nothing_of_before() -> None:
    async def act() -> None:
        consumer = Slow()
        consumer.go.set()
        committer = AtLeastOnce("localhost:1", "group", consumer)
        await committer.commit(Outputs(), {A: 1})
        committer.joined(NOBODY)
        await committer.settle()
        assert consumer.stored == {}
        await committer.close()

    asyncio.run(act())
