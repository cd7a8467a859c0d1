"""Where the learner's records go: what it says to people, and the updates of the model that serves."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from infra.kafka import end_offsets, make_consumer, make_producer, polls
from streams.parts import ended, split
from streams.topics import META

Meta = dict[str, Any]
_PARTS_AHEAD = 4  # of an update: sent before the first of them is known to be safe
_SAID_S = 2.0  # how long the end waits for Kafka to hear how far the learner is
Places = Mapping[str, Mapping[int, int]]  # topic, partition: offset of the next record


class Outlet(Protocol):
    """The learner's way out. Five methods: to say, publish, know what was published, say how far it read, end."""

    def send(self, topic: str, value: bytes, key: bytes) -> Any:
        """Sends a record some time soon."""

    def publish(self, meta: Meta, payload: bytes) -> int:
        """Sends an update; the offset of its end, once it is safe."""

    def published(self, after: int) -> Iterator[tuple[int, Meta]]:
        """Offset and meta of the updates that are there after an offset, in order."""

    def reached(self, places: Places) -> None:
        """Tells Kafka how far the learner has read, for whoever looks at its lag; nothing is ever read from it."""

    def close(self) -> None:
        """Sends what waits, and ends."""


class ListOutlet:
    """Lists in memory, which outlive a learner: for tests and benchmarks."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.updates: list[tuple[Meta, bytes]] = []
        self.places: Places = {}

    def send(self, topic: str, value: bytes, key: bytes) -> Any:
        """See Outlet."""
        self.sent.append((topic, value))

    def publish(self, meta: Meta, payload: bytes) -> int:
        """See Outlet."""
        self.updates.append((meta, payload))
        return len(self.updates) - 1

    def published(self, after: int) -> Iterator[tuple[int, Meta]]:
        """See Outlet."""
        for offset in range(after + 1, len(self.updates)):
            yield offset, self.updates[offset][0]

    def reached(self, places: Places) -> None:
        """See Outlet."""
        self.places = places

    def close(self) -> None:
        """See Outlet."""


class KafkaOutlet:
    """Records to their topics, updates to `updates`."""

    def __init__(self, kafka: str, updates: str, group: str) -> None:
        self._kafka, self._updates = kafka, updates
        self._producer = make_producer(kafka)
        self._group = make_consumer(kafka, group=group)
        self._said: Any = None  # the newest `reached`, as a future

    def send(self, topic: str, value: bytes, key: bytes) -> Any:
        """See Outlet."""
        return self._producer.send(topic, value=value, key=key)

    def publish(self, meta: Meta, payload: bytes) -> int:
        """See Outlet."""
        waiting: deque[Any] = deque()
        for headers, value in split(meta, payload):
            ahead = 0 if META in dict(headers) else _PARTS_AHEAD  # the end when all else is safe
            while len(waiting) > ahead:
                waiting.popleft().get(timeout=30)
            waiting.append(self._producer.send(self._updates, value=value, headers=headers, partition=0))
        return int(waiting.pop().get(timeout=30).offset)

    def published(self, after: int) -> Iterator[tuple[int, Meta]]:
        """See Outlet."""
        return published(self._kafka, self._updates, after)

    def reached(self, places: Places) -> None:
        """See Outlet. It waits for nothing, and what gets lost is said again a second later."""
        self._said = self._group.commit_async(
            {
                TopicPartition(topic, p): OffsetAndMetadata(offset, "", -1)
                for topic, offsets in places.items()
                for p, offset in offsets.items()
            }
        )

    def close(self) -> None:
        """See Outlet."""
        until = time.monotonic() + _SAID_S
        while self._said is not None and not self._said.is_done and time.monotonic() < until:
            time.sleep(0.01)
        self._group.close()
        self._producer.flush()
        self._producer.close()


def published(kafka: str, updates: str, after: int) -> Iterator[tuple[int, Meta]]:
    """Offset and meta of the updates that the topic has after an offset, in order."""
    end = end_offsets(kafka, updates)[0]
    reader = make_consumer(kafka)
    try:
        place = TopicPartition(updates, 0)
        reader.assign([place])
        oldest = reader.beginning_offsets([place])[place]
        reader.seek(place, max(oldest, after + 1))
        for found in polls(reader, {place: end}):
            for records in found.values():
                for record in records:
                    if (update := ended(record)) is not None:
                        yield record.offset, update[0]
    finally:
        reader.close()
