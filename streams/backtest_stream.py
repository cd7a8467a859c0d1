"""A backtest's way from items to labelled rows: what serve and join do with one partition, without a broker.

In reading order: `cut` makes micro-batches of the items, `Path.features` is serve up to the score, `Path.labelled` is
join and the feedback of labels. Every step is the one that runs live, on records with the same bytes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from featurestore.dedup import SeenIds
from featurestore.state import EntityState
from streams import wire
from streams.events import Broken, LabelDecoder
from streams.feed import Item
from streams.gate import IDLE, label_mark
from streams.joining import JoinPartition, feedback_of
from streams.ordering import told
from streams.privacy import Pseudonymiser
from streams.rows import Labelled, Rows
from streams.stage import StagePartition
from streams.task import Task
from streams.topics import Topics

SHORTEST_WITHIN_MS = 10_000


class Record(NamedTuple):
    """What the steps read of a Kafka record. `timestamp` stands for the moment when Kafka got it."""

    value: bytes | None
    offset: int
    timestamp: int
    topic: str = ""
    partition: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class MicroBatch:
    """Items that are worked off together, in time order: events, and labels that became known meanwhile.

    An event's offset is its number among all events, from 0. `time_ms` is the time of the newest item.
    """

    events: list[Record] = field(default_factory=list)
    labels: list[Record] = field(default_factory=list)
    time_ms: int = 0


def default_within_ms(task: Task) -> int:
    """How much event time a micro-batch may span: half the label's window.

    What a batch shows of labels and lessons is as much too late as the batch is long; this keeps it short beside the
    wait for a label that is there anyway.
    """
    return max(SHORTEST_WITHIN_MS, task.label.window_ms // 2)


def cut(items: Iterable[Item], size: int, within_ms: int) -> Iterator[MicroBatch]:
    """Micro-batches of `items`, which are in time order: at most `size` events, as many labels, and `within_ms` long.

    Where one ends depends on nothing but the items.
    """
    encode, batch, number, labels, end_ms = msgspec.json.Encoder().encode, MicroBatch(), 0, 0, 0
    for time_ms, kind, _, value in items:
        full = len(batch.events) >= size or len(batch.labels) >= size
        if full or time_ms >= end_ms:
            if batch.events or batch.labels:
                yield batch
            batch, end_ms = MicroBatch(), time_ms + within_ms
        data = value if isinstance(value, bytes) else encode(value)
        stamp = max(time_ms, 0)  # Kafka's clock was never before 1970
        if kind == "event":
            batch.events.append(Record(data, number, stamp))
            number += 1
        else:
            batch.labels.append(Record(data, labels, stamp))
            labels += 1
        batch.time_ms = time_ms
    if batch.events or batch.labels:
        yield batch


def compile_kernels(task: Task) -> None:
    """Compile or load the kernels of the features: seconds, once, that belong to no stream."""
    key, time_ms = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for view in task.views.values():
        state, hashed = EntityState(view), dict.fromkeys(view.hashed, key)
        state.update(key, time_ms, {value: np.zeros(1) for value in view.values}, hashed=hashed)
        state.add_labels(key, time_ms, np.zeros(1))
    SeenIds(task.serving.dedup_ms).check_and_add(key, time_ms)


class Path:
    """The stages and the join of one partition that gets everything.

    Rows are scored between `features` and `labelled`, by whoever drives this. `refused` counts records by the reason
    for which live would put them to the dead letters; `duplicates` counts events that were passed over.
    """

    def __init__(self, task: Task, pseudonymiser: Pseudonymiser) -> None:
        self._task = task
        self._stages = [StagePartition(task, i, pseudonymiser) for i in range(len(task.entities))]
        self._fed_back = [
            (i, stage)
            for i, stage in enumerate(self._stages)
            if stage.entity in Topics.of(task).feedback_entities
        ]
        self._decoder = LabelDecoder(task, pseudonymiser)
        self._join = JoinPartition(task)
        self._records = 0
        # A label is here at its time: no window waits for labels that are still on their way.
        none, mark = wire.encode_labels(wire.Labels.none()), tuple(label_mark(0, 1, IDLE))
        self._join.fold([self._record(none, 0, ((wire.KIND, wire.LABELS), *mark))])
        self.refused: Counter[str] = Counter()
        self.duplicates = self.late = 0

    @property
    def waiting(self) -> int:
        """Events whose label is not decided yet."""
        return len(self._join)

    def features(self, events: list[Record]) -> Rows:
        """The rows of the events that are accepted, with the features of all entities, in the order of the events."""
        first, *rest = self._stages
        folded = first.fold(events)
        self._refuse(folded.broken)
        self.duplicates += folded.duplicates
        self.late += int(folded.rows.late.sum())
        rows, nobody = folded.rows, tuple(told(0, IDLE))  # is waited for: they come in order already
        for stage in rest if len(rows) else ():
            rows = stage.fold([self._record(wire.encode_rows(rows), 0, nobody)]).rows
        return rows

    def labelled(self, rows: Rows, labels: list[Record]) -> Labelled | None:
        """The rows whose label the batch decides, or None; their labels have reached the label rates then.

        Labels are folded before the batch's own rows: the end of a row's window must not pass before a label that
        came within it. `served` is NaN and `version` empty: there are several models.
        """
        found, broken = self._decoder.decode(labels)
        self._refuse(broken)
        records = []
        if len(found):
            kind = ((wire.KIND, wire.LABELS),)
            records.append(self._record(wire.encode_labels(found), labels[-1].timestamp, kind))
        if len(rows):
            served = self._task.schema.target.unknown(len(rows))
            records.append(self._record(wire.encode_examples(rows, served, ""), int(rows.received_ms[-1])))
        decided = self._join.fold(records)
        self.refused.update(label.reason for label in self._join.refused)
        if decided is not None:
            self._feed_back(decided)
        return decided

    def _feed_back(self, labelled: Labelled) -> None:
        for i, stage in self._fed_back:
            feedback = feedback_of(self._task, labelled, i)
            stage.fold_feedback([self._record(wire.encode_feedback(feedback), 0)])

    def _record(self, value: bytes, stamp: int, headers: tuple[tuple[str, bytes], ...] = ()) -> Record:
        self._records += 1
        return Record(value, self._records, stamp, headers=headers)

    def _refuse(self, broken: list[Broken]) -> None:
        self.refused.update(letter.reason for letter in broken)
