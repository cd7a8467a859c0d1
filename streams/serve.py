"""The serve role: events in, features, scores, predictions and examples out. Faust agents over the batch transport.

A stage is one log: the events topic, then one re-keyed topic for each further entity. The owner of a stage's partition
does, for every batch:

1. fold the records: decode, drop duplicates, features of this stage's entity (`stage.StagePartition`);
2. in the last stage, score the rows with the live model (`live.LiveModel`);
3. write the outputs and the next offsets in one transaction (`transaction`): rows for the next stage, or predictions
   and examples; broken records to dead-letters;
4. hand the feature rows to Feast's online store, behind the stream (`online.OnlineWriter`);
5. now and then store a snapshot of the state (`snapshots`).

Taking a partition over: fence, read the committed offsets, load the newest snapshot below them, replay the log without
output up to them.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from faust.types import TP
from numpy.typing import NDArray

from featurestore.dedup import SeenIds
from featurestore.state import EntityState
from infra.blobs import Blobs
from infra.clock import now_ms
from infra.metrics import Metrics
from infra.settings import Settings
from streams import wire
from streams.dead_letters import add_dead_letters
from streams.live import LiveModel
from streams.online import OnlineWriter
from streams.ordering import IDLE, told
from streams.privacy import Pseudonymiser
from streams.recovery import replay
from streams.snapshots import Snapshots
from streams.stage import Folded, StagePartition
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Outputs

log = logging.getLogger(__name__)


class Source(msgspec.Struct, gc=False):
    """Where an event stands in the events topic."""

    partition: int
    offset: int


class Prediction(msgspec.Struct, gc=False):
    """One record of the predictions topic; docs/schemas.md has the units."""

    event_id: str
    task: str
    score: float
    version: str
    event_time: int
    received_at: int
    processed_at: int
    late: bool
    source: Source


@dataclass(frozen=True)
class ServeContext:
    """What all partitions of a serve worker share."""

    task: Task
    settings: Settings
    topics: Topics
    blobs: Blobs
    pseudonymiser: Pseudonymiser
    live: LiveModel
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
        self._folded: Folded | None = None  # of the batch that is not committed yet
        self._snapshots = Snapshots(
            context.blobs, f"state/{task.name}/{topics.stage(index)}/{partition}", self._stage.fingerprint
        )
        self._snapshot_ms = now_ms()
        self._saving: asyncio.Future[None] | None = None
        self._encoder = msgspec.json.Encoder()

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
                self._folded = self._stage.fold(batch)  # 1
            else:
                self._stage.fold_feedback(batch)
            self._offsets[tp] = batch[-1].offset + 1
        if self._folded is not None:
            self._emit(outputs, self._folded)  # 2

    def committed(self) -> None:
        """See Step."""
        folded, self._folded = self._folded, None
        if folded is not None:
            self._count(folded)
            self._context.online.add(self._stage.entity, folded.rows.keys[:, self._index], folded)  # 4
        self._maybe_snapshot()  # 5

    def _emit(self, outputs: Outputs, folded: Folded) -> None:
        context = self._context
        add_dead_letters(
            outputs,
            context.topics.dead_letters,
            context.settings.partitions,
            context.task.name,
            folded.broken,
        )
        if not self._last:
            self._pass_on(outputs, folded.rows, self._stage.watermark_ms)
        elif len(folded.rows):
            self._predict(outputs, folded.rows)

    def _pass_on(self, outputs: Outputs, rows: wire.Rows, watermark_ms: int) -> None:
        """Rows to the next stage, each to the partition of its next entity; where order matters, how far we are to all.

        What tells it is the last record for a partition, so that all rows up to there have come before.
        """
        partitions = self._context.settings.partitions
        topic = self._context.topics.stage(self._index + 1)
        targets = wire.partition_of(rows.keys[:, self._index + 1], partitions)
        headers = told(self._partition, watermark_ms) if self._tells else []
        for target in range(partitions) if self._tells else np.unique(targets).tolist():
            part = rows.take(targets == target)
            *whole, last = wire.cuts(part) or [np.arange(0)]
            for cut in whole:
                outputs.add(topic, target, wire.encode_rows(part.take(cut)))
            outputs.add(topic, target, wire.encode_rows(part.take(last)), headers=headers)

    async def quiet(self, outputs: Outputs) -> float | None:
        """See Step: nothing has come for a while, so nobody should wait for this partition."""
        if self._tells and self._index == 0:  # later stages pass on what the first one tells
            self._pass_on(outputs, wire.Rows.empty(self._context.task), IDLE)
        return None

    def _predict(self, outputs: Outputs, rows: wire.Rows) -> None:
        scores, version = self._context.live.score(rows.numbers, rows.categories)
        self._write_predictions(outputs, rows, scores, version)
        self._write_examples(outputs, rows, scores, version)

    def _write_predictions(
        self, outputs: Outputs, rows: wire.Rows, scores: NDArray[np.float32], version: str
    ) -> None:
        context, encode = self._context, self._encoder.encode
        topic, task, processed = context.topics.predictions, context.task.name, now_ms()
        columns = zip(
            rows.ids,
            scores.tolist(),
            rows.event_ms.tolist(),
            rows.received_ms.tolist(),
            rows.late.tolist(),
            rows.partition.tolist(),
            rows.offset.tolist(),
            strict=True,
        )
        for event_id, score, event, received, late, partition, offset in columns:
            row = Prediction(
                event_id, task, score, version, event, received, processed, late, Source(partition, offset)
            )
            outputs.add(topic, self._partition, encode(row), key=event_id.encode())

    def _write_examples(
        self, outputs: Outputs, rows: wire.Rows, scores: NDArray[np.float32], version: str
    ) -> None:
        context = self._context
        targets = np.array([wire.partition_of_id(i, context.settings.partitions) for i in rows.ids], np.int64)
        for target in np.unique(targets).tolist():
            chosen = np.flatnonzero(targets == target)
            part, served = rows.take(chosen), scores[chosen]
            for cut in wire.cuts(part):
                value = wire.encode_examples(part.take(cut), served[cut], version)
                outputs.add(context.topics.examples, target, value, headers=[(wire.KIND, wire.EXAMPLES)])

    def _count(self, folded: Folded) -> None:
        metrics = self._context.metrics
        metrics.count("transactions_total")
        metrics.note("batch_events", len(folded.rows))
        if self._index == 0:
            metrics.count("events_total", len(folded.rows) + folded.duplicates + len(folded.broken))
            metrics.count("duplicates_total", folded.duplicates)
            metrics.count("dead_letters_total", len(folded.broken))
            metrics.count("late_total", int(folded.rows.late.sum()))
        if self._last:
            metrics.count("predictions_total", len(folded.rows))

    def _maybe_snapshot(self) -> None:
        due = self._snapshot_ms + self._context.task.serving.snapshot_every_ms
        if now_ms() < due or (self._saving is not None and not self._saving.done()):
            return
        self._snapshot_ms = now_ms()
        offsets, arrays = [self._offsets[tp] for tp in self._sources], self._stage.snapshot()
        loop = asyncio.get_running_loop()
        self._saving = loop.run_in_executor(self._context.executor, self._save, offsets, arrays)

    def _save(self, offsets: list[int], arrays: dict[str, Any]) -> None:
        try:
            self._snapshots.put(offsets, arrays)
            self._context.metrics.count("snapshots_total")
        except OSError as error:
            # A full disk must not stop the stream: the log still has everything, only recovery takes longer.
            log.error(
                "cannot store a snapshot of %s: %s; free some space in %s",
                self._main,
                error,
                self._context.blobs.url,
            )
            self._context.metrics.count("snapshots_failed_total")

    def close(self, *, final: bool) -> None:
        """See Step."""
        if final and self._offsets:
            self._save([self._offsets[tp] for tp in self._sources], self._stage.snapshot())
