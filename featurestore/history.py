"""Past feature rows: what the archive stored of every event, found again by entity and time. No Feast in it.

A stored row holds the features of an entity as one event was served with them: made of what was processed before
that event, without the event itself. It counts from the event's time on, until the entity's next event. Of events of
an entity in the same millisecond the one with the greatest partition and offset counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.clickhouse import Archive, literal

KEYS_AT_ONCE = 5_000
"""Keys in one query: their digits take 110 kB, and ClickHouse reads a query of up to 256 KiB."""

BEGINNING_MS = -(2**62)
"""Before every event."""

# The archive may hold a row twice until ClickHouse merges the two; the one that was stored last counts.
_ORDER = ("event_ms", "source_partition", "source_offset", "archived_ms")

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class PastView:
    """The rows of one view: those of the entity of a task that one definition (`View.fingerprint`) made.

    `columns` are all of the view's, in their order.
    """

    task: str
    entity: str
    view_hash: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class PastRows:
    """Rows of n events: `keys` and `event_ms` int64 [n], `values` float32 [n, F], NaN where a feature is missing."""

    keys: Int64s
    event_ms: Int64s
    values: NDArray[np.float32]


def rows_at(
    archive: Archive,
    view: PastView,
    columns: Sequence[str],
    keys: Int64s,
    until_ms: Int64s,
    since_ms: Int64s,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """For each key [n]: its newest row, of an event not after `until_ms` [n], unless that is before `since_ms` [n].

    Returns whether there is one, bool [n], and the chosen columns of it, float32 [n, F], NaN where there is none.
    Raises UserError when the archive cannot answer.
    """
    found = np.zeros(len(keys), np.bool_)
    values = np.full((len(keys), len(columns)), np.nan, np.float32)
    known, group = np.unique(keys, return_inverse=True)
    by_key = np.argsort(group, kind="stable")
    for start in range(0, len(known), KEYS_AT_ONCE):
        first, end = np.searchsorted(group[by_key], [start, start + KEYS_AT_ONCE])
        asked = by_key[first:end]
        until, since = until_ms[asked], since_ms[asked]
        stored = _candidates(archive, view, columns, known[start : start + KEYS_AT_ONCE], until, since)
        at = newest_until(stored.keys, stored.event_ms, keys[asked], until)
        fits = at >= 0
        fits[fits] = stored.event_ms[at[fits]] >= since[fits]
        found[asked] = fits
        values[asked[fits]] = stored.values[at[fits]]
    return found, values


def newest_until(stored_keys: Int64s, stored_ms: Int64s, keys: Int64s, until_ms: Int64s) -> Int64s:
    """For each key [n], where among the stored rows [m] its newest one not after `until_ms` [n] is; -1 for none.

    Of stored rows with one key and time the last counts.
    """
    rows = len(stored_keys)
    all_keys = np.concatenate([stored_keys, keys])
    all_ms = np.concatenate([stored_ms, until_ms])
    is_asked = np.arange(len(all_keys)) >= rows
    order = np.lexsort((is_asked, all_ms, all_keys))  # stable; a row of the very time stands before who asks
    newest = np.maximum.accumulate(np.where(is_asked[order], -1, np.arange(len(order))))
    at = np.where(newest >= 0, order[newest], -1)
    at[all_keys[at] != all_keys[order]] = -1  # a row of the key before
    found = np.empty(len(keys), np.int64)
    found[order[is_asked[order]] - rows] = at[is_asked[order]]
    return found


def rows_between(
    archive: Archive,
    view: PastView,
    columns: Sequence[str],
    since_ms: int,
    until_ms: int,
    *,
    newest_only: bool = False,
) -> PastRows:
    """The rows of all events from `since_ms` to `until_ms`, both included, or only the newest of each entity.

    All rows come in the order of their time. Raises UserError when the archive cannot answer.
    """
    span = f"event_ms BETWEEN {since_ms} AND {until_ms}"
    if newest_only:
        return _read(archive, view, columns, f"{span} {_NEWEST}")
    return _read(archive, view, columns, f"{span} ORDER BY {', '.join(_ORDER)}", final=" FINAL")


def _candidates(
    archive: Archive, view: PastView, columns: Sequence[str], known: Int64s, until: Int64s, since: Int64s
) -> PastRows:
    """Of some keys all rows that may be an answer, in order of time: those within the times that are asked for, and the
    newest before them.
    """
    low, high, oldest = until.min(), until.max(), since.min()
    some = f"entity_key IN ({', '.join(map(str, known.tolist()))})"
    before = f"{some} AND event_ms >= {oldest} AND event_ms < {low} {_NEWEST}"
    within = f"{some} AND event_ms BETWEEN {low} AND {high} ORDER BY {', '.join(_ORDER)}"
    parts = [_read(archive, view, columns, before), _read(archive, view, columns, within)]
    return PastRows(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.event_ms for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


_NEWEST = f"ORDER BY entity_key, {', '.join(f'{name} DESC' for name in _ORDER)} LIMIT 1 BY entity_key"


def _read(archive: Archive, view: PastView, columns: Sequence[str], which: str, final: str = "") -> PastRows:
    picked = [f"values[{view.columns.index(name) + 1}] AS v{i}" for i, name in enumerate(columns)]
    owner = {"task": view.task, "entity": view.entity, "view_hash": view.view_hash}
    mine = " AND ".join(f"{name} = {literal(value)}" for name, value in owner.items())
    table: Any = archive.query_arrow(
        f"SELECT {', '.join(['entity_key', 'event_ms', *picked])} FROM features{final} WHERE {mine} AND {which}"
    )
    values = np.empty((table.num_rows, len(columns)), np.float32)
    for i in range(len(columns)):
        values[:, i] = table.column(f"v{i}").to_numpy()
    return PastRows(table.column("entity_key").to_numpy(), table.column("event_ms").to_numpy(), values)
