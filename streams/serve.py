"""The serve role: events in, features, scores, predictions and examples out. Faust agents over the batch transport.

A stage is one log: the events topic, then one re-keyed topic for each further entity. A pass over the partitions of a
worker (`partitions`) does:

1. fold what came for each partition of each stage: decode, drop duplicates, features of this stage's entity
   (`stage.StagePartition`);
2. score the rows of the last stage with the live model, all at once (`emit.Emitter`);
3. write the outputs and the next offsets in one transaction (`transaction`): rows for the next stage, or predictions
   and examples; broken records to dead-letters;
4. hand the feature rows to Feast's online store, behind the stream (`online.OnlineWriter`);
5. now and then store a snapshot of the state (`snapshots`).

Taking a partition over: fence, read the committed offsets, load the newest snapshot below them, replay the log without
output up to them.
"""

import logging
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
from streams.online import OnlineWriter
from streams.ordering import IDLE, told
from streams.privacy import Pseudonymiser
from streams.recovery import replay
from streams.snapshots import Snapshots, SnapshotWriter
from streams.stage import Folded, StagePartition
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
    """One partition of one stage; the `Step` that `partitions.Partitions` drives."""

    def __init__(self, context: ServeContext, index: int, partition: int) -> None:
        self._context, self._index, self._partition = context, index, partition
        task, topics = context.task, context.topics
        self._stage = StagePartition(task, index, context.pseudonymiser, context.settings.partitions)
        self._main = TP(topics.stage(index), partition)
        self._sources = [self._main]
        if self._stage.entity in topics.feedback_entities:
            self._sources.append(TP(topics.feedback(self._stage.entity), partition))
        self._last = index == len(task.entities) - 1
        self._tells = task.serving.order == "event_time" and not self._last
        self._offsets: dict[TP, int] = {}
        self._snapshots = Snapshots(
            context.blobs, f"state/{task.name}/{topics.stage(index)}/{partition}", self._stage.fingerprint
        )
        every_ms = task.serving.snapshot_every_ms
        self._writer = SnapshotWriter(self._snapshots, every_ms, context.executor, context.metrics)

    async def open(self, committed: Mapping[TP, int]) -> None:
        """See Step."""
        start = [0] * len(self._sources)
        found = self._snapshots.newest([committed[tp] for tp in self._sources])
        if found:
            start, arrays = found
            self._stage.restore(arrays)
        for tp, first in zip(self._sources, start, strict=True):
            fold = self._stage.fold if tp == self._main else self._stage.fold_feedback
            await replay(self._context.settings.kafka, tp, first, committed[tp], fold)
        self._offsets = dict(committed)
        log.info(
            "%s ready at offset %s, %d entities", self._main, committed[self._main], self._stage.entities
        )

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """See Step."""
        for tp, batch in records.items():
            if tp == self._main:
                folded = self._stage.fold(batch)  # 1
                self._emit(outputs, folded)  # 2
                outputs.after.append(partial(self._done, folded))
            else:
                self._stage.fold_feedback(batch)
            self._offsets[tp] = batch[-1].offset + 1
        self._writer.take(self._at(), self._stage.snapshot, outputs)  # 5

    def _done(self, folded: Folded) -> None:
        """A batch is committed."""
        self._count(folded)
        self._context.online.add(self._stage.entity, folded.rows.keys[:, self._index], folded)  # 4

    def _emit(self, outputs: Outputs, folded: Folded) -> None:
        context = self._context
        add_dead_letters(
            outputs,
            context.topics.dead_letters,
            context.settings.partitions,
            context.task.name,
            folded.broken,
        )
        if self._tells:
            self._tell(outputs, folded.rows, self._stage.watermark_ms)
        else:
            context.emitter.add(self._index, self._partition, folded.rows)

    def _tell(self, outputs: Outputs, rows: wire.Rows, watermark_ms: int) -> None:
        """Where order matters, rows go on with how far we are."""
        self._context.emitter.tell(outputs, self._index, rows, told(self._partition, watermark_ms))

    async def quiet(self, outputs: Outputs) -> float | None:
        """See Step: nothing has come for a while, so nobody should wait for this partition."""
        if self._tells and self._index == 0:  # later stages pass on what the first one tells
            self._tell(outputs, wire.Rows.empty(self._context.task), IDLE)
        return None

    def _count(self, folded: Folded) -> None:
        metrics = self._context.metrics
        metrics.note("batch_events", len(folded.rows))
        if self._index == 0:
            metrics.count("events_total", len(folded.rows) + folded.duplicates + len(folded.broken))
            metrics.count("duplicates_total", folded.duplicates)
            count_dead_letters(metrics, folded.broken)
            metrics.count("late_total", int(folded.rows.late.sum()))
        if self._last:
            metrics.count("predictions_total", len(folded.rows))
            metrics.observe("prediction_latency_ms", now_ms() - folded.rows.received_ms)

    def close(self, *, final: bool) -> None:
        """See Step."""
        if final and self._offsets:
            self._writer.save(self._at(), self._stage.snapshot())

    def _at(self) -> list[int]:
        return [self._offsets[tp] for tp in self._sources]
