"""The learner's way out to serving: refreshes, whole models, and the head that a starting worker begins with.

A version never names two different weights: the numbers that a former life of the learner used are in the topic of
updates, and a whole model that is sent after a restart gets a number above them.
"""

import json
from typing import Any

from kafka import KafkaProducer, TopicPartition

from infra.clock import now_ms
from infra.kafka import end_offsets, make_consumer
from learners.registry import Live, Registry
from learners.slot import encode_full, encode_refresh
from learners.trainer import Trainer
from streams.heads import Head, Heads
from streams.live import META


class Publisher:
    """Sends the champion's updates to the topic and keeps the newest whole model as the head.

    `offset` is that of the newest update known to be in the topic, -1 before the first; `numbers` has the newest
    refresh number of each lineage up to there. Both belong into a checkpoint: `state` and `load`.
    """

    def __init__(
        self, kafka: str, topic: str, producer: KafkaProducer, heads: Heads, registry: Registry
    ) -> None:
        self._kafka, self._topic, self._producer = kafka, topic, producer
        self._heads, self._registry = heads, registry
        self.offset = -1
        self.numbers: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"offset": self.offset, "numbers": self.numbers}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.offset, self.numbers = state["offset"], state["numbers"]

    def refresh(self, champion: Trainer, event_ms: int) -> None:
        """Send the rows and layers that changed."""
        self._publish(*encode_refresh(champion, event_ms=event_ms, created_ms=now_ms()))

    def whole(self, champion: Trainer, event_ms: int, why: str) -> None:
        """Send the champion whole under a number that no worker has seen, make it the head, note it as live."""
        champion.advance(self.numbers.get(champion.lineage, 0))
        meta, payload = encode_full(champion, event_ms=event_ms, created_ms=now_ms())
        offset = self._publish(meta, payload)
        path = self._heads.put(Head(meta, payload, offset + 1))
        live = self._registry.live()
        if live is None or live.lineage != champion.lineage:
            self._registry.set_live(Live(champion.lineage, meta["version"], now_ms(), event_ms, path, why))

    def keep_head(self, champion: Trainer, event_ms: int) -> None:
        """Store what was last sent as a whole model, for workers that start. OSError when the store refuses."""
        meta, payload = encode_full(champion, event_ms=event_ms, created_ms=now_ms())
        self._heads.put(Head(meta, payload, self.offset + 1))

    def hear(self) -> None:
        """Note the numbers that a former life of this learner used since the checkpoint it left."""
        end = end_offsets(self._kafka, self._topic)[0]
        reader = make_consumer(self._kafka)
        try:
            place = TopicPartition(self._topic, 0)
            reader.assign([place])
            oldest = reader.beginning_offsets([place])[place]
            reader.seek(place, max(oldest, self.offset + 1))
            while reader.position(place) < end:
                for records in reader.poll(timeout_ms=200).values():
                    for record in records:
                        meta = json.loads(dict(record.headers)[META])
                        self.numbers[meta["lineage"]] = meta["refresh"]
        finally:
            reader.close()

    def _publish(self, meta: dict[str, Any], payload: bytes) -> int:
        """Send an update; its offset in the topic."""
        headers = [(META, json.dumps(meta).encode())]
        sent = self._producer.send(self._topic, value=payload, headers=headers, partition=0)
        self.offset = int(sent.get(timeout=30).offset)
        self.numbers[meta["lineage"]] = meta["refresh"]
        return self.offset
