"""Outputs and the next input offsets, committed together: how a partition's results leave the process.

Exactly once (`ExactlyOnce`). The order, with the same numbers in the code:

1. Open the transactional producer of the input partition. Kafka ends whatever its former owner left open and fences
   that owner: nothing it still writes can be committed.
2. Only then read the committed offsets; they can no longer move under us.
3. (the caller) Skip every record below them.
4. Begin a transaction and write every output.
5. Add the next input offsets to the same transaction.
6. Commit. A reader with isolation `read_committed` sees all of it or nothing.

Any error ends the process; its successor starts at 1. (Kafka KIP-98; the producer's id is the input partition, as in
Kafka Streams before KIP-447.)

At least once (`AtLeastOnce`) writes first and commits offsets afterwards and less often: lower latency, and after a
crash the events since the last commit are predicted again.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from faust.types import TP

from streams.topics import MAX_RECORD_BYTES

Headers = list[tuple[str, bytes]]
_BATCH_BYTES = 1 << 20
_TRANSACTION_TIMEOUT_MS = 30_000
_OFFSETS_EVERY_S = 0.5
# How soon aiokafka asks again where Kafka is still ending the transaction before, which takes it a few milliseconds.
aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.003
_COORDINATOR_S, _COORDINATOR_PAUSE_S = 20.0, 0.2


@dataclass
class Outputs:
    """What is to be written in one commit: `records` by topic and partition, in order; `rows` for the archive, as
    (table, columns, rows).
    """

    records: dict[tuple[str, int], list[tuple[bytes | None, bytes | None, Headers]]] = field(
        default_factory=dict
    )
    rows: list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]] = field(default_factory=list)

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
    """What a partition's owner needs of Kafka; three methods, since everything else is the same for both guarantees."""

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """Take the partition over and return the first offset to process of each source (0 where none is stored)."""

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """Make `outputs` and the next input `offsets` durable; raises when it could not."""

    async def close(self) -> None:
        """Let go without committing anything."""


class ExactlyOnce:
    """One transactional producer for one input partition."""

    def __init__(self, kafka: str, group: str, transactional_id: str) -> None:
        self._kafka, self._group = kafka, group
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka.split(","),
            transactional_id=transactional_id,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=20_000,
        )

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """See Committer."""
        await self._producer.start()  # 1
        return await committed_offsets(self._kafka, self._group, sources)  # 2

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """See Committer."""
        producer = self._producer
        await producer.begin_transaction()
        await _send(producer, outputs)  # 4
        positions = {TopicPartition(*tp): offset for tp, offset in offsets.items()}
        await producer.send_offsets_to_transaction(positions, self._group)  # 5
        await producer.commit_transaction()  # 6

    async def close(self) -> None:
        """See Committer."""
        await self._producer.stop()


class AtLeastOnce:
    """An idempotent producer; offsets are committed through Faust's consumer, at most twice a second."""

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
        self._committing: asyncio.Task[None] | None = None

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """See Committer."""
        await self._producer.start()
        return await committed_offsets(self._kafka, self._group, sources)

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """See Committer."""
        await _send(self._producer, outputs)
        self._offsets |= offsets
        if self._committing is None or self._committing.done():
            if self._committing is not None:
                self._committing.result()  # an error of the last commit ends the process here
            self._committing = asyncio.create_task(self._commit_soon())

    async def _commit_soon(self) -> None:
        await asyncio.sleep(_OFFSETS_EVERY_S)
        await self._consumer._commit(dict(self._offsets))

    async def close(self) -> None:
        """See Committer."""
        if self._committing is not None:
            self._committing.cancel()
        await self._producer.stop()


async def committed_offsets(kafka: str, group: str, sources: Sequence[TP]) -> dict[TP, int]:
    """The group's committed offset of each source; 0 where it has none."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.split(","))
    await admin.start()
    try:
        found = await _stored(admin, group, [TopicPartition(*tp) for tp in sources])
    finally:
        await admin.close()
    offsets = {tp: found.get(TopicPartition(*tp)) for tp in sources}
    return {tp: max(0, stored.offset) if stored else 0 for tp, stored in offsets.items()}


async def _stored(admin: AIOKafkaAdminClient, group: str, places: list[TopicPartition]) -> Any:
    """Ask for a group's offsets, again and again while Kafka is still looking for the group's coordinator."""
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + _COORDINATOR_S
    while True:
        try:
            return await admin.list_consumer_group_offsets(group, partitions=places)
        except KafkaError as error:
            if not error.retriable or clock() > give_up_at:
                raise
        await asyncio.sleep(_COORDINATOR_PAUSE_S)


async def _send(producer: AIOKafkaProducer, outputs: Outputs) -> None:
    """Hand every record to the producer as ready-made batches and wait until the broker has them."""
    pending = []
    for (topic, partition), records in outputs.records.items():
        batch = producer.create_batch()
        for key, value, headers in records:
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                pending.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                    raise ValueError(f"a record of {len(value or b'')} bytes does not fit a batch of {topic}")
        pending.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*pending)
