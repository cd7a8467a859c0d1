"""From a producer's bytes to typed, validated, pseudonymised columns. Raw values go no further than this file.

A record that cannot be used becomes a `Broken` with a reason; nothing here raises for what a producer sends. Only the
fields that the task declares are read (the allow-list); every other field of the JSON object is skipped unread.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.target import LARGEST_VALUE
from streams.contents import columns_of, reader_of
from streams.privacy import Pseudonymiser
from streams.rows import Labels, Rows
from streams.task import Field, Task
from streams.times import JSON_TYPES, LATEST_MS, calendar, time_parser

__all__ = ["LONGEST_ID", "Broken", "EventDecoder", "LabelDecoder", "event_ids", "label_value", "time_parser"]

LONGEST_ID = 512
"""Characters of an event's id: it is the key of a prediction and stands in every record of the event."""

_SNIPPET = 200
_LARGEST_F32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Broken:
    """A record that is no event (or no label): the Kafka record and why, as a short code and a sentence.

    Codes: "null", "too_large", "malformed" (no JSON), "invalid" (a field), "invalid_time", "future", "late", "damaged";
    of labels that were read long ago: "orphan", "contradiction".
    """

    record: Any
    reason: str
    detail: str


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class EventDecoder:
    """JSON records of the events topic → `Rows` with the task's raw columns filled and features still NaN."""

    def __init__(self, task: Task, pseudonymiser: Pseudonymiser) -> None:
        self._task, self._pseudonymiser = task, pseudonymiser
        event = task.event
        self._names = list(task.allowed)
        fields = {field.name: field for field in event.fields}
        self._decoder = _decoder([(n, _json_type(n, fields.get(n), task)) for n in self._names])
        self._at = {name: i for i, name in enumerate(self._names)}
        self._checks = [(self._at[f.name], f, _check(f)) for f in event.fields]
        self._readers = [
            (self._at[f.name], f.name, reader_of(f)) for f in event.fields if f.block is not None
        ]
        self._clock = _Clock(event.time, task)
        numbers = [f.name for f in event.fields if f.type == "number" and f.model]
        self._model_numbers = [task.number_fields.index(name) for name in numbers]
        self._calendar = slice(len(numbers), len(numbers) + 4 * task.calendar)

    def decode(self, records: Sequence[Any]) -> tuple[Rows, list[Broken]]:
        """Decode records of one partition, in order.

        Args:
            records: Kafka records with value, timestamp, partition and offset. An event is from the future when it is
                further ahead of its record's own timestamp than the task allows; the wall clock would make a replay
                of the log judge differently.

        Returns:
            The good rows in offset order, and the broken records with their reasons.
        """
        rows, _, broken = self.decode_all([records])
        return rows, broken

    def decode_all(self, logs: Sequence[Sequence[Any]]) -> tuple[Rows, list[int], list[Broken]]:
        """`decode` of each, one after the other, and between the two how many good rows each has."""
        good: list[Any] = []
        values, times, sizes, broken = [], [], [], []
        time_at = self._at[self._task.event.time]
        for records in logs:
            before = len(good)
            for record in records:
                try:
                    event = self._parse(record)
                    times.append(self._clock.read(event[time_at], record))
                except _Refused as error:
                    broken.append(Broken(record, error.reason, error.detail))
                else:
                    values.append(event)
                    good.append(record)
            sizes.append(len(good) - before)
        return self._rows(good, values, times), sizes, broken

    def _parse(self, record: Any) -> tuple[Any, ...]:
        event: tuple[Any, ...] = _json(self._decoder, record, self._task.serving.max_event_bytes)
        _check_id(self._names[0], event[0])
        for at, field, check in self._checks:
            if event[at] is not None:  # only an optional field can be
                check(field, event[at])
        return self._contents(event) if self._readers else event

    def _contents(self, event: tuple[Any, ...]) -> tuple[Any, ...]:
        """The event with what is kept of its texts, lists and images in their place."""
        values = list(event)
        for at, name, read in self._readers:
            if values[at] is not None:
                try:
                    values[at] = read(values[at])
                except ValueError as error:
                    raise _Refused("invalid", f"{name} {error}") from None
        return tuple(values)

    def _rows(self, records: list[Any], events: list[tuple[Any, ...]], times: list[int]) -> Rows:
        task, n = self._task, len(records)
        if not n:
            return Rows.empty(task)
        columns = list(zip(*events, strict=True))
        event_ms = np.array(times, np.int64)
        values = np.full((n, len(task.number_fields)), np.nan)
        for i, name in enumerate(task.number_fields):
            values[:, i] = np.array(columns[self._at[name]], np.float64)  # None becomes NaN
        numbers = np.full((n, len(task.numbers)), np.nan, np.float32)
        raw = np.clip(values[:, self._model_numbers], -_LARGEST_F32, _LARGEST_F32)
        numbers[:, : len(self._model_numbers)] = raw
        if task.calendar:
            numbers[:, self._calendar] = calendar(event_ms)
        keys, categories = self._pseudonyms(columns, n)
        return Rows(
            event_ids(task, self._pseudonymiser, columns[0]),
            event_ms,
            np.array([r.timestamp for r in records], np.int64),
            np.array([r.partition for r in records], np.int32),
            np.array([r.offset for r in records], np.int64),
            np.zeros(n, np.bool_),
            keys,
            categories,
            values,
            numbers,
            task.rows_hash,
        )

    def _pseudonyms(self, columns: list[Any], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys [n, E] and ids [n, I]; a field that is both is looked up once. Last categories are 0 so far."""
        entities = [entity.field for entity in self._task.entities]
        known = {
            name: self._pseudonymiser.column(name, columns[self._at[name]])
            for name in dict.fromkeys((*entities, *self._task.categories))
        }
        empty = np.zeros((n, 0), np.int64)
        return (
            np.column_stack([empty, *(known[name] for name in entities)]),
            np.column_stack(
                [empty, *(known[name] for name in self._task.categories), *self._blocks(columns, n)]
            ),
        )

    def _blocks(self, columns: list[Any], n: int) -> list[NDArray[np.int64]]:
        """The int64 columns [n, width] of each block; those that are features come later, and are 0 so far."""
        return [
            np.zeros((n, block.width), np.int64)
            if block.entity
            else columns_of(block, columns[self._at[block.name]], self._pseudonymiser)
            for block in self._task.blocks
        ]


class LabelDecoder:
    """JSON records of the labels topic → `Labels`."""

    def __init__(self, task: Task, pseudonymiser: Pseudonymiser) -> None:
        self._task, self._pseudonymiser = task, pseudonymiser
        label = task.label
        self._numbers = {name: float(number) for number, name in enumerate(task.classes)}
        truth: Any = float if task.schema.target.is_value else bool | float
        truth = str | int | bool if task.classes else truth
        columns: list[tuple[str, Any]] = [(label.id, str | int), (label.field, truth)]
        if label.time:
            columns.append((label.time, JSON_TYPES.get(task.event.time_format, str)))
        self._clock = _Clock(label.time, task) if label.time else None
        self._decoder = _decoder(columns)

    def decode(self, records: Sequence[Any]) -> tuple[Labels, list[Broken]]:
        """Decode records in order; see `EventDecoder.decode`. `known_ms` is -1 for a task without `label.time`."""
        ids: list[Any] = []
        values, known, places, broken = [], [], [], []
        for record in records:
            try:
                event_id, value, known_ms = self._parse(record)
            except _Refused as error:
                broken.append(Broken(record, error.reason, error.detail))
            else:
                ids.append(event_id)
                values.append(value)
                known.append(known_ms)
                places.append((record.partition, record.offset))
        texts = event_ids(self._task, self._pseudonymiser, ids)
        place = np.array(places, np.int64).reshape(-1, 2)
        labels = Labels(
            texts,
            np.array(values, np.float32),
            np.array(known, np.int64),
            place[:, 0].astype(np.int32),
            np.ascontiguousarray(place[:, 1]),
        )
        return labels, broken

    def _parse(self, record: Any) -> tuple[Any, float, int]:
        parsed = _json(self._decoder, record, self._task.serving.max_event_bytes)
        _check_id(self._task.label.id, parsed[0])
        value = self._number(parsed[1]) if self._task.classes else float(parsed[1])
        self._check(value)
        return parsed[0], value, -1 if self._clock is None else self._clock.read(parsed[2], record)

    def _number(self, name: str | int | bool) -> float:
        """The number of a class; a name that is a number or a truth value may be written as one."""
        text = json.dumps(name) if isinstance(name, bool) else str(name)
        if text not in self._numbers:
            shown = f"{text[:_SNIPPET]!r}{'…' * (len(text) > _SNIPPET)}"
            raise _Refused(
                "invalid", f"label {self._task.label.field} is {shown}, which is none of task.classes"
            )
        return self._numbers[text]

    def _check(self, value: float) -> None:
        label, target = self._task.label, self._task.schema.target
        if not target.usable(np.array(value)):
            takes = f"a number of at most {LARGEST_VALUE:g} in size" if target.is_value else "0 or 1"
            raise _Refused(
                "invalid", f"label {label.field} is {value:g}; a {self._task.kind} task takes {takes}"
            )
        _check_number(Field(f"label {label.field}", "number", min=label.min, max=label.max), value)


def label_value(task: Task, label: float) -> str | int | float:
    """A label as it stood in its record: the name of its class, 0 or 1, or the value (as float32 has it)."""
    if task.classes:
        return task.classes[int(label)]
    return label if task.schema.target.is_value else int(label)


class _Clock:
    """Reads the times of one field, and refuses those that would spoil the windows of everyone else."""

    def __init__(self, name: str, task: Task) -> None:
        self._name, self._format = name, task.event.time_format
        self._parse = time_parser(task.event.time_format)
        self._ahead_ms = task.serving.max_future_ms

    def read(self, raw: Any, record: Any) -> int:
        """Milliseconds UTC, from 1970 to a little after the record's own timestamp."""
        try:
            time_ms = self._parse(raw)
        except (ValueError, OverflowError, TypeError):
            raise self._refused("invalid_time", raw, f"is no {self._format} time") from None
        if time_ms < 0:
            raise self._refused("invalid_time", raw, "is before 1970")
        if time_ms > LATEST_MS:
            raise self._refused("invalid_time", raw, "is after the year 9999")
        if record.timestamp < 0:
            raise _Refused(
                "invalid_time", "the Kafka record has no timestamp to compare the event's time with"
            )
        if time_ms > record.timestamp + self._ahead_ms:
            raise self._refused("future", raw, "is further ahead than serving.max_future")
        return time_ms

    def _refused(self, reason: str, raw: Any, why: str) -> _Refused:
        text = repr(raw)
        return _Refused(reason, f"{self._name} {text[:_SNIPPET]}{'…' * (len(text) > _SNIPPET)} {why}")


def event_ids(task: Task, pseudonymiser: Pseudonymiser, column: Sequence[Any]) -> list[str]:
    """Event ids as text, or as pseudonyms where the task's privacy rules ask for it."""
    if task.event.id in task.privacy.pseudonymise:
        return pseudonymiser.texts(task.event.id, column)
    return [str(value) for value in column]


def _decoder(columns: Sequence[tuple[str, Any]]) -> msgspec.json.Decoder[Any]:
    """A decoder into a struct with one field a column; JSON names need not be Python names."""
    fields: list[Any] = []
    for i, (_, kind) in enumerate(columns):
        optional = type(None) in getattr(kind, "__args__", ())
        fields.append((f"f{i}", kind, None) if optional else (f"f{i}", kind))
    names = {f"f{i}": name for i, (name, _) in enumerate(columns)}
    return msgspec.json.Decoder(
        msgspec.defstruct("Record", fields, rename=names, kw_only=True, frozen=True, gc=False)
    )


def _json(decoder: msgspec.json.Decoder[Any], record: Any, limit: int) -> tuple[Any, ...]:
    """The declared fields of a record, in their order."""
    if record.value is None:
        raise _Refused("null", "the record has no value")
    if len(record.value) > limit:
        raise _Refused("too_large", f"{len(record.value)} bytes, more than serving.max_event_bytes ({limit})")
    try:
        return msgspec.structs.astuple(decoder.decode(record.value))
    except msgspec.ValidationError as error:
        raise _Refused("invalid", str(error)) from None
    except UnicodeDecodeError as error:
        raise _Refused("malformed", f"invalid UTF-8: {error.reason}") from None
    except ValueError as error:
        raise _Refused("malformed", str(error)) from None
    except RecursionError:
        raise _Refused("malformed", "nested too deeply") from None


_CATEGORY = str | int | float | bool
_JSON: dict[str, Any] = {
    "number": float, "category": _CATEGORY, "text": str, "list": list[_CATEGORY], "image": str,
}  # fmt: skip


def _json_type(name: str, field: Field | None, task: Task) -> Any:
    if field is not None:
        kind = _JSON[field.type]
        return kind if field.required else kind | None
    return str | int if name == task.event.id else JSON_TYPES.get(task.event.time_format, str)


def _check_id(name: str, value: Any) -> None:
    if value == "":
        raise _Refused("invalid", f"{name} is empty")
    size = _characters(value)
    if size > LONGEST_ID:
        raise _Refused("invalid", f"{name} has {size} characters, more than {LONGEST_ID}")


def _check(field: Field) -> Callable[[Field, Any], None]:
    checks: dict[str, Callable[[Field, Any], None]] = {
        "number": _check_number, "category": _check_category, "text": _check_category, "list": _check_list,
        "image": _check_nothing,
    }  # fmt: skip
    return checks[field.type]


def _check_number(field: Field, value: float) -> None:
    if not math.isfinite(value):
        raise _Refused("invalid", f"{field.name} is {value}, not a finite number")
    if field.min is not None and value < field.min:
        raise _Refused("invalid", f"{field.name} is {value:g}, below min {field.min:g}")
    if field.max is not None and value > field.max:
        raise _Refused("invalid", f"{field.name} is {value:g}, above max {field.max:g}")


def _check_category(field: Field, value: Any) -> None:
    size = _characters(value)
    if size > field.max_length:
        raise _Refused(
            "invalid", f"{field.name} has {size} characters, more than max_length {field.max_length}"
        )


def _check_list(field: Field, values: list[Any]) -> None:
    for value in values:
        _check_category(field, value)


def _check_nothing(field: Field, value: Any) -> None:
    """An image is checked as it is read."""


def _characters(value: Any) -> int:
    """How long the text of a value is; 1 for a fraction or a truth value, which are never long."""
    if isinstance(value, str):
        return len(value)
    return len(str(value)) if type(value) is int else 1
