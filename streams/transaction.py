"""Outputs and the next input offsets, committed together: how a worker's results leave the process.

Exactly once (`ExactlyOnce`). The order, with the same numbers in the code:

1. Open the worker's transactional producer; each life of a worker has its own. End what those left open that had the
   partitions before and are in the group no more, by becoming them for a moment: their ids stand with the offsets.
2. Read the committed offsets of the partitions that the group gave to this worker; where a transaction is open that
   is going to change them, wait for its end. They can no longer move under us, see 5.
3. (the caller) Skip every record below them.
4. Begin a transaction and write every output of all partitions. Where some were processed already, as coming at a
   certain offset (`streams.partitions`), and came at another one, end.
5. Add the next input offsets to the same transaction, as the member of the group that was given the partitions. Kafka
   takes them only while that is so: a worker that was expelled, or was started anew, is refused.
6. Commit. A reader with isolation `read_committed` sees all of it or nothing.

Any error ends the process; its successor starts at 1. (Kafka KIP-98 and KIP-447, see `streams.membership`; Kafka
Streams calls it exactly_once_v2.)

At least once (`AtLeastOnce`) writes first and commits offsets afterwards and less often: lower latency, and after a
crash the events since the last commit are predicted again.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.types import TP

from streams.membership import (
    NOBODY,
    GroupProducer,
    Membership,
    Unstable,
    dead_writers,
    signature,
    stable_offsets,
)
from streams.topics import MAX_RECORD_BYTES

log = logging.getLogger(__name__)

Headers = list[tuple[str, bytes]]
Written = tuple[bytes | None, bytes | None, Headers]
"""Key, value and headers of a record."""

_BATCH_BYTES = 1 << 20
_TRANSACTION_TIMEOUT_MS = 10_000
_OFFSETS_EVERY_S = 0.5
# How soon aiokafka asks again where Kafka is still ending the transaction before, which takes it a few milliseconds.
aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.003
_COORDINATOR_S, _COORDINATOR_PAUSE_S = 20.0, 0.2
_STABLE_PAUSE_S = 0.02


class Displaced(Exception):
    """Records that were processed before they were written came to stand elsewhere than was expected."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as Kafka would give it to us, that did not come from there."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    timestamp: int = -1


@dataclass
class Outputs:
    """What is to be written in one commit: `records` by topic and partition, in order; `rows` for the archive, as
    (table, columns, rows). `after` is called once it is committed.

    `expected` is the offset that the first record for a partition must come to stand at, where it matters; `ends` the
    offset behind the last one for each partition, once they are written.
    """

    records: dict[tuple[str, int], list[Written]] = field(default_factory=dict)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    rows: list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]] = field(default_factory=list)
    after: list[Callable[[], None]] = field(default_factory=list)

    def add(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
    ) -> None:
        """One more record for `topic`[`partition`]."""
        self.records.setdefault((topic, partition), []).append((key, value, headers or []))


class Committer(Protocol):
    """What the owner of a worker's partitions needs of Kafka; the same five methods for both guarantees.

    `marks` is how many offsets a commit itself takes in each partition that it wrote to.
    """

    marks: int

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """Take partitions over; the first offset to process of each source (0 where none is stored)."""

    def joined(self, membership: Membership) -> None:
        """The group gave this worker partitions, as this member of it."""

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """Make `outputs` and the next input `offsets` durable; raises when it could not."""

    async def settle(self) -> None:
        """Commit what was put off, while the partitions are still ours."""

    async def close(self) -> None:
        """Let go without committing anything."""


