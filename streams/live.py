"""The live model of a serving worker: starts from the newest whole model and follows the model-updates topic.

Scoring and taking an update happen in one thread, so a batch is scored by exactly one version. A whole model is built,
checked and warmed up in another thread first (`learners.slot.Slot.prepare`): a swap costs the stream one assignment.
What the worker serves, took and refused, it reports (`streams.fleet`).
"""

import asyncio
import logging
import math
import time
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from numpy.typing import NDArray

from infra.blobs import Blobs
from infra.clock import now_ms, ticks_ms
from infra.metrics import Metrics
from infra.settings import Settings, load_model_key
from learners.admission import Admission, BadUpdate, Meta, check_meta
from learners.slot import MissedRefresh, Slot
from learners.views import Payload
from streams.canary import Answer, Canary
from streams.fleet import ReportWriter
from streams.heads import Heads
from streams.parts import PART_BYTES, Gathering
from streams.task import Task
from streams.topics import Topics

log = logging.getLogger(__name__)
REPORT_EVERY_S = 1.0
_RELOAD_PAUSE_MS = 1000
_PAUSE_S = 0.02  # between the parts of preparing a model: longer than a pass
_FETCH_BYTES = 4 * PART_BYTES  # a record that is larger comes all the same


class LiveModel:
    """Scores rows with the live version, which `follow` keeps fresh and `report` tells of, under the name `worker`."""

    def __init__(self, task: Task, settings: Settings, worker: str, metrics: Metrics) -> None:
        self._topics, self._kafka = Topics.of(task), settings.kafka
        self._heads = Heads(Blobs(settings.blobs), task.name)
        admission = Admission(load_model_key(settings.model_key), task.guard.max_scoring_ms)
        self._slot = Slot(task.schema, task.model, task.seed, admission=admission)
        self._metrics = metrics
        self._task, self._worker = task, worker
        self._report = self._writer()
        self._parts = Gathering()
        self._canary: Canary | None = None
        self._refused: set[str] = set()  # lineages that were not taken as a canary
        self._news = asyncio.Event()
        self._reload_due_ms = 0
        metrics.probe("model_age_ms", self._age_ms)

    def _age_ms(self) -> float:
        """NaN before the first version that was sent."""
        created_ms = self._slot.created_ms
        return now_ms() - created_ms if created_ms else math.nan

    def serve(
        self, keys: NDArray[np.int64], numbers: NDArray[np.float32], categories: NDArray[np.int64]
    ) -> Answer:
        """Scores of rows, by the canary for its share of the entities `keys` int64 [n]; the rest as in `score`."""
        canary, n = self._canary, len(keys)
        if canary is None:
            scores, version = self.score(numbers, categories)
            return Answer(scores, [version] * n, np.zeros(n, np.int32))
        arm = canary.arms(keys)
        scores, versions = self._task.schema.target.unknown(n), np.zeros(n, object)
        for rows, score in ((np.flatnonzero(arm < 0), self.score), (np.flatnonzero(arm > 0), canary.score)):
            if len(rows):
                scores[rows], versions[rows] = score(numbers[rows], categories[rows])
        return Answer(scores, versions.tolist(), arm)

    @property
    def version(self) -> str:
        """The version that scores now."""
        return self._slot.version

    def score(
        self, numbers: NDArray[np.float32], categories: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], str]:
        """Scores float32 [n] of numbers [n, N] and categories [n, C], and the version that made all of them."""
        start = time.perf_counter()
        scores, version = self._slot.score(numbers, categories)
        self._report.scored(version, scores, (time.perf_counter() - start) * 1000.0)
        return scores, version

    def load(self) -> int:
        """Take the newest whole model; the offset of model-updates to read on from."""
        head = self._heads.get()
        if head is None:
            return 0
        try:
            self._slot.load_full(head.meta, head.payload)
        except BadUpdate as error:
            self._refuse(head.meta, error, "the newest stored model")
        self._canary = None  # one of an earlier call may be over
        if (beside := self._heads.canary()) is not None and beside.meta["lineage"] != self._slot.lineage:
            try:
                self._canary = self._beside(beside.meta, beside.payload)
            except BadUpdate as error:
                self._refuse(beside.meta, error, "the stored canary")
        return head.offset

    async def follow(self) -> None:
        """Read model-updates for ever; a Faust task of the worker."""
        offset = self.load()
        at = TopicPartition(self._topics.model_updates, 0)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka.split(","),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        await consumer.start()
        try:
            consumer.assign([at])
            oldest = (await consumer.beginning_offsets([at]))[at]
            consumer.seek(at, max(offset, oldest))
            async for record in consumer:
                again = await self._take(record)
                if again is not None:
                    consumer.seek(at, again)
        finally:
            await asyncio.shield(consumer.stop())

    async def report(self) -> None:
        """Tell what is served, every second and after every whole model, for ever; a Faust task of the worker."""
        producer = AIOKafkaProducer(bootstrap_servers=self._kafka.split(","))
        await producer.start()
        try:
            while True:
                values, canary = [self._report.take(self._slot.version, now_ms())], self._canary
                if canary is not None:
                    values.append(canary.report.take(canary.slot.version, now_ms(), canary=True))
                for value in values:
                    await producer.send_and_wait(self._topics.workers, value, partition=0)
                try:
                    await asyncio.wait_for(self._news.wait(), REPORT_EVERY_S)
                except TimeoutError:
                    continue
                self._news.clear()
        finally:
            await asyncio.shield(producer.stop())

    async def _take(self, record: Any) -> int | None:
        """Apply an update that ends here; where to read on instead of behind it, after one was missed."""
        meta: Meta = {}
        try:
            if (update := self._parts.add(record)) is None:
                # Records that are here already come one after the other, without a pause.
                await asyncio.sleep(0)
                return None
            meta, payload = update
            check_meta(meta)
            if await self._apply(meta, payload):
                self._metrics.count("swaps_total" if meta["kind"] == "swap" else "refreshes_total")
                if "canary" not in meta:
                    self._metrics.observe("update_latency_ms", now_ms() - meta["created_ms"])
                    self._metrics.note("model_learned_age_ms", now_ms() - meta["event_ms"])
        except BadUpdate as error:
            self._refuse(meta, error, f"model update at offset {record.offset}")
        except (KeyError, ValueError) as error:
            self._refuse(meta, BadUpdate("meta", repr(error)), f"model update at offset {record.offset}")
        except MissedRefresh as error:
            return await self._reload(error)
        return None

    async def _apply(self, meta: Meta, payload: Payload) -> bool:
        if "canary" in meta:
            return await self._apply_canary(meta, payload)
        if meta["kind"] != "swap":
            return await _refresh(self._slot, meta, payload)
        # Nobody else changes the slot meanwhile: the updates are taken one after the other.
        held = self._slot.holds(meta)
        if not held:
            self._slot.take(await asyncio.to_thread(self._slot.prepare, meta, payload, _PAUSE_S))
            self._news.set()
            log.info("swapped to %s", self._slot.version)
        self._canary = None  # a champion that is sent whole serves everyone, from the same batch on
        return not held

    async def _apply_canary(self, meta: Meta, payload: Payload) -> bool:
        """Refresh the canary; a new one, or one that was missed, is prepared beside and then taken at once."""
        canary, lineage = self._canary, meta["lineage"]
        own = canary is not None and canary.slot.lineage == lineage
        if canary is not None and own and meta["kind"] == "refresh":
            try:
                return await _refresh(canary.slot, meta, payload)
            except MissedRefresh as error:
                log.info("%s", error)
        if lineage in self._refused or (canary is not None and own and canary.slot.holds(meta)):
            return False
        if meta["kind"] == "refresh":
            stored = await asyncio.to_thread(self._heads.canary)
            if stored is None or stored.meta["lineage"] != lineage or lineage == self._slot.lineage:
                return False  # of one that is over
            meta, payload = stored.meta, stored.payload
        self._canary = await asyncio.to_thread(self._beside, meta, payload)
        self._news.set()
        log.info("%s is a canary for %g of the entities", meta["version"], meta["canary"])
        return True

    def _beside(self, meta: Meta, payload: Payload) -> Canary:
        """A model that is checked as a swap is, to serve beside the live one. Raises BadUpdate."""
        slot = self._slot.beside(self._slot.prepare(meta, payload, _PAUSE_S))
        return Canary(slot, meta["canary"], self._writer())

    def _writer(self) -> ReportWriter:
        limits = self._task.guard.max_scoring_ms
        return ReportWriter(self._task.name, self._worker, limits, self._task.schema.target)

    def _refuse(self, meta: Meta, error: BadUpdate, what: str) -> None:
        """The worker stays with what it has, and says so."""
        log.error("%s is refused, %s goes on: %s", what, self._slot.version, error)
        self._metrics.count("rejected_updates_total", of=error.step)
        if "canary" in meta:
            self._refused.add(str(meta.get("lineage")))
        self._report.refused(str(meta.get("version", "")), error)
        self._news.set()

    async def _reload(self, error: MissedRefresh) -> int | None:
        """Take the newest whole model, at most once a second: it may be older than what is missed."""
        if (now := ticks_ms()) < self._reload_due_ms:
            return None
        self._reload_due_ms = now + _RELOAD_PAUSE_MS
        log.info("%s; loading the newest whole model", error)
        head = await asyncio.to_thread(self._heads.get)
        if head is None:
            return None
        try:
            self._slot.take(await asyncio.to_thread(self._slot.prepare, head.meta, head.payload))
            if await asyncio.to_thread(self._heads.canary) is None:  # its end may be what was missed
                self._canary = None
            self._news.set()
        except BadUpdate as refused:
            self._refuse(head.meta, refused, "the newest stored model")
            return None
        return head.offset


async def _refresh(slot: Slot, meta: Meta, payload: Payload) -> bool:
    """Apply a refresh; a large one in a copy of the model, in another thread."""
    if len(payload) <= PART_BYTES:
        return slot.apply(meta, payload)
    ready = await asyncio.to_thread(slot.refreshed, meta, payload)
    if ready is not None:
        slot.take(ready)
    return ready is not None
