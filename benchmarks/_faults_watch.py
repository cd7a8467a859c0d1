"""Looks at the predictions of the fault benchmark while they come: when each partition went on after a fault."""

import logging
import threading
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from infra.errors import UserError
from infra.kafka import make_consumer

_POLL_MS = 200


class Watch(threading.Thread):
    """Reads the predictions as a consumer with isolation read_committed does, in a thread of its own."""

    def __init__(self, kafka: str, topic: str, partitions: int) -> None:
        super().__init__(name="watch", daemon=True)
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it tells of every broker that is away
        self._consumer = make_consumer(kafka)
        self._consumer.assign([TopicPartition(topic, p) for p in range(partitions)])
        self._times: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.seen = 0

    def run(self) -> None:
        """Read until `close`."""
        while not self._end.is_set():
            try:
                polled = self._consumer.poll(timeout_ms=_POLL_MS)
            except (KafkaError, UserError):
                continue
            for place, records in polled.items():
                rows = [msgspec.json.decode(record.value) for record in records]
                with self._lock:
                    self.seen += len(rows)
                    for row in rows:
                        insort(self._times["made by", place.partition], row["processed_at"])
                        insort(self._times["read from", row["source"]["partition"]], row["processed_at"])

    def recovered(self, after_ms: int, partitions: Iterable[int]) -> float | None:
        """Seconds from `after_ms` to the moment when every partition had gone on; None while one has not.

        A partition has gone on when its owner in the last stage has made a prediction after `after_ms`, and an event
        of that partition of the events topic has got one, which its owner in the first stage has a part in.
        """
        found = [
            self._next(side, partition, after_ms)
            for partition in partitions
            for side in ("made by", "read from")
        ]
        if any(at is None for at in found):
            return None
        return max((at - after_ms for at in found if at is not None), default=0) / 1000

    def _next(self, side: str, partition: int, after_ms: int) -> int | None:
        with self._lock:
            times = self._times[side, partition]
            place = bisect_right(times, after_ms)
            return times[place] if place < len(times) else None

    def close(self) -> None:
        """End the thread and let go of the connection."""
        self._end.set()
        self.join()
        self._consumer.close()