class ExactlyOnce:
    """One transactional producer for all partitions of one life of a worker."""

    marks = 1

    def __init__(self, kafka: str, group: str, transactional_id: str) -> None:
        self._kafka, self._group, self._id = kafka, group, transactional_id
        self._signature = signature(transactional_id, NOBODY.member)
        self._producer = GroupProducer(
            bootstrap_servers=kafka.split(","),
            transactional_id=transactional_id,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=20_000,
        )
        self._started: asyncio.Task[None] | None = None
        self._unsigned: dict[TP, int] = {}  # offsets of what was taken over, which do not name us yet

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """See Committer."""
        if self._started is None:
            self._started = asyncio.create_task(self._producer.start())
        await self._started  # 1
        signature = self._signature
        found = await committed_offsets(self._kafka, self._group, sources, own_id=self._id)  # 2
        if signature == self._signature:  # else some may be another's by now
            self._unsigned |= found
        return found

    def joined(self, membership: Membership) -> None:
        """See Committer."""
        self._unsigned.clear()
        self._producer.joined(membership)
        self._signature = signature(self._id, membership.member)

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """See Committer."""
        if self._unsigned:  # before anything is open that a successor would have to end
            taken, self._unsigned = self._unsigned, {}
            await self._transact(Outputs(), taken)
        await self._transact(outputs, offsets)

    async def _transact(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        producer = self._producer
        await producer.begin_transaction()
        await _send(producer, outputs)  # 4
        positions = {
            TopicPartition(*tp): OffsetAndMetadata(at, self._signature) for tp, at in offsets.items()
        }
        await producer.send_offsets_to_transaction(positions, self._group)  # 5
        await producer.commit_transaction()  # 6

    async def settle(self) -> None:
        """See Committer: nothing is ever put off."""

    async def close(self) -> None:
        """See Committer."""
        await self._producer.stop()


class AtLeastOnce:
    """An idempotent producer; offsets are committed through Faust's consumer, at most twice a second."""

    marks = 0

    def __init__(self, kafka: str, group: str, consumer: Any) -> None:
        self._kafka, self._group, self._consumer = kafka, group, consumer
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka.split(","),
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=20_000,
        )
        self._offsets: dict[TP, int] = {}
        self._started: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # one commit at a time

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """See Committer."""
        if self._started is None:
            self._started = asyncio.create_task(self._producer.start())
        await self._started
        return await committed_offsets(self._kafka, self._group, sources)

    def joined(self, membership: Membership) -> None:
        """See Committer: what was another worker's meanwhile must not be committed by us."""
        self._offsets.clear()

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """See Committer."""
        await _send(self._producer, outputs)
        self._offsets |= offsets
        if self._committing is None or self._committing.done():
            if self._committing is not None:
                self._committing.result()  # an error of the last commit ends the process here
            self._committing = asyncio.create_task(self._commit_soon())

    async def _commit_soon(self) -> None:
        while self._offsets:  # more may come while Kafka answers
            await asyncio.sleep(_OFFSETS_EVERY_S)
            await self.settle()

    async def settle(self) -> None:
        """See Committer."""
        async with self._lock:
            if offsets := dict(self._offsets):
                await self._consumer._commit(offsets)
                for tp, at in offsets.items():
                    if self._offsets.get(tp) == at:
                        del self._offsets[tp]

    async def close(self) -> None:
        """See Committer."""
        if self._committing is not None:
            self._committing.cancel()
        await self._producer.stop()


async def committed_offsets(
    kafka: str, group: str, sources: Sequence[TP], *, own_id: str = ""
) -> dict[TP, int]:
    """The group's committed offset of each source once no open transaction is going to change it; 0 without one.

    With `own_id`, the producer of who asks, what a worker that is gone has left open is ended first.
    """
    admin, clock = AIOKafkaAdminClient(bootstrap_servers=kafka.split(",")), asyncio.get_running_loop().time
    started = clock()
    await admin.start()
    try:
        while True:
            try:
                if own_id:
                    await _end_transactions(kafka, await dead_writers(admin, group, sources) - {own_id})
                found = await stable_offsets(admin, group, sources)
                return {tp: found.get(tp) or 0 for tp in sources}
            except Unstable:
                await asyncio.sleep(_STABLE_PAUSE_S)
            except KafkaError as error:  # Kafka is still looking for the group's coordinator
                if not error.retriable or clock() > started + _COORDINATOR_S:
                    raise
                await asyncio.sleep(_COORDINATOR_PAUSE_S)
    finally:
        await admin.close()


async def _end_transactions(kafka: str, ids: Iterable[str]) -> None:
    """End what these producers have under way, by becoming them for a moment."""
    for transactional_id in ids:
        log.info("%s is gone; whatever it has left open is ended", transactional_id)
        producer = AIOKafkaProducer(bootstrap_servers=kafka.split(","), transactional_id=transactional_id)
        try:
            await producer.start()
        finally:
            await producer.stop()


async def _send(producer: AIOKafkaProducer, outputs: Outputs) -> None:
    """Hand every record to the producer as ready-made batches and wait until the broker has them.

    Raises Displaced.
    """
    pending: list[tuple[tuple[str, int], int, Any]] = []

    async def send(at: tuple[str, int], batch: Any) -> None:
        topic, partition = at
        pending.append(
            (at, batch.record_count(), await producer.send_batch(batch, topic, partition=partition))
        )

    for at, records in outputs.records.items():
        batch = producer.create_batch()
        for key, value, headers in records:
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                await send(at, batch)
                batch = producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                    raise ValueError(f"a record of {len(value or b'')} bytes does not fit a batch of {at[0]}")
        await send(at, batch)
    places = await asyncio.gather(*(sent for _, _, sent in pending))
    next_of = dict(outputs.expected)
    for (at, size, _), place in zip(pending, places, strict=True):
        if next_of.get(at, place.offset) != place.offset:
            raise Displaced(f"{at[0]}[{at[1]}]: expected at offset {next_of[at]}, written at {place.offset}")
        outputs.ends[at] = place.offset + size
        if at in next_of:
            next_of[at] += size
