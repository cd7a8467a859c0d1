"""What is asked of the past: the times and keys in the columns of a DataFrame, exact to the tick and to the bit."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.history import BEGINNING_MS, Int64s
from infra.errors import UserError

_US = timedelta(microseconds=1)


@dataclass(frozen=True)
class Times:
    """Moments in ticks since 1970 in UTC: int64 [n]."""

    ticks: Int64s
    ticks_per_ms: int

    @property
    def until_ms(self) -> Int64s:
        """The last whole millisecond that is not after each moment."""
        return self.ticks // self.ticks_per_ms

    def since_ms(self, ttl: timedelta | None) -> Int64s:
        """The first whole millisecond that is not more than the ttl before each moment; no ttl is for ever."""
        if not ttl:
            return np.full(len(self.ticks), BEGINNING_MS)
        ttl_ticks = ttl // _US * self.ticks_per_ms // 1000
        return -((ttl_ticks - self.ticks) // self.ticks_per_ms)


def frame_of(entity_df: Any) -> pa.Table:
    """The columns of a pandas DataFrame; its index is not kept. Raises UserError for what is none."""
    if entity_df is None or isinstance(entity_df, str) or not hasattr(entity_df, "dtypes"):
        kinds = {str: "an SQL query", type(None): "a span of time"}
        kind = kinds.get(type(entity_df), f"a {type(entity_df).__name__}")
        raise UserError(
            f"past features are looked up for the rows of a pandas DataFrame, not of {kind}",
            "pass a DataFrame with the key columns of the entities and a column event_timestamp",
        )
    try:
        return pa.Table.from_pandas(entity_df, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"the DataFrame cannot be read: {error}", "give each column one name and one type"
        ) from error


def times_of(frame: pa.Table, name: str) -> Times:
    """The moments in a column, those without a zone as UTC. Raises UserError where one is missing or no time."""
    column = frame.column(name)
    try:
        if not pa.types.is_timestamp(column.type) or column.type.unit not in ("us", "ns"):
            column = column.cast(pa.timestamp("us", "UTC"))
        ticks = column.cast(pa.int64())  # of a time without a zone, too
    except pa.ArrowException as error:
        raise UserError(f"{name} holds no times: {error}", "give it datetimes") from error
    if ticks.null_count:
        raise UserError(f"{name} lacks the time of {ticks.null_count} rows", "drop these rows")
    return Times(ticks.to_numpy(), 1_000_000 if column.type.unit == "ns" else 1000)


def keys_of(frame: pa.Table, name: str) -> tuple[Int64s, NDArray[np.bool_]]:
    """The pseudonyms int64 [n] in a column, and where there is one. Raises UserError for other values."""
    if name not in frame.column_names:
        raise UserError(f"the DataFrame has no column {name!r}", "add the keys of that entity")
    column = frame.column(name)
    if pa.types.is_floating(column.type):
        raise UserError(
            f"{name} holds floats, which cannot hold 64-bit keys", "make the column int64, or Int64 with gaps"
        )
    try:
        keys = column.cast(pa.int64())
    except pa.ArrowException as error:
        raise UserError(
            f"{name} holds values that are no 64-bit integers: {error}", "give it the pseudonyms"
        ) from error
    return keys.fill_null(0).to_numpy(), keys.is_valid().to_numpy()
