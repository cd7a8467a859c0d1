"""Sends events at a steady rate and notes when each of them passes which point on its way to its prediction."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2
from numpy.typing import NDArray

from benchmarks._broker import Bench
from infra.errors import UserError
from streams.simulate import simulate
from streams.task import Task
from streams.topics import Topics

PATIENCE_S = 20.0
_TICK_S = 0.002  # events that are due within it are sent together


@dataclass(frozen=True)
class Lap:
    """One turn. `parts` float64 [events, 4] are milliseconds: to the events topic, to the score, to the predictions
    topic, to the reader. A part may be -1 ms or so, as two clocks that count milliseconds may differ
    by one."""

    number: int
    parts: NDArray[np.float64]


class _Row(msgspec.Struct):
    """What is read of a prediction."""

    event_id: str
    received_at: int
    processed_at: int


_DECODER = msgspec.json.Decoder(_Row)


@dataclass
class _Seen:
    """A prediction: Kafka's time of the event, of the score and of the record, and ours of reading it, in ms."""

    received: int
    processed: int
    appended: int
    read: float


@dataclass
class _Probe:
    """What was sent to one task, and what came back."""

    task: Task
    topic: str
    events: list[tuple[bytes, bytes, str]]  # key, value, id
    sent: dict[str, float] = field(default_factory=dict)
    lap_of: dict[str, int] = field(default_factory=dict)
    seen: dict[str, _Seen] = field(default_factory=dict)

    def take(self, records: Sequence[Any]) -> None:
        """Note predictions; those of an earlier call are passed over."""
        read = time.time() * 1000
        for record in records:
            row = _DECODER.decode(record.value)
            if row.event_id in self.sent:
                self.seen[row.event_id] = _Seen(row.received_at, row.processed_at, record.timestamp, read)


def laps(
    bench: Bench, tasks: Mapping[str, Task], rate: float, turns: Sequence[float], seed: int = 1
) -> dict[str, list[Lap]]:
    """Send to each task in turn, so many seconds each, and return the laps by name; lap 0 is the first turn.

    Each call needs another `seed`: an event that was sent before would be passed over.
    Raises UserError when a prediction does not come.
    """
    count = int(sum(turns) * rate) + len(turns)
    items = [item for item in simulate("clicks", seed=seed, events=count).items() if item.kind == "event"]
    encode = msgspec.json.encode
    events = [
        (i.key.encode(), encode(i.value), i.value["event_id"]) for i in items if isinstance(i.value, dict)
    ]
    probes = {name: _Probe(task, Topics.of(task).events, events) for name, task in tasks.items()}
    asyncio.run(_drive(bench, probes, rate, turns))
    return {name: _laps(probe, len(turns)) for name, probe in probes.items()}


async def _drive(bench: Bench, probes: Mapping[str, _Probe], rate: float, turns: Sequence[float]) -> None:
    async with AsyncExitStack() as stack:
        producer = AIOKafkaProducer(
            bootstrap_servers=bench.kafka, linger_ms=0, acks="all", max_batch_size=1 << 20
        )
        await producer.start()
        stack.push_async_callback(producer.stop)
        readers = []
        for probe in probes.values():
            for partition in range(bench.partitions):
                consumer = await _consumer(bench.kafka, probe.task, partition)
                stack.push_async_callback(consumer.stop)
                readers.append(asyncio.create_task(_read(consumer, probe)))
        try:
            first = 0
            for number, seconds in enumerate(turns):
                wanted = int(seconds * rate)
                for probe in probes.values():
                    await _send(producer, probe, number, first, wanted, rate)
                    await _settle(probe)
                first += wanted
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def _consumer(kafka: str, task: Task, partition: int) -> AIOKafkaConsumer:
    # One consumer a partition: one for all would let a partition wait while its fetch for the others is under way.
    committed = task.serving.guarantee == "exactly_once"
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed" if committed else "read_uncommitted",
    )
    await consumer.start()
    consumer.assign([TopicPartition(Topics.of(task).predictions, partition)])
    return consumer


async def _read(consumer: AIOKafkaConsumer, probe: _Probe) -> None:
    while True:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            probe.take(records)


async def _send(producer: Any, probe: _Probe, lap: int, first: int, count: int, rate: float) -> None:
    """Send at the given rate; events that are behind their time go at once, so that the mean is kept.

    What is due goes as one batch for a partition, so that this program takes little of the processor from the others.
    """
    start, places = time.monotonic(), sorted(await producer.partitions_for(probe.topic))
    done, waiting = 0, []
    while done < count:
        due = min(count, int((time.monotonic() - start) * rate) + 1)
        batches: dict[int, Any] = {}
        for key, value, event_id in probe.events[first + done : first + due]:
            partition = places[(murmur2(key) & 0x7FFFFFFF) % len(places)]
            batch = batches.setdefault(partition, producer.create_batch())
            batch.append(key=key, value=value, timestamp=None)
            probe.sent[event_id], probe.lap_of[event_id] = time.time() * 1000, lap
        for partition, batch in batches.items():
            waiting.append(await producer.send_batch(batch, probe.topic, partition=partition))
        done = due
        await asyncio.sleep(max(_TICK_S, start + done / rate - time.monotonic()))
    await asyncio.gather(*waiting)


async def _settle(probe: _Probe) -> None:
    """Wait until everything that was sent has its prediction."""
    deadline = time.monotonic() + PATIENCE_S
    while len(probe.seen) < len(probe.sent):
        if time.monotonic() > deadline:
            missing = len(probe.sent) - len(probe.seen)
            raise UserError(f"{missing} predictions of {probe.task.name} did not come", "lower --rate")
        await asyncio.sleep(0.05)


def _laps(probe: _Probe, count: int) -> list[Lap]:
    found: list[list[list[float]]] = [[] for _ in range(count)]
    for event_id, seen in probe.seen.items():
        points = [probe.sent[event_id], seen.received, seen.processed, seen.appended, seen.read]
        found[probe.lap_of[event_id]].append(np.diff(points).tolist())
    return [Lap(number, np.array(parts, np.float64)) for number, parts in enumerate(found)]
