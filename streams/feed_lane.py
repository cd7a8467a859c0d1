"""Many records into Kafka fast: whole batches by aiokafka, with a bound on what is under way.

kafka-python's `send` costs 30 µs a record, half of it in futures and checksums; aiokafka builds a batch in
compiled code and has one future a batch. Its event loop runs only inside a `Lane`'s methods; callers stay
synchronous.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.partitioner import murmur2

from infra.errors import UserError
from infra.kafka import partitions

_CHUNK_ITEMS, _CHUNK_BYTES = 4_000, 1 << 20
_CHUNKS_UNDER_WAY = 8  # at most about 32,000 records or 8 MiB wait for Kafka
_PATIENCE_MS = 40_000
_BATCH_BYTES = 512 * 1024  # well below the 1 MiB that a broker takes unless told otherwise
_LOG = logging.getLogger("aiokafka")


class _Chunk(NamedTuple):
    """Records handed over together; `events` and `labels` count everything up to their end."""

    futures: list[asyncio.Future[Any]]
    events: int
    labels: int


class Lane:
    """Sends records and counts those that Kafka has acknowledged, chunk by chunk in the order they were
    added.

    `events` and `labels` are added. `settled_events` and `settled_labels` are acknowledged; they are the
    first of those that were added. Not for use inside a running event loop. Every method raises UserError
    when Kafka refuses a record, or has not taken it within 40 seconds.
    """

    def __init__(self, kafka: str, events: str, labels: str) -> None:
        """Connect. Raises UserError when there is no broker, or when it has not both topics."""
        self._kafka, self._topics = kafka, {"event": events, "label": labels}
        try:
            self._partitions = {topic: partitions(kafka, topic) for topic in (events, labels)}
        except UserError as error:
            if "no topic" not in error.message:
                raise
            raise UserError(error.message, "start the task's roles first: they create its topics") from error
        self._encode = msgspec.json.Encoder().encode
        self._building: dict[tuple[str, int], Any] = {}
        self._built: list[tuple[tuple[str, int], Any]] = []
        self._items = self._bytes = 0
        self._under_way: deque[_Chunk] = deque()
        self.events = self.labels = self.settled_events = self.settled_labels = 0
        self._runner = asyncio.Runner()
        self._producer: Any = None
        self._log_level = _LOG.level
        _LOG.setLevel(logging.CRITICAL)  # it warns of every retry; what fails for good is raised below
        try:
            self._run(self._connect())
        except BaseException:
            self._release()
            raise

    @property
    def settled(self) -> int:
        """How many records Kafka has acknowledged."""
        return self.settled_events + self.settled_labels

    @property
    def is_chunk_full(self) -> bool:
        """Whether it is time to `flush`."""
        return self._items >= _CHUNK_ITEMS or self._bytes >= _CHUNK_BYTES

    def add(self, kind: str, key: str, value: dict[str, Any] | bytes) -> None:
        """Put one event or label into the batch of its partition. It goes to Kafka with the next `flush`."""
        topic = self._topics[kind]
        data = value if isinstance(value, bytes) else self._encode(value)
        raw, place = _key(key) if key else (None, self.events)
        where = topic, place % self._partitions[topic]
        # Kafka's timestamp is the time of adding: had it the event time, the topic's retention would delete
        # an old record at once.
        if where not in self._building or not self._append(where, raw, data):
            if where in self._building:
                self._built.append((where, self._building[where]))
            self._building[where] = self._producer.create_batch()
            self._append(where, raw, data)  # an empty batch takes a record of any size
        self._items += 1
        self._bytes += len(data)
        if kind == "event":
            self.events += 1
        else:
            self.labels += 1

    def flush(self) -> None:
        """Hand what was added to Kafka. Blocks while too much is under way."""
        self._run(self._hand_over())
        self._count()

    def idle(self, seconds: float) -> None:
        """Sleep, while Kafka's answers come in."""
        self._run(asyncio.sleep(seconds))
        self._count()

    def settle(self) -> None:
        """Flush, and wait until all is acknowledged."""
        self._run(self._hand_over(allowed=0))
        self._count()

    def close(self) -> None:
        """Let go of the connection. Records that are not settled may or may not arrive."""
        for chunk in self._under_way:
            for future in chunk.futures:
                future.cancel()
        try:
            self._runner.run(self._disconnect())
        finally:
            self._release()

    def _release(self) -> None:
        self._runner.close()
        _LOG.setLevel(self._log_level)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        with _translated(self._kafka):
            self._runner.run(work)

    async def _connect(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka,
            enable_idempotence=True,
            compression_type="lz4",
            max_batch_size=_BATCH_BYTES,
            request_timeout_ms=_PATIENCE_MS,
            retry_backoff_ms=200,
        )
        try:
            await self._producer.start()
        except BaseException:
            await self._producer.stop()
            raise

    async def _disconnect(self) -> None:
        try:
            await asyncio.wait_for(self._producer.stop(), timeout=3)
        except (TimeoutError, KafkaError):  # the broker is gone: there is nobody to say goodbye to
            await self._producer.client.close()

    def _append(self, where: tuple[str, int], key: bytes | None, data: bytes) -> bool:
        return self._building[where].append(timestamp=None, key=key, value=data) is not None

    async def _hand_over(self, allowed: int = _CHUNKS_UNDER_WAY) -> None:
        batches = [*self._built, *self._building.items()]
        self._built, self._building, self._items, self._bytes = [], {}, 0, 0
        if batches:
            futures = []
            for (topic, partition), batch in batches:  # in this order, so that each partition keeps its own
                batch.close()
                futures.append(await self._producer.send_batch(batch, topic, partition=partition))
            self._under_way.append(_Chunk(futures, self.events, self.labels))
        for chunk in list(self._under_way)[: max(0, len(self._under_way) - allowed)]:
            await asyncio.wait(chunk.futures)

    def _count(self) -> None:
        with _translated(self._kafka):
            while self._under_way and all(future.done() for future in self._under_way[0].futures):
                chunk = self._under_way[0]
                for future in chunk.futures:
                    future.result()
                self._under_way.popleft()
                self.settled_events, self.settled_labels = chunk.events, chunk.labels


@contextmanager
def _translated(kafka: str) -> Iterator[None]:
    """Turns aiokafka's exceptions into UserErrors that name the broker."""
    try:
        yield
    except KafkaTimeoutError as error:
        raise UserError(
            f"Kafka at {kafka} has taken nothing for {_PATIENCE_MS // 1000} seconds",
            "start it, then feed again",
        ) from error
    except KafkaError as error:
        reason = f"{type(error).__name__} {error}"
        raise UserError(
            f"Kafka at {kafka} does not take a record: {reason}", "see the broker's log"
        ) from error


@lru_cache(maxsize=1 << 16)
def _key(text: str) -> tuple[bytes, int]:
    """A key's bytes and the hash that places it (Kafka's own default): kept, as it is slow in Python."""
    raw = text.encode()
    return raw, murmur2(raw) & 0x7FFFFFFF
