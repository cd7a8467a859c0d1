"""Columns of a replayed file: Arrow arrays or lists become Python values, times and an order."""

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.events import time_parser

NO_TIME = int(np.iinfo(np.int64).min)
_FARTHEST_MS = 2**53


def _is_moment(column: Any) -> bool:
    return isinstance(column, pa.Array | pa.ChunkedArray) and pa.types.is_temporal(column.type)


def values(column: Any) -> list[Any]:
    """A column as Python values that JSON has."""
    if isinstance(column, list):
        return column
    found: list[Any] = (column.cast(pa.string()) if _is_moment(column) else column).to_pylist()
    return found


def present(column: Any) -> NDArray[np.bool_]:
    """Which rows bool [n] of a column have a value."""
    return np.array([value is not None for value in values(column)], np.bool_)


def to_ms(column: Any, time_format: str) -> NDArray[np.int64]:
    """Times of a column in ms since 1970 UTC, int64 [n]; `NO_TIME` for a value that is none."""
    if _is_moment(column):
        zone = column.type.tz if pa.types.is_timestamp(column.type) else None
        ms = column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
        found: NDArray[np.int64] = ms.fill_null(NO_TIME).to_numpy(zero_copy_only=False)
        return found
    parse = time_parser(time_format)

    def one(value: Any) -> int:
        try:
            ms = parse(value)
        except (ValueError, TypeError, OverflowError):
            return NO_TIME
        return ms if abs(ms) < _FARTHEST_MS else NO_TIME

    return np.array([one(value) for value in values(column)], np.int64)


def stamps(column: Any, time_format: str) -> list[Any]:
    """The time field of each event: as in the file, but Arrow's own times written in the task's format."""
    if not _is_moment(column):
        return values(column)
    write = time_writer(time_format)
    return [None if ms == NO_TIME else write(ms) for ms in to_ms(column, time_format).tolist()]


def time_writer(time_format: str) -> Callable[[int], Any]:
    """A function from ms since 1970 UTC to what `streams.events.time_parser(time_format)` reads back."""
    if time_format == "epoch_ms":
        return lambda ms: ms
    if time_format == "epoch_s":
        return lambda ms: ms / 1000
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    if time_format == "iso8601":
        return lambda ms: (epoch + datetime.timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")
    return lambda ms: (epoch + datetime.timedelta(milliseconds=ms)).strftime(time_format)


def filled(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows without a time get that of the row before, or of the first row that has one (0 where none has)."""
    good = np.flatnonzero(times != NO_TIME)
    if not len(good):
        return np.zeros(len(times), np.int64)
    last = np.maximum.accumulate(np.where(times != NO_TIME, np.arange(len(times)), good[0]))
    return times[last]


def order_of(times: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The rows in time order int64 [n], equal times as in the file; None when they are in order already."""
    return None if np.all(times[1:] >= times[:-1]) else np.argsort(times, kind="stable")


def text(value: Any) -> str:
    """A key as the text that keys the record; a whole number read as 5.0 is 5."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
