"""Reading `labelled`: rows in batches of the model's size, and the position in each partition."""

import logging
from collections.abc import Iterable
from typing import Any

from kafka import TopicPartition

from infra.kafka import make_consumer
from infra.metrics import Metrics
from learners.batch import Batch
from streams.wire import Damaged, Labelled, decode_labelled

log = logging.getLogger(__name__)

POLL_MS = 100


class LabelledReader:
    """Reads all partitions of the topic, assigned by hand. `positions` has the next offset of each."""

    def __init__(self, kafka: str, topic: str, partitions: int, rows_hash: str, metrics: Metrics) -> None:
        self.positions = dict.fromkeys(range(partitions), 0)
        self._topic, self._rows_hash, self._metrics = topic, rows_hash, metrics
        self._consumer = make_consumer(kafka, max_poll_records=64)

    def start(self) -> None:
        """Read on from `positions`."""
        places = {p: TopicPartition(self._topic, p) for p in self.positions}
        self._consumer.assign(list(places.values()))
        for p, place in places.items():
            self._consumer.seek(place, self.positions[p])

    def poll(self, size: int) -> Iterable[Batch]:
        """Labelled rows that are there now, in batches of `size` rows (the last one smaller)."""
        parts, rows = [], 0
        for place, records in self._consumer.poll(timeout_ms=POLL_MS).items():
            for record in records:
                labelled = self._decoded(record)
                if labelled is not None:
                    parts.append(labelled.batch())
                    rows += len(labelled)
            self.positions[place.partition] = records[-1].offset + 1
        if not rows:
            return []
        whole = Batch.concat(parts)
        return [whole.slice(start, start + size) for start in range(0, rows, size)]

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()

    def _decoded(self, record: Any) -> Labelled | None:
        """The record's rows; None for rows that cannot be learned from: the first is logged, all are counted."""
        try:
            return decode_labelled(record.value, self._rows_hash)
        except Damaged as error:
            if "damaged_total" not in self._metrics.snapshot():
                at = f"{record.topic}[{record.partition}]@{record.offset}"
                log.warning("%s is left out: %s (further ones are only counted)", at, error)
            self._metrics.count("damaged_total")
            return None
