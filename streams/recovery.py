"""Replay of a stretch of a log into a state: from a snapshot's offset up to the committed one, without output."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from streams.topics import MAX_RECORD_BYTES

log = logging.getLogger(__name__)


async def replay(kafka: str, tp: TP, first: int, end: int, fold: Callable[[Sequence[Any]], Any]) -> None:
    """Give the committed records of `tp` from offset `first` up to, not including, `end` to `fold`, in order.

    Where Kafka has already deleted a part of the stretch, it says so in the log and starts at what is left: windows
    then lack those events until they have moved past them.
    """
    if first >= end:
        return
    at = TopicPartition(*tp)
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
        consumer.assign([at])
        oldest = (await consumer.beginning_offsets([at]))[at]
        if oldest > first:
            log.warning(
                "%s: offsets %d to %d are gone (retention); their events are missing in the features",
                tp,
                first,
                oldest,
            )
        consumer.seek(at, max(first, oldest))
        while await consumer.position(at) < end:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                kept = [record for record in records if record.offset < end]
                if kept:
                    fold(kept)
    finally:
        await consumer.stop()
