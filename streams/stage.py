"""The state of one partition of one serve stage, and how its log changes it. Pure: no Kafka, no clock, no files.

Stage 0 folds the events topic: decode, drop duplicates, mark late events, features of the key's entity. Every further
stage folds a topic re-keyed by one more entity and adds that entity's features. The same records in the same order give
the same state and the same rows, bit for bit, however they are cut into batches: that is what makes a snapshot plus a
replay of the log exact.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.dedup import SeenIds
from featurestore.state import EntityState
from streams.events import Broken, EventDecoder
from streams.feature_columns import FeatureColumns
from streams.ordering import Merge
from streams.privacy import Pseudonymiser
from streams.rows import Rows
from streams.task import Task
from streams.wire import Damaged, decode_feedback, decode_rows

log = logging.getLogger(__name__)
_BEGINNING = -(2**62)
_FORMAT = 2  # of a snapshot: one that was written otherwise must not be loaded


@dataclass
class Folded:
    """What a fold produced: rows with this stage's features filled in, and what was not used.

    `features` float32 [n, F] are this stage's columns of `rows.numbers`; `broken` is in offset order. Of several
    partitions (`fold`) each comes after the other, and `sizes` says how many rows are of which.
    """

    rows: Rows
    features: NDArray[np.float32]
    broken: list[Broken] = field(default_factory=list)
    duplicates: int = 0
    sizes: Sequence[int] = ()

    def parts(self) -> list[Rows]:
        """The rows of each partition."""
        return [self.rows.part(place) for place in _parts(self.sizes)]


class StagePartition:
    """One partition of serve stage `index` of a task; `partitions` is how many the stage before it has."""

    def __init__(self, task: Task, index: int, pseudonymiser: Pseudonymiser, partitions: int = 1) -> None:
        self.task, self.index = task, index
        self.entity = task.entities[index].name
        self.view = task.views.get(self.entity)
        self._state = EntityState(self.view) if self.view else None
        self.columns = FeatureColumns(task, self.view) if self.view else None
        self.decoder = EventDecoder(task, pseudonymiser)
        # An event that runs ahead must not make the ids of the present look old.
        self._remember_ms = task.serving.dedup_ms + task.serving.max_future_ms
        self._seen = SeenIds(self._remember_ms)
        self._watermark_ms = _BEGINNING
        ordered = task.serving.order == "event_time" and index > 0
        self._merge = Merge(task, partitions) if ordered else None

    @property
    def fingerprint(self) -> str:
        """Changes with everything that gives a snapshot its meaning; another one must not be restored."""
        serving = self.task.serving
        limits = (self._remember_ms, serving.allowed_lateness_ms, serving.late)
        order = () if self._merge is None else self._merge.partitions
        text = repr((_FORMAT, self.task.rows_hash, self.index, limits if self.index == 0 else (), order))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def watermark_ms(self) -> int:
        """Event time that this partition has come to; `ordering.IDLE` when the ones before it have nothing."""
        return self._watermark_ms if self._merge is None else self._merge.watermark_ms

    @property
    def entities(self) -> int:
        """How many entities the state holds."""
        return len(self._state) if self._state else 0

    def fold(self, records: Sequence[Any]) -> Folded:
        """Fold records of the stage's log, in offset order."""
        return fold([self], [records])

    def fold_feedback(self, records: Sequence[Any]) -> None:
        """Fold labels that came back for this stage's entity; they commute with events."""
        for record in records:
            try:
                feedback = decode_feedback(record.value)
            except Damaged as error:
                log.error("%s[%s]@%s: %s", record.topic, record.partition, record.offset, error)
                continue
            if self._state is not None:
                self._state.add_labels(feedback.keys, feedback.known_ms, feedback.label, feedback.back)

    def is_new(self, hashes: NDArray[np.int64], event_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which events, by the hash of their id [n], were not seen before: bool [n]. All are remembered."""
        return self._seen.check_and_add(hashes, event_ms)

    def mark_late(self, event_ms: NDArray[np.int64], received_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Events older than the newest event time before them by more than the allowed lateness: bool [n].

        An event time ahead of Kafka's own clock counts as that clock: one producer's wrong clock must not make
        everyone else late.
        """
        times = np.minimum(event_ms, received_ms)
        newest = np.maximum.accumulate(np.concatenate([[self._watermark_ms], times]))
        self._watermark_ms = int(newest[-1])
        late: NDArray[np.bool_] = event_ms < newest[:-1] - self.task.serving.allowed_lateness_ms
        return late

    def in_order(self, record: Any, rows: Rows) -> Rows:
        """The rows of a record of a later stage; or, where order matters, all that need not wait any longer."""
        if self._merge is None:
            return rows
        self._merge.add(record, rows)
        return self._merge.take()

    def update(
        self,
        keys: NDArray[np.int64],
        event_ms: NDArray[np.int64],
        values: Mapping[str, NDArray[np.float64]],
        add: NDArray[np.bool_],
        hashed: Mapping[str, NDArray[np.int64]],
    ) -> NDArray[np.float32]:
        """The features of rows [n, F]; see `EntityState.update`."""
        assert self._state is not None
        return self._state.update(keys, event_ms, values, add, hashed)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that the log made so far."""
        arrays = {f"seen.{name}": array for name, array in self._seen.snapshot().items()}
        if self._state is not None:
            arrays |= {f"state.{name}": array for name, array in self._state.snapshot().items()}
        if self._merge is not None:
            arrays |= {f"merge.{name}": array for name, array in self._merge.snapshot().items()}
        arrays["watermark_ms"] = np.array([self._watermark_ms], np.int64)
        return arrays

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to a snapshot of the same `fingerprint`."""
        self._watermark_ms = int(arrays["watermark_ms"][0])
        self._seen = SeenIds.restore(self._remember_ms, _under("seen.", arrays))
        if self.view is not None:
            self._state = EntityState.restore(self.view, _under("state.", arrays))
        if self._merge is not None:
            self._merge.restore(_under("merge.", arrays))


def fold(stages: Sequence[StagePartition], logs: Sequence[Sequence[Any]]) -> Folded:
    """Fold records of several partitions of one stage: what `StagePartition.fold` makes of each, one after the other.

    What few records cost is mostly the number of calls; so everything but the state is done for all at once.
    """
    rows, broken, duplicates, sizes = (_events if stages[0].index == 0 else _passed_on)(stages, logs)
    return Folded(rows, _fill(stages, rows, sizes), broken, duplicates, sizes)


_Found = tuple[Rows, list[Broken], int, list[int]]
"""Rows, broken records, the number of duplicates, and how many rows are of which partition."""


def _events(stages: Sequence[StagePartition], logs: Sequence[Sequence[Any]]) -> _Found:
    """Decode the events of stage 0; drop those seen before, mark late ones."""
    serving = stages[0].task.serving
    rows, sizes, broken = stages[0].decoder.decode_all(logs)
    hashes, fresh = _id_hashes(rows.ids), np.empty(len(rows), np.bool_)
    for stage, part in zip(stages, _parts(sizes), strict=True):
        fresh[part] = stage.is_new(hashes[part], rows.event_ms[part])
    duplicates = int(len(rows) - fresh.sum())
    if duplicates:
        sizes, rows = _left(fresh, sizes), rows.take(fresh)
    late = np.empty(len(rows), np.bool_)
    for stage, part in zip(stages, _parts(sizes), strict=True):
        late[part] = stage.mark_late(rows.event_ms[part], rows.received_ms[part])
    rows = rows.with_late(late)
    if late.any() and serving.late == "dead_letter":
        at = {(r.partition, r.offset): r for records in logs for r in records}
        for place in zip(rows.partition[late].tolist(), rows.offset[late].tolist(), strict=True):
            detail = "older than the newest event of its partition by more than serving.allowed_lateness"
            broken.append(Broken(at[place], "late", detail))
        broken.sort(key=lambda letter: (letter.record.partition, letter.record.offset))
        sizes, rows = _left(~late, sizes), rows.take(~late)
    return rows, broken, duplicates, sizes


def _passed_on(stages: Sequence[StagePartition], logs: Sequence[Sequence[Any]]) -> _Found:
    """Rows of the stage before, in the order of their arrival or of their times."""
    parts: list[Rows] = []
    sizes, broken = [0] * len(stages), list[Broken]()
    for i, (stage, records) in enumerate(zip(stages, logs, strict=True)):
        for record in records:
            try:
                rows = decode_rows(record.value, stage.task.rows_hash)
            except Damaged as error:
                broken.append(Broken(record, "damaged", str(error)))
                continue
            rows = stage.in_order(record, rows)  # after each record: how the log is cut must not matter
            sizes[i] += len(rows)
            parts.append(rows)
    return Rows.concat(parts) if parts else Rows.empty(stages[0].task), broken, 0, sizes


def _fill(stages: Sequence[StagePartition], rows: Rows, sizes: Sequence[int]) -> NDArray[np.float32]:
    """Read each row's features, then add the row; late rows are read but not added."""
    task, view, index, columns = stages[0].task, stages[0].view, stages[0].index, stages[0].columns
    if view is None or columns is None or not len(rows):
        return np.zeros((len(rows), len(view.columns) if view else 0), np.float32)
    values = {name: _value(task, rows, name) for name in view.values}
    hashed = {name: _pseudonyms(task, rows, name) for name in view.hashed}
    keys, add = rows.keys[:, index], ~rows.late
    features = np.empty((len(rows), len(view.columns)), np.float32)
    for stage, part in zip(stages, _parts(sizes), strict=True):
        if part.stop > part.start:
            features[part] = stage.update(
                keys[part],
                rows.event_ms[part],
                {name: column[part] for name, column in values.items()},
                add[part],
                {name: column[part] for name, column in hashed.items()},
            )
    columns.put(rows, features)
    return features


def _value(task: Task, rows: Rows, field: str) -> NDArray[np.float64]:
    """The column float64 [n] of a number field, or the codes of a category."""
    if field in task.number_fields:
        return rows.values[:, task.number_fields.index(field)]
    return codes(_pseudonyms(task, rows, field))


def _pseudonyms(task: Task, rows: Rows, field: str) -> NDArray[np.int64]:
    """The column int64 [n] of an entity's field or of a category of the model."""
    fields = [entity.field for entity in task.entities]
    if field in fields:
        return rows.keys[:, fields.index(field)]
    return rows.categories[:, task.categories.index(field)]


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Where the rows of each partition are."""
    edges = [0, *accumulate(sizes)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _left(keep: NDArray[np.bool_], sizes: Sequence[int]) -> list[int]:
    """How many rows of each partition a mask keeps."""
    return [int(np.count_nonzero(keep[part])) for part in _parts(sizes)]


def codes(pseudonyms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers from 1 to 2²⁴ that float32 holds exactly, for pseudonyms int64 [n]; NaN for a missing one (0).

    Of a thousand values, the chance that any two share a code is 3 %; of ten thousand about three do.
    """
    low = (pseudonyms.astype(np.uint64) & np.uint64((1 << 24) - 1)).astype(np.float64) + 1.0
    return np.where(pseudonyms == 0, np.nan, low)


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _id_hashes(ids: Sequence[str]) -> NDArray[np.int64]:
    """64-bit BLAKE2b of each id: int64 [n]. Two of a million ids in the window collide with chance 3 in 10⁸."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, np.int64)
