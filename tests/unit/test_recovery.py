"""Replay: exactly the committed stretch of the log, in order, and what is said where a part of it is gone."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

import pytest
from aiokafka import TopicPartition
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.recovery import replay_from
from tests.stream_records import Record

AT = TP("trips.events", 3)


class KeptLog:
    """A log in memory: what is kept begins at `oldest`, `gaps` hold no record (markers), fetches have some size."""

    def __init__(self, oldest: int, end: int, gaps: Iterable[int], fetch: int) -> None:
        self.oldest, self.end, self.gaps, self.fetch = oldest, end, set(gaps), fetch
        self.at: int | None = None
        self.assigned: list[TopicPartition] = []

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        self.assigned = list(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert self.assigned == [partition] == [TopicPartition(*AT)]
        self.at = offset

    async def position(self, partition: TopicPartition) -> int:
        assert self.at is not None
        return self.at

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self.oldest)

    async def getmany(self, *, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Record]]:
        assert self.at is not None
        assert self.oldest <= self.at < self.end, "nothing there: a replay would wait for ever"
        first, self.at = self.at, min(self.at + self.fetch, self.end)
        records = [
            Record(b"x", o, partition=AT.partition) for o in range(first, self.at) if o not in self.gaps
        ]
        return {TopicPartition(*AT): records} if records else {}


def replayed(log: KeptLog, first: int, end: int) -> list[int]:
    offsets: list[int] = []

    def fold(records: Sequence[Record]) -> None:
        assert records
        offsets.extend(record.offset for record in records)

    asyncio.run(replay_from(log, AT, first, end, fold))
    return offsets


@settings(max_examples=60)
@given(
    st.integers(0, 20), st.integers(0, 20), st.integers(0, 9), st.sets(st.integers(0, 40)), st.integers(1, 9)
)
def test_exactly_the_stretch(first: int, length: int, more: int, gaps: set[int], fetch: int) -> None:
    end = first + length
    log = KeptLog(0, end + more, gaps, fetch)
    assert replayed(log, first, end) == [offset for offset in range(first, end) if offset not in gaps]


def test_what_kafka_has_deleted_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert replayed(KeptLog(5, 9, (), 3), 2, 8) == [5, 6, 7]
    assert "offsets 2 to 4 are gone" in caplog.text


def test_all_of_it_may_be_gone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert replayed(KeptLog(30, 40, (), 3), 2, 8) == []
    assert "offsets 2 to 7 are gone" in caplog.text


def test_an_error_of_the_fold_is_not_swallowed() -> None:
    def fold(_: Sequence[Record]) -> None:
        raise ArithmeticError("the state is broken")

    with pytest.raises(ArithmeticError):
        asyncio.run(replay_from(KeptLog(0, 9, (), 3), AT, 0, 5, fold))
