"""The join role: labels meet the examples they belong to. Faust agents over the batch transport.

Two logs. The labels topic is decoded (broken labels go to dead-letters) and every label moves to the examples topic, to
the partition of its event id. There it stands in one order with the examples, and the owner of the partition decides
each example once (`joining.JoinPartition`): the result goes to the labelled topic, and back to the label rates of the
entities that have some. Labels that it sets aside go to dead-letters.

With its labels a partition of the labels topic tells every partition of the examples topic how far in Kafka's time it
has come (`gate.label_mark`): no window closes before all have come as far as the events.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from faust.types import TP

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.metrics import Metrics
from infra.settings import Settings
from streams import wire
from streams.dead_letters import add_dead_letters, count_dead_letters
from streams.events import Broken, LabelDecoder, label_value
from streams.gate import label_mark
from streams.joining import JoinCounts, JoinPartition, Refused, feedback_of
from streams.log_end import EndOfLog
from streams.privacy import Pseudonymiser
from streams.recovery import check_end, replay
from streams.snapshots import Snapshots, SnapshotWriter
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Outputs, Record

log = logging.getLogger(__name__)

ON_ITS_WAY_MS = 1_000
"""How long a label with its timestamp may take until Kafka has it: what a silent partition says is so much older."""

FIRST_QUIET_S, LONGEST_QUIET_S = 0.5, 10.0
"""A silent partition of labels tells how far it has come after so long, and then at growing intervals."""


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
    label_partitions: int
    end_of_log: EndOfLog


class LabelStep:
    """One partition of the labels topic: decode, refuse what is broken, move on to the examples topic.

    It has no state: how far it has come, its next batch says, or Kafka when nothing comes.
    """

    def __init__(self, context: JoinContext, partition: int) -> None:
        self._context = context
        self._source = TP(context.topics.labels, partition)
        self._decoder = LabelDecoder(context.task, context.pseudonymiser)
        self._next = 0
        self._pause_s = FIRST_QUIET_S
        self._longest_s = min(LONGEST_QUIET_S, max(1.0, context.task.label.window_ms / 10_000))

    async def open(self, committed: Mapping[TP, int]) -> None:
        """See Step."""
        await check_end(self._context.settings.kafka, self._source, committed[self._source])
        self._next = committed[self._source]

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """See Step."""
        context, batch = self._context, records[self._source]
        labels, broken = self._decoder.decode(batch)
        add_dead_letters(
            outputs, context.topics.dead_letters, context.settings.partitions, context.task.name, broken
        )
        # A producer's clock may run ahead; ours says what Kafka can have got.
        self._pass_on(outputs, labels, min(max(record.timestamp for record in batch), now_ms()))
        self._next, self._pause_s = batch[-1].offset + 1, FIRST_QUIET_S
        context.metrics.count("labels_total", len(labels.ids))
        count_dead_letters(context.metrics, broken)

    def _pass_on(self, outputs: Outputs, labels: wire.Labels, come_ms: int) -> None:
        """Labels, each to the partition of its event id; to all of them, as the last record, how far we have come."""
        context, partitions = self._context, self._context.settings.partitions
        targets = np.array([wire.partition_of_id(i, partitions) for i in labels.ids], np.int64)
        kind = [(wire.KIND, wire.LABELS)]
        mark = label_mark(self._source.partition, context.label_partitions, come_ms)
        for target in range(partitions):
            part = labels.take(np.flatnonzero(targets == target))
            *whole, last = wire.cuts(part) or [np.arange(0)]
            for cut in whole:
                outputs.add(context.topics.examples, target, wire.encode_labels(part.take(cut)), headers=kind)
            value = wire.encode_labels(part.take(last))
            outputs.add(context.topics.examples, target, value, headers=[*kind, *mark])

    async def quiet(self, outputs: Outputs) -> float | None:
        """See Step: where Kafka has no more labels, nobody should wait for this partition."""
        asked = now_ms()
        if await self._context.end_of_log.reached(self._source, self._next):
            self._pass_on(outputs, wire.Labels.none(), asked - ON_ITS_WAY_MS)
        self._pause_s = min(2 * self._pause_s, self._longest_s)
        return self._pause_s

    def close(self, *, final: bool) -> None:
        """See Step."""


_DETAILS = {
    "orphan": "no event with this id came within label.window and serving.allowed_lateness",
    "contradiction": "the event had another label before; the first one counts",
}


class JoinStep:
    """One partition of the examples topic: examples and labels in, labelled rows and feedback out."""

    def __init__(self, context: JoinContext, partition: int) -> None:
        self._context, self._partition = context, partition
        self._source = TP(context.topics.examples, partition)
        self._state = JoinPartition(context.task)
        self._offset = 0
        self._counted = JoinCounts()
        prefix = f"state/{context.task.name}/{context.topics.examples}/{partition}"
        self._snapshots = Snapshots(context.blobs, prefix, self._state.fingerprint)
        every_ms = context.task.serving.snapshot_every_ms
        self._writer = SnapshotWriter(self._snapshots, every_ms, context.executor, context.metrics)

    async def open(self, committed: Mapping[TP, int]) -> None:
        """See Step."""
        start = 0
        found = self._snapshots.newest([committed[self._source]])
        if found:
            (start,), arrays = found
            self._state.restore(arrays)
        await replay(
            self._context.settings.kafka, self._source, start, committed[self._source], self._state.fold
        )
        self._offset, self._counted = committed[self._source], replace(self._state.counts)
        log.info(
            "%s ready at offset %d, %d examples wait for labels", self._source, self._offset, len(self._state)
        )

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """See Step."""
        batch = records[self._source]
        labelled = self._state.fold(batch)
        if labelled is not None:
            for cut in wire.cuts(labelled):
                value = wire.encode_labelled(labelled.take(cut))
                outputs.add(self._context.topics.labelled, self._partition, value)
            self._feed_back(outputs, labelled)
            self._context.metrics.count("examples_total", len(labelled))
        self._set_aside(outputs, self._state.refused)
        self._offset = batch[-1].offset + 1
        self._count()
        self._writer.take([self._offset], self._state.snapshot, outputs)

    async def quiet(self, outputs: Outputs) -> float | None:
        """See Step."""
        return None

    def _set_aside(self, outputs: Outputs, refused: Sequence[Refused]) -> None:
        context, label = self._context, self._context.task.label
        letters = [
            Broken(
                Record(  # it was read long ago: its value is made again from what is left of it
                    context.topics.labels,
                    each.partition,
                    each.offset,
                    each.event_id.encode(errors="replace"),
                    msgspec.json.encode(
                        {label.id: each.event_id, label.field: label_value(context.task, each.label)}
                    ),
                ),
                each.reason,
                _DETAILS[each.reason],
            )
            for each in refused
        ]
        add_dead_letters(
            outputs, context.topics.dead_letters, context.settings.partitions, context.task.name, letters
        )
        count_dead_letters(context.metrics, letters)

    def _count(self) -> None:
        """What the newest batch changed, and how things stand."""
        counts, before, metrics = self._state.counts, self._counted, self._context.metrics
        metrics.count("joined_total", counts.joined - before.joined)
        metrics.count("defaulted_total", counts.defaulted - before.defaulted)
        metrics.count("unlabelled_total", counts.dropped - before.dropped)
        metrics.count("corrected_total", counts.corrected - before.corrected)
        metrics.count("late_labels_total", counts.late - before.late)
        metrics.count("duplicate_labels_total", counts.duplicates - before.duplicates)
        metrics.count("contradicting_labels_total", counts.contradictions - before.contradictions)
        metrics.count("orphan_labels_total", counts.orphans - before.orphans)
        self._counted = replace(counts)
        metrics.note("labels_behind_ms", self._state.behind_ms)
        metrics.note("remembered", self._state.remembered)
        metrics.note("spilled", self._state.spilled)

    def _feed_back(self, outputs: Outputs, labelled: wire.Labelled) -> None:
        context = self._context
        for index, entity in enumerate(context.task.entities):
            if entity.name not in context.topics.feedback_entities:
                continue
            feedback = feedback_of(context.task, labelled, index)
            targets = wire.partition_of(feedback.keys, context.settings.partitions)
            for target in np.unique(targets).tolist():
                part = feedback.take(np.flatnonzero(targets == target))
                for cut in wire.cuts(part):
                    value = wire.encode_feedback(part.take(cut))
                    outputs.add(context.topics.feedback(entity.name), target, value)

    def close(self, *, final: bool) -> None:
        """See Step."""
        if final and self._offset:
            self._writer.save([self._offset], self._state.snapshot())
