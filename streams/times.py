"""Times as producers write them, as milliseconds since 1970 UTC; and where in the day and the week a time lies."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATEST_MS = 253_402_300_799_999
"""The end of the year 9999, the last that a time can name."""

JSON_TYPES: dict[str, Any] = {"epoch_ms": int | float, "epoch_s": int | float}
"""The JSON type of a time format; every other one is text."""

_DIRECTIVE = re.compile(r"%(.)", re.DOTALL)


def directives(pattern: str) -> set[str]:
    """The letters after each % of a `strptime` pattern; "%%" is the character and no directive."""
    return set(_DIRECTIVE.findall(pattern)) - {"%"}


def time_parser(time_format: str) -> Callable[[Any], int]:
    """A function from a field's value to milliseconds since 1970 UTC.

    `time_format` is "iso8601", "epoch_ms", "epoch_s" or a `strptime` pattern. A time without an offset is UTC. The
    function raises ValueError, OverflowError or TypeError for what is no time.
    """
    if time_format == "epoch_ms":
        return round
    if time_format == "epoch_s":
        return lambda value: round(value * 1000)
    if time_format == "iso8601":
        return lambda value: _epoch_ms(datetime.fromisoformat(value))
    if "z" in directives(time_format):
        return lambda value: _epoch_ms(datetime.strptime(value, time_format).astimezone(UTC))
    return lambda value: _epoch_ms(datetime.strptime(value, time_format).replace(tzinfo=UTC))


def _epoch_ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def calendar(event_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hour of the day and day of the week (UTC) as sine and cosine: float64 [n, 4]; 1970-01-01 was a Thursday."""
    day = event_ms / 86_400_000 * 2 * np.pi
    week = (event_ms / 86_400_000 + 3) / 7 * 2 * np.pi
    return np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)
