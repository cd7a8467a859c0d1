"""Replay of a stretch of a log into a state: from a snapshot's offset up to the committed one, without output."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from infra.errors import UserError
from streams.topics import MAX_RECORD_BYTES

log = logging.getLogger(__name__)
_WAIT_MS = 500


class Log(Protocol):
    """What a replay needs of a Kafka consumer; the five methods are aiokafka's."""

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these partitions and no others."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on at `offset`."""

    def position(self, partition: TopicPartition) -> Awaitable[int]:
        """The offset behind all that was handed out or passed over (markers, aborted records)."""

    def beginning_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> Awaitable[Mapping[TopicPartition, int]]:
        """The oldest offset that is still kept."""

    def getmany(self, *, timeout_ms: int) -> Awaitable[Mapping[TopicPartition, Sequence[Any]]]:
        """Some more records, by partition and in order; none when there were none for so long."""


async def replay(kafka: str, tp: TP, first: int, end: int, fold: Callable[[Sequence[Any]], Any]) -> None:
    """Give the committed records of `tp` from offset `first` up to, not including, `end` to `fold`, in order.

    Where Kafka has already deleted a part of the stretch, it says so in the log and starts at what is left: windows
    then lack those events until they have moved past them. Raises UserError as `check_end` does.
    """
    await check_end(kafka, tp, end)
    if first >= end:
        return
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.split(","),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=MAX_RECORD_BYTES,
        max_poll_records=5000,
    )
    await consumer.start()
    try:
        await replay_from(consumer, tp, first, end, fold)
    finally:
        await consumer.stop()


async def check_end(kafka: str, tp: TP, processed: int) -> None:
    """Raise UserError where the log of `tp` ends below `processed`, the offset up to which it was processed.

    What comes next would get offsets that were processed already, and be passed over; a replay would wait for records
    that are gone. The end is that of all records: a reader of committed ones is told of where the first open
    transaction begins, which may be behind a commit for a moment.
    """
    if not processed:
        return
    at = TopicPartition(*tp)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.split(","), isolation_level="read_uncommitted")
    await consumer.start()
    try:
        end = (await consumer.end_offsets([at]))[at]
    finally:
        await consumer.stop()
    if end < processed:
        place, role = f"{tp.topic}:{tp.partition}", "driftline-TASK-ROLE"
        raise UserError(
            f"{tp.topic}[{tp.partition}] ends at offset {end}, but was processed up to {processed}: Kafka has lost its"
            " end (power or a disk without a second replica, or an unclean leader election)",
            f"stop all workers of the role, set its group's offset there to {end} (python -m kafka.admin -b {kafka}"
            f" groups reset-offsets -g {role} -p {place} --to-offset {end}), delete the snapshots of the partition"
            f" (state/TASK/{tp.topic}/{tp.partition} in the blob store), and start them again",
        )


async def replay_from(
    source: Log, tp: TP, first: int, end: int, fold: Callable[[Sequence[Any]], Any]
) -> None:
    """See `replay`; `source` is a started consumer without any partition yet."""
    at = TopicPartition(*tp)
    source.assign([at])
    oldest = (await source.beginning_offsets([at]))[at]
    if oldest > first:
        log.warning(
            "%s: offsets %d to %d are gone (retention); their events are missing in the features",
            tp,
            first,
            min(oldest, end) - 1,
        )
    source.seek(at, max(first, oldest))
    while await source.position(at) < end:
        for records in (await source.getmany(timeout_ms=_WAIT_MS)).values():
            kept = [record for record in records if record.offset < end]
            if kept:
                fold(kept)
