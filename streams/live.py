"""The live model of a serving worker: starts from the newest whole model and follows the model-updates topic.

Scoring and updating happen in one thread, so a batch is scored by exactly one version.
"""

import asyncio
import json
import logging
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from numpy.typing import NDArray

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.metrics import Metrics
from learners.slot import BadUpdate, MissedRefresh, Slot
from streams.heads import Heads
from streams.task import Task
from streams.topics import MAX_RECORD_BYTES, Topics

log = logging.getLogger(__name__)
META = "meta"
_RELOAD_PAUSE_MS = 1000


class LiveModel:
    """Scores rows with the live version, which `follow` keeps fresh."""

    def __init__(self, task: Task, kafka: str, blobs: Blobs, metrics: Metrics) -> None:
        self._topic, self._kafka = Topics.of(task).model_updates, kafka
        self._heads = Heads(blobs, task.name)
        self._slot = Slot(task.schema, task.model, task.seed)
        self._metrics = metrics
        self._reloaded_ms = 0

    @property
    def version(self) -> str:
        """The version that scores now."""
        return self._slot.version

    def score(
        self, numbers: NDArray[np.float32], categories: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], str]:
        """Probabilities float32 [n] of numbers [n, N] and categories [n, C], and the version that made all of them."""
        return self._slot.score(numbers, categories)

    def load(self) -> int:
        """Take the newest whole model; the offset of model-updates to read on from."""
        head = self._heads.get()
        if head is None:
            return 0
        try:
            self._slot.load_full(head.meta, head.payload)
        except BadUpdate as error:
            log.error("the newest stored model is refused: %s", error)
            self._metrics.count("rejected_updates_total")
        return head.offset

    async def follow(self) -> None:
        """Read model-updates for ever; a Faust task of the worker."""
        offset = self.load()
        at = TopicPartition(self._topic, 0)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka.split(","),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=MAX_RECORD_BYTES,
        )
        await consumer.start()
        try:
            consumer.assign([at])
            oldest = (await consumer.beginning_offsets([at]))[at]
            consumer.seek(at, max(offset, oldest))
            async for record in consumer:
                again = self._take(record)
                if again is not None:
                    consumer.seek(at, again)
        finally:
            await asyncio.shield(consumer.stop())

    def _take(self, record: Any) -> int | None:
        """Apply an update; where to read on instead of behind it, after one was missed."""
        headers = dict(record.headers)
        try:
            meta = json.loads(headers[META])
            if self._slot.apply(meta, record.value or b""):
                self._metrics.count("swaps_total" if meta["kind"] == "swap" else "refreshes_total")
                self._metrics.note("staleness_ms", now_ms() - meta["created_ms"])
                if meta["kind"] == "swap":
                    log.info("swapped to %s", self._slot.version)
        except (BadUpdate, KeyError, ValueError) as error:
            log.error("model update at offset %d is refused: %s", record.offset, error)
            self._metrics.count("rejected_updates_total")
        except MissedRefresh as error:
            return self._reload(error)
        return None

    def _reload(self, error: MissedRefresh) -> int | None:
        """Take the newest whole model, at most once a second: it may be older than what is missed."""
        if now_ms() - self._reloaded_ms < _RELOAD_PAUSE_MS:
            return None
        self._reloaded_ms = now_ms()
        log.info("%s; loading the newest whole model", error)
        return self.load()
