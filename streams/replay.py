"""A file of past events as a live stream: its rows in event-time order, labels when they were known.

Reading order: `_plan` finds the column of every field, `Replay` looks once through the times and labels to
learn the order and the counts, and `items` merges two passes over the file, one for events and one, later in
time, for labels.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError
from streams.feed import Item
from streams.replay_columns import (
    NO_TIME,
    filled,
    order_of,
    present,
    stamps,
    text,
    time_writer,
    to_ms,
    values,
)
from streams.replay_readers import Batch, Reader, open_reader, readable
from streams.task import Task


@dataclass(frozen=True)
class _Plan:
    """The column of every field: `fields` of the event in order, and those with a part of their own.

    `id` is None where ids are made from row numbers, `label` where no labels are sent, `known` where a label
    is known the task's delay after its event.
    """

    fields: dict[str, str]
    time: str
    key: str
    id: str | None
    label: str | None
    known: str | None


class Replay:
    """The rows of a Parquet, CSV or JSONL file as the events and labels of a task.

    Only fields that the task declares are sent, and never the label with its event. A row's label is sent the
    task's delay after the event, or at the label's own time where the file has that column; a row without one
    has no label. A row without a usable time, and a JSONL line that is no JSON object, goes as it is, right
    after the row before it, so that serve can refuse it with its reason.

    `notes` are sentences for the user; `total` counts items; `span_ms` is event time from the first to the
    last event.
    """

    def __init__(
        self, task: Task, path: Path, columns: Mapping[str, str] | None = None, *, labels: bool = True
    ) -> None:
        """Look through the file once.

        Args:
            task: what to make of the rows.
            path: the file; its suffix says its kind.
            columns: field → column, for fields whose column has another name.
            labels: False sends events only, and needs no label column.

        Raises:
            UserError: a file that cannot be read, has no rows, or lacks a column; a mapping of an unknown
            field.
        """
        self._task, self._path = task, path
        mapping = dict(columns or {})
        self.notes: list[str] = []
        self._reader = open_reader(path, _number_columns(task, mapping))
        self._plan = _plan(task, path, self._reader, mapping, labels, self.notes)
        with readable(path):
            self._event_ms, self._known_ms, labelled = self._scan()
        if not len(self._event_ms):
            raise UserError(f"{path.name} has no rows", "give a file with events")
        if left_out := self._reader.left_out:
            self.notes.append(f"{left_out} rows of {path.name} have too few or too many cells: left out")
        self._labelled = np.flatnonzero(labelled)
        self._event_order = order_of(self._event_ms)
        if self._event_order is not None:
            self.notes.append(f"{path.name} is not in time order; it is sorted in memory")
        self.events = len(self._event_ms)
        self.total = self.events + len(self._labelled)
        self.start_ms = int(self._event_ms.min())
        self.span_ms = int(self._event_ms.max()) - self.start_ms
        given = ",".join(f"{field}={column}" for field, column in sorted(mapping.items()))
        self.identity = f"replay {path.resolve()} bytes={path.stat().st_size} map={given} labels={labels}"

    def items(self) -> Iterator[Item]:
        """Events and labels in time order, at equal times the event first. May be called again."""
        with readable(self._path):
            yield from heapq.merge(self._events(), self._labels(), key=itemgetter(0))

    def _scan(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """In file order: event times, times when labels are known (ms, int64 [n]), who has one (bool [n])."""
        plan, label = self._plan, self._task.label
        names = _distinct(plan.time, plan.label, plan.known)
        nothing = np.zeros(0, np.int64)
        event, known, labelled = [nothing], [nothing], [nothing.astype(np.bool_)]
        for batch in self._reader.batches(names):
            times = to_ms(batch.columns[plan.time], self._task.event.time_format)
            late = times + label.delay_ms
            if plan.known:
                stated = to_ms(batch.columns[plan.known], self._task.event.time_format)
                late = np.where(stated != NO_TIME, stated, late)
            has = present(batch.columns[plan.label]) if plan.label else np.zeros(len(times), np.bool_)
            event.append(times)
            known.append(late)
            labelled.append(has & (times != NO_TIME))
        return filled(np.concatenate(event)), np.concatenate(known), np.concatenate(labelled)

    def _events(self) -> Iterator[Item]:
        task, plan = self._task, self._plan
        for batch in self._read(_distinct(plan.id, plan.time, *plan.fields.values()), self._event_order):
            columns = {field: values(batch.columns[column]) for field, column in plan.fields.items()}
            columns[task.event.time] = stamps(batch.columns[plan.time], task.event.time_format)
            columns[task.event.id] = self._ids(batch)
            keys = map(text, columns[task.event.key])
            rows = zip(*columns.values(), strict=True)
            times = self._event_ms[batch.rows].tolist()
            for place, (time_ms, key, row) in enumerate(zip(times, keys, rows, strict=True)):
                if place in batch.raw:
                    yield Item(time_ms, "event", "", batch.raw[place])
                    continue
                value = dict(zip(columns, row, strict=True))
                if None in row:
                    value = {field: cell for field, cell in value.items() if cell is not None}
                yield Item(time_ms, "event", key, value)

    def _labels(self) -> Iterator[Item]:
        task, plan = self._task, self._plan
        if plan.label is None or not len(self._labelled):
            return
        label, known_ms = task.label, self._known_ms[self._labelled]
        by_known = order_of(known_ms)
        # Without an order all rows are read, those without a label too.
        order = None if by_known is None else self._labelled[by_known]
        has = np.zeros(self.events, np.bool_)
        has[self._labelled] = True
        write = time_writer(task.event.time_format)
        for batch in self._read(_distinct(plan.id, plan.key, plan.label), order):
            ids, keys = self._ids(batch), map(text, values(batch.columns[plan.key]))
            labels = values(batch.columns[plan.label])
            known = self._known_ms[batch.rows].tolist()
            sent = has[batch.rows].tolist()
            for time_ms, key, event_id, value, wanted in zip(known, keys, ids, labels, sent, strict=True):
                if wanted:
                    record = {label.id: event_id, label.field: value}
                    if label.time:
                        record[label.time] = write(time_ms)
                    yield Item(time_ms, "label", key, record)

    def _read(self, names: Sequence[str], order: NDArray[np.int64] | None) -> Iterator[Batch]:
        return self._reader.batches(names) if order is None else self._reader.taken(names, order)

    def _ids(self, batch: Batch) -> list[Any]:
        if self._plan.id is None:
            return [f"{self._path.stem}-{row}" for row in batch.rows.tolist()]
        return [
            int(v) if isinstance(v, float) and v.is_integer() else v
            for v in values(batch.columns[self._plan.id])
        ]


def _plan(
    task: Task, path: Path, reader: Reader, mapping: Mapping[str, str], labels: bool, notes: list[str]
) -> _Plan:
    event, label = task.event, task.label
    declared = _distinct(*task.allowed, label.field, label.time)
    if unknown := [field for field in mapping if field not in declared]:
        raise UserError(
            f"task {task.name} declares no field {', '.join(unknown)}",
            f"its fields are {', '.join(declared)}",
        )
    column = {field: mapping.get(field, field) for field in declared}
    there = set(reader.columns)
    needed = _distinct(*task.allowed, *mapping, label.field) if labels else list(task.allowed)
    optional = {field.name for field in event.fields if not field.required} | {event.id}
    optional -= {event.key, *mapping}
    if missing := [field for field in needed if column[field] not in there and field not in optional]:
        raise UserError(
            _lacks(task, path, reader.columns, [column[field] for field in missing]),
            "say which column holds it: " + " ".join(f"--map {field}=COLUMN" for field in missing),
        )
    fields = {field: column[field] for field in task.allowed if column[field] in there and field != event.id}
    # A label in its own event would let the model cheat.
    if labels and (leaks := [field for field, name in fields.items() if name == column[label.field]]):
        raise UserError(
            f"column {column[label.field]} is the label and may not be the field {leaks[0]} as well",
            "map that field to another column",
        )
    has_id = column[event.id] in there
    if not has_id:
        notes.append(
            f"{path.name} has no column {column[event.id]}: ids are {path.stem}-0, {path.stem}-1, … by row"
        )
    for field in task.allowed:
        if field != event.id and field not in fields:
            notes.append(f"{path.name} has no column {column[field]}: events go without it")
    known = column[label.time] if labels and label.time and column[label.time] in there else None
    return _Plan(
        fields=fields,
        time=column[event.time],
        key=column[event.key],
        id=column[event.id] if has_id else None,
        label=column[label.field] if labels else None,
        known=known,
    )


def _lacks(task: Task, path: Path, columns: Sequence[str], missing: Sequence[str]) -> str:
    word = "column" if len(missing) == 1 else "columns"
    there = ", ".join(columns) if columns else "none that can be read"
    lacks = f"{path.name} has no {word} {', '.join(missing)}, which task {task.name} needs"
    return f"{lacks}; its columns are {there}"


def _number_columns(task: Task, mapping: Mapping[str, str]) -> set[str]:
    """Columns of a CSV file that are numbers."""
    fields = [*task.number_fields, *(() if task.classes else (task.label.field,))]
    if task.event.time_format.startswith("epoch_"):
        fields += [task.event.time, task.label.time or ""]
    return {mapping.get(field, field) for field in fields}


def _distinct(*names: str | None) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))
