"""From a producer's bytes to typed, validated, pseudonymised columns. Raw values go no further than this file.

A record that cannot be used becomes a `Broken` with a reason; nothing here raises for what a producer sends. Only the
fields that the task declares are read (the allow-list); every other field of the JSON object is skipped unread.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.privacy import Pseudonymiser
from streams.task import Field, Task
from streams.wire import Labels, Rows

_OLDEST_MS = -(2**53)
_SNIPPET = 200


@dataclass(frozen=True)
class Broken:
    """A record that is no event (or no label): the Kafka record and why, as a short code and a sentence."""

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
        names = [event.id, event.time, *(field.name for field in event.fields)]
        self._names = list(dict.fromkeys(names))
        fields = {field.name: field for field in event.fields}
        self._decoder = _decoder([(n, _json_type(n, fields.get(n), task)) for n in self._names])
        self._at = {name: i for i, name in enumerate(self._names)}
        self._checks = [(self._at[f.name], f, _check(f)) for f in event.fields]
        self._time = time_parser(event.time_format)
        self._calendar = slice(len(_model_numbers(task)), len(_model_numbers(task)) + 4 * task.calendar)

    def decode(self, records: Sequence[Any]) -> tuple[Rows, list[Broken]]:
        """Decode records of one partition, in order.

        Args:
            records: Kafka records with value, timestamp, partition and offset. An event is from the future when it is
                further ahead of its record's own timestamp than the task allows; the wall clock would make a replay
                of the log judge differently.

        Returns:
            The good rows in offset order, and the broken records with their reasons.
        """
        good, values, times, broken = [], [], [], []
        ahead = self._task.serving.max_future_ms
        for record in records:
            try:
                event = self._parse(record)
                times.append(self._event_ms(event, record.timestamp + ahead))
                values.append(event)
                good.append(record)
            except _Refused as error:
                broken.append(Broken(record, error.reason, error.detail))
        return self._rows(good, values, times), broken

    def _parse(self, record: Any) -> tuple[Any, ...]:
        event = msgspec.structs.astuple(_json(self._decoder, record, self._task.serving.max_event_bytes))
        if event[0] == "":
            raise _Refused("invalid", f"{self._names[0]} is empty")
        for at, field, check in self._checks:
            value = event[at]
            if value is None:
                if field.required:
                    raise _Refused("invalid", f"{field.name} is null and the field is required")
            else:
                check(field, value)
        return event

    def _event_ms(self, event: tuple[Any, ...], latest: int) -> int:
        raw = event[self._at[self._task.event.time]]
        try:
            time_ms = self._time(raw)
        except (ValueError, OverflowError, TypeError):
            raise _Refused(
                "invalid_time",
                f"{self._task.event.time} {_shown(raw)} is no {self._task.event.time_format} time",
            ) from None
        if time_ms < _OLDEST_MS or time_ms < 0:
            raise _Refused("invalid_time", f"{self._task.event.time} {_shown(raw)} is before 1970")
        if time_ms > latest:
            raise _Refused(
                "future", f"{self._task.event.time} {_shown(raw)} is further ahead than serving.max_future"
            )
        return time_ms

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
        for i, name in enumerate(_model_numbers(task)):
            numbers[:, i] = values[:, task.number_fields.index(name)]
        if task.calendar:
            numbers[:, self._calendar] = calendar(event_ms)
        return Rows(
            self._ids(columns[0]),
            event_ms,
            np.array([r.timestamp for r in records], np.int64),
            np.array([r.partition for r in records], np.int32),
            np.array([r.offset for r in records], np.int64),
            np.zeros(n, np.bool_),
            self._pseudonyms([entity.field for entity in task.entities], columns, n),
            self._pseudonyms(task.categories, columns, n),
            values,
            numbers,
        )

    def _ids(self, column: Sequence[Any]) -> list[str]:
        return event_ids(self._task, self._pseudonymiser, column)

    def _pseudonyms(self, names: Sequence[str], columns: list[Any], n: int) -> NDArray[np.int64]:
        out = np.zeros((n, len(names)), np.int64)
        for i, name in enumerate(names):
            out[:, i] = self._pseudonymiser.column(name, columns[self._at[name]])
        return out


class LabelDecoder:
    """JSON records of the labels topic → `Labels`."""

    def __init__(self, task: Task, pseudonymiser: Pseudonymiser) -> None:
        self._task, self._pseudonymiser = task, pseudonymiser
        label = task.label
        columns: list[tuple[str, Any]] = [(label.id, str | int), (label.field, bool | float)]
        if label.time:
            columns.append((label.time, _TIME_TYPES.get(task.event.time_format, str)))
        self._decoder = _decoder(columns)
        self._time = time_parser(task.event.time_format)

    def decode(self, records: Sequence[Any]) -> tuple[Labels, list[Broken]]:
        """Decode records in order; see `EventDecoder.decode`."""
        ids: list[Any] = []
        values, known, broken = [], [], []
        for record in records:
            try:
                event_id, value, known_ms = self._parse(record)
            except _Refused as error:
                broken.append(Broken(record, error.reason, error.detail))
            else:
                ids.append(event_id)
                values.append(value)
                known.append(known_ms)
        texts = event_ids(self._task, self._pseudonymiser, ids)
        return Labels(texts, np.array(values, np.float32), np.array(known, np.int64)), broken

    def _parse(self, record: Any) -> tuple[Any, float, int]:
        parsed = msgspec.structs.astuple(_json(self._decoder, record, self._task.serving.max_event_bytes))
        value = float(parsed[1])
        if value not in (0.0, 1.0):
            raise _Refused(
                "invalid", f"label {self._task.label.field} is {value:g}; a binary task takes 0 or 1"
            )
        if len(parsed) < 3:
            return parsed[0], value, -1
        try:
            return parsed[0], value, self._time(parsed[2])
        except (ValueError, OverflowError, TypeError):
            raise _Refused(
                "invalid_time", f"{self._task.label.time} {_shown(parsed[2])} is no time"
            ) from None


def event_ids(task: Task, pseudonymiser: Pseudonymiser, column: Sequence[Any]) -> list[str]:
    """Event ids as text, or as pseudonyms where the task's privacy rules ask for it."""
    if task.event.id in task.privacy.pseudonymise:
        return [pseudonymiser.text(task.event.id, value) for value in column]
    return [str(value) for value in column]


