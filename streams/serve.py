"""The serve role: events in, features, scores, predictions and examples out. Faust agents over the batch transport.

A stage is one log: the events topic, then one re-keyed topic for each further entity. A pass over the partitions of a
worker (`partitions`) does, for all partitions of a stage at once (`ServePass`):

1. fold what came for them: decode, drop duplicates, features of this stage's entity (`stage.fold`);
2. score the rows of the last stage with the live model (`emit.Emitter`);
3. write the outputs and the next offsets in one transaction (`transaction`): rows for the next stage, or predictions
   and examples; broken records to dead-letters;
4. hand the feature rows to Feast's online store, behind the stream (`online.OnlineWriter`);
5. now and then store a snapshot of the state (`snapshots`).

Taking a partition over: fence, read the committed offsets, load the newest snapshot below them, replay the log without
output up to them.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from faust.types import TP

from featurestore.dedup import SeenIds
from featurestore.state import EntityState
from infra.blobs import Blobs
from infra.clock import now_ms
from infra.metrics import Metrics
from infra.settings import Settings
from streams import wire
from streams.dead_letters import add_dead_letters, count_dead_letters
from streams.emit import Emitter
from streams.live import LiveModel
from streams.log_end import EndOfLog
from streams.online import OnlineWriter
from streams.ordering import IDLE, told
from streams.privacy import Pseudonymiser
from streams.recovery import replay
from streams.snapshots import Snapshots, SnapshotWriter
from streams.stage import Folded, StagePartition, fold
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Outputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeContext:
    """What all partitions of a serve worker share."""

    task: Task
    settings: Settings
    topics: Topics
    blobs: Blobs
    pseudonymiser: Pseudonymiser
    live: LiveModel
    emitter: Emitter
    online: OnlineWriter
    executor: Executor
    metrics: Metrics
    end_of_log: EndOfLog


def warm_up(task: Task, live: LiveModel) -> None:
    """Compile (or load) the kernels and touch the model before the first event waits for them: seconds, once."""
    key, time_ms = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for view in task.views.values():
        state = EntityState(view)
        values = {name: np.zeros(1) for name in view.values}
        state.update(key, time_ms, values, hashed=dict.fromkeys(view.hashed, key))
        if view.needs_labels:
            state.add_labels(key, time_ms, np.zeros(1))
    SeenIds(task.serving.dedup_ms).check_and_add(key, time_ms)
    wire.encode_rows(wire.Rows.empty(task))  # pyarrow loads pandas for its first array
    live.load()
    live.score(np.zeros((1, len(task.numbers)), np.float32), np.zeros((1, task.schema.ids), np.int64))


class ServeStep:
    """One partition of one stage; the `Step` that `partitions.Partitions` drives. Its records are folded with those of
    the others, when the pass `at_hand` is finished.
    """

    def __init__(self, context: ServeContext, at_hand: "ServePass", index: int, partition: int) -> None:
        self._context, self._at_hand = context, at_hand
        self.index, self.partition = index, partition
        task, topics = context.task, context.topics
        self.stage = StagePartition(task, index, context.pseudonymiser, context.settings.partitions)
        self._main = TP(topics.stage(index), partition)
        self._sources = [self._main]
        if self.stage.entity in topics.feedback_entities:
            self._sources.append(TP(topics.feedback(self.stage.entity), partition))
        self._offsets: dict[TP, int] = {}
        snapshots = Snapshots(
            context.blobs, f"state/{task.name}/{topics.stage(index)}/{partition}", self.stage.fingerprint
        )
        self._newest = snapshots.newest
        every_ms = task.serving.snapshot_every_ms
        self._writer = SnapshotWriter(snapshots, every_ms, context.executor, context.metrics)

    async def open(self, committed: Mapping[TP, int]) -> None:
        """See Step."""
        start = [0] * len(self._sources)
        found = self._newest([committed[tp] for tp in self._sources])
        if found:
            start, arrays = found
            self.stage.restore(arrays)
        for tp, first in zip(self._sources, start, strict=True):
            fold = self.stage.fold if tp == self._main else self.stage.fold_feedback
            await replay(self._context.settings.kafka, tp, first, committed[tp], fold)
        self._offsets = dict(committed)
        log.info("%s ready at offset %s, %d entities", self._main, committed[self._main], self.stage.entities)

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """See Step."""
        for tp, batch in records.items():
            if tp != self._main:
                self.stage.fold_feedback(batch)
                self._offsets[tp] = batch[-1].offset + 1
        self._at_hand.add(self, records.get(self._main, ()))

    def folded(self, records: Sequence[Any]) -> None:
        """The pass has folded them."""
        self._offsets[self._main] = records[-1].offset + 1

    def snapshot(self, outputs: Outputs) -> None:
        """Store the state as it is after the pass, if it is time to."""
        self._writer.take(self._at(), self.stage.snapshot, outputs)  # 5

    def tell(self, outputs: Outputs, rows: wire.Rows, watermark_ms: int) -> None:
        """Where order matters, rows go on with how far we are."""
        self._context.emitter.tell(outputs, self.index, rows, told(self.partition, watermark_ms))

    async def quiet(self, outputs: Outputs) -> float | None:
        """See Step: where Kafka has no more events, nobody should wait for this partition."""
        if self.index == 0 and self._at_hand.tells(0):  # later stages pass on what the first one tells
            if not await self._context.end_of_log.reached(self._main, self._offsets[self._main]):
                return self._context.task.serving.idle_ms / 1000  # they are only not read yet
            self.tell(outputs, wire.Rows.empty(self._context.task), IDLE)
        return None

    def close(self, *, final: bool) -> None:
        """See Step."""
        if final and self._offsets:
            self._writer.save(self._at(), self.stage.snapshot())

    def _at(self) -> list[int]:
        return [self._offsets[tp] for tp in self._sources]


class ServePass:
    """What came for all partitions of a worker in one pass: folded and written by stage."""

    def __init__(self, context: ServeContext) -> None:
        self._context, self._last = context, len(context.task.entities) - 1
        self._logs: dict[int, list[tuple[ServeStep, Sequence[Any]]]] = defaultdict(list)

    def tells(self, index: int) -> bool:
        """Whether stage `index` tells the next one how far it is."""
        return self._context.task.serving.order == "event_time" and index < self._last

    def add(self, step: ServeStep, records: Sequence[Any]) -> None:
        """Records of a partition's log, in offset order; none if only labels came back for it."""
        self._logs[step.index].append((step, records))

    async def finish(self, outputs: Outputs) -> None:
        """Fold and write everything that was added since the last time, which may be in the same pass."""
        if not outputs.after:
            outputs.after.append(lambda: self._context.metrics.count("transactions_total"))
        logs, self._logs = self._logs, defaultdict(list)
        for index, found in logs.items():
            if fresh := [(step, records) for step, records in found if records]:
                self._fold(index, fresh, outputs)
            for step, _ in found:
                step.snapshot(outputs)
            await asyncio.sleep(0)

    def _fold(self, index: int, found: Sequence[tuple[ServeStep, Sequence[Any]]], outputs: Outputs) -> None:
        context, steps = self._context, [step for step, _ in found]
        folded = fold([step.stage for step in steps], [records for _, records in found])  # 1
        if folded.broken:
            settings, topics = context.settings, context.topics
            add_dead_letters(
                outputs, topics.dead_letters, settings.partitions, context.task.name, folded.broken
            )
        if self.tells(index):
            for step, rows in zip(steps, folded.parts(), strict=True):
                step.tell(outputs, rows, step.stage.watermark_ms)
        else:
            sources = np.repeat([step.partition for step in steps], folded.sizes)
            context.emitter.write(outputs, index, folded.rows, sources)  # 2
        outputs.after.append(partial(self._done, index, folded))
        for step, records in found:
            step.folded(records)

    def _done(self, index: int, folded: Folded) -> None:
        """It is committed."""
        context = self._context
        self._count(index, folded)
        context.online.add(context.task.entities[index].name, folded.rows.keys[:, index], folded)  # 4

    def _count(self, index: int, folded: Folded) -> None:
        metrics = self._context.metrics
        metrics.note("batch_events", len(folded.rows))
        count_dead_letters(metrics, folded.broken)
        if index == 0:
            metrics.count("events_total", len(folded.rows) + folded.duplicates + len(folded.broken))
            metrics.count("duplicates_total", folded.duplicates)
            metrics.count("late_total", int(folded.rows.late.sum()))
        if index == self._last:
            metrics.count("predictions_total", len(folded.rows))
            metrics.observe("prediction_latency_ms", now_ms() - folded.rows.received_ms)
