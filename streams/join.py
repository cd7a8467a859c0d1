"""The join role: labels meet the examples they belong to. Faust agents over the batch transport.

Two logs. The labels topic is decoded (broken labels go to dead-letters) and every label moves to the examples topic, to
the partition of its event id. There it stands in one order with the examples, and the owner of the partition decides
each example once (`joining.JoinPartition`): the result goes to the labelled topic, and back to the label rates of the
entities that have some.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from faust.types import TP

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.metrics import Metrics
from infra.settings import Settings
from streams import wire
from streams.dead_letters import add_dead_letters
from streams.events import LabelDecoder
from streams.joining import JoinPartition
from streams.privacy import Pseudonymiser
from streams.recovery import replay
from streams.snapshots import Snapshots
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Committer, Outputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JoinContext:
    """What all partitions of a join worker share."""

    task: Task
    settings: Settings
    topics: Topics
    blobs: Blobs
    pseudonymiser: Pseudonymiser
    executor: Executor
    metrics: Metrics


class LabelStep:
    """One partition of the labels topic: decode, refuse what is broken, move on to the examples topic. No state."""

    def __init__(self, context: JoinContext, partition: int, committer: Committer) -> None:
        self._context, self._committer = context, committer
        self._source = TP(context.topics.labels, partition)
        self._decoder = LabelDecoder(context.task, context.pseudonymiser)

    async def open(self) -> Mapping[TP, int]:
        """See Step."""
        return await self._committer.open([self._source])

    async def process(self, records: Mapping[TP, Sequence[Any]]) -> None:
        """See Step."""
        context, batch = self._context, records[self._source]
        labels, broken = self._decoder.decode(batch)
        outputs = Outputs()
        add_dead_letters(
            outputs, context.topics.dead_letters, context.settings.partitions, context.task.name, broken
        )
        targets = np.array(
            [wire.partition_of_id(i, context.settings.partitions) for i in labels.ids], np.int64
        )
        for target in np.unique(targets).tolist():
            chosen = np.flatnonzero(targets == target)
            part = labels.take(chosen)
            for cut in wire.cuts(part):
                value = wire.encode_labels(part.take(cut))
                outputs.add(context.topics.examples, target, value, headers=[(wire.KIND, wire.LABELS)])
        await self._committer.commit(outputs, {self._source: batch[-1].offset + 1})
        context.metrics.count("labels_total", len(labels.ids))
        context.metrics.count("dead_letters_total", len(broken))

    async def quiet(self) -> None:
        """See Step."""

    async def close(self, *, final: bool) -> None:
        """See Step."""
        await self._committer.close()


class JoinStep:
    """One partition of the examples topic: examples and labels in, labelled rows and feedback out."""

    def __init__(self, context: JoinContext, partition: int, committer: Committer) -> None:
        self._context, self._partition, self._committer = context, partition, committer
        self._source = TP(context.topics.examples, partition)
        self._state = JoinPartition(context.task)
        self._offset = 0
        prefix = f"state/{context.task.name}/{context.topics.examples}/{partition}"
        self._snapshots = Snapshots(context.blobs, prefix, self._state.fingerprint)
        self._snapshot_ms = now_ms()
        self._saving: asyncio.Future[None] | None = None

    async def open(self) -> Mapping[TP, int]:
        """See Step."""
        committed = await self._committer.open([self._source])
        start = 0
        found = self._snapshots.newest([committed[self._source]])
        if found:
            (start,), arrays = found
            self._state.restore(arrays)
        await replay(
            self._context.settings.kafka, self._source, start, committed[self._source], self._state.fold
        )
        self._offset = committed[self._source]
        log.info(
            "%s ready at offset %d, %d examples wait for labels", self._source, self._offset, len(self._state)
        )
        return committed

    async def process(self, records: Mapping[TP, Sequence[Any]]) -> None:
        """See Step."""
        batch = records[self._source]
        labelled = self._state.fold(batch)
        outputs = Outputs()
        if labelled is not None:
            for cut in wire.cuts(labelled):
                value = wire.encode_labelled(labelled.take(cut))
                outputs.add(self._context.topics.labelled, self._partition, value)
            self._feed_back(outputs, labelled)
            self._context.metrics.count("examples_total", len(labelled.rows))
        self._offset = batch[-1].offset + 1
        await self._committer.commit(outputs, {self._source: self._offset})
        self._maybe_snapshot()

    async def quiet(self) -> None:
        """See Step."""

    def _feed_back(self, outputs: Outputs, labelled: wire.Labelled) -> None:
        context = self._context
        for index, entity in enumerate(context.task.entities):
            if entity.name not in context.topics.feedback_entities:
                continue
            keys = labelled.rows.keys[:, index]
            targets = wire.partition_of(keys, context.settings.partitions)
            for target in np.unique(targets).tolist():
                chosen = targets == target
                part = wire.Feedback(
                    keys[chosen], labelled.known_ms[chosen], labelled.label[chosen].astype(np.float64)
                )
                for cut in wire.cuts(part):
                    value = wire.encode_feedback(part.take(cut))
                    outputs.add(context.topics.feedback(entity.name), target, value)

    def _maybe_snapshot(self) -> None:
        due = self._snapshot_ms + self._context.task.serving.snapshot_every_ms
        if now_ms() < due or (self._saving is not None and not self._saving.done()):
            return
        self._snapshot_ms = now_ms()
        loop = asyncio.get_running_loop()
        self._saving = loop.run_in_executor(
            self._context.executor, self._save, self._offset, self._state.snapshot()
        )

    def _save(self, offset: int, arrays: dict[str, Any]) -> None:
        try:
            self._snapshots.put([offset], arrays)
            self._context.metrics.count("snapshots_total")
        except OSError as error:
            # A full disk must not stop the stream: the log still has everything, only recovery takes longer.
            log.error(
                "cannot store a snapshot of %s: %s; free some space in %s",
                self._source,
                error,
                self._context.blobs.url,
            )
            self._context.metrics.count("snapshots_failed_total")

    async def close(self, *, final: bool) -> None:
        """See Step."""
        if final and self._offset:
            self._save(self._offset, self._state.snapshot())
        await self._committer.close()