def calendar(event_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hour of the day and day of the week (UTC) as sine and cosine: float64 [n, 4]; 1970-01-01 was a Thursday."""
    day = event_ms / 86_400_000 * 2 * np.pi
    week = (event_ms / 86_400_000 + 3) / 7 * 2 * np.pi
    return np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)


def time_parser(time_format: str) -> Callable[[Any], int]:
    """A function from a field's value to milliseconds since 1970 UTC; it raises ValueError for what is no time.

    `time_format` is "iso8601" (no offset means UTC), "epoch_ms", "epoch_s" or a `strptime` pattern.
    """
    if time_format == "epoch_ms":
        return lambda value: round(value)
    if time_format == "epoch_s":
        return lambda value: round(value * 1000)
    if time_format == "iso8601":
        return lambda value: _epoch_ms(datetime.fromisoformat(value))
    return lambda value: _epoch_ms(datetime.strptime(value, time_format))  # noqa: DTZ007 no zone means UTC


def _epoch_ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


_TIME_TYPES: dict[str, Any] = {"epoch_ms": int | float, "epoch_s": int | float}


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


def _json(decoder: msgspec.json.Decoder[Any], record: Any, limit: int) -> Any:
    if record.value is None:
        raise _Refused("null", "the record has no value")
    if len(record.value) > limit:
        raise _Refused("too_large", f"{len(record.value)} bytes, more than serving.max_event_bytes ({limit})")
    try:
        return decoder.decode(record.value)
    except msgspec.ValidationError as error:
        raise _Refused("invalid", str(error)) from None
    except msgspec.DecodeError as error:
        raise _Refused("malformed", str(error)) from None
    except UnicodeDecodeError as error:
        raise _Refused("malformed", f"invalid UTF-8: {error.reason}") from None
    except RecursionError:
        raise _Refused("malformed", "nested too deeply") from None


def _json_type(name: str, field: Field | None, task: Task) -> Any:
    if name == task.event.time:
        return _TIME_TYPES.get(task.event.time_format, str)
    if name == task.event.id:
        return str | int
    if field is None:
        raise AssertionError(f"{name} is no declared field")
    kind = float if field.type == "number" else str | int | float | bool
    return kind if field.required else kind | None


def _check(field: Field) -> Callable[[Field, Any], None]:
    return _check_number if field.type == "number" else _check_category


def _check_number(field: Field, value: float) -> None:
    if not math.isfinite(value):
        raise _Refused("invalid", f"{field.name} is {value}, not a finite number")
    if field.min is not None and value < field.min:
        raise _Refused("invalid", f"{field.name} is {value:g}, below min {field.min:g}")
    if field.max is not None and value > field.max:
        raise _Refused("invalid", f"{field.name} is {value:g}, above max {field.max:g}")


def _check_category(field: Field, value: Any) -> None:
    if isinstance(value, str) and len(value) > field.max_length:
        raise _Refused(
            "invalid", f"{field.name} has {len(value)} characters, more than max_length {field.max_length}"
        )


def _model_numbers(task: Task) -> list[str]:
    return [field.name for field in task.event.fields if field.type == "number" and field.model]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SNIPPET else text[:_SNIPPET] + "…"
