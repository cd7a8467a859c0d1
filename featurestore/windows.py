"""The window kernels: event-time windows made of tiles, for any mix of aggregates, no Python per event.

A window of length W slides in hops of h = W / tiles. Time is cut into tiles, tile(t) = floor(t / h), and the
window at time t covers the `tiles` tiles up to and including tile(t). An entity keeps one *ring* of tiles
for each window: tile T lives in slot T mod tiles, and the *stamp* of a slot says which tile it holds. An
event goes to its own tile however late it is, unless a newer tile has taken the slot. So at time t a window
holds exactly the events e that were processed before and for which

    tile(t) - tiles < tile(e) <= tile(t)   and no event processed so far lies in tile(e) + k * tiles, k >= 1.

The second condition only bites a row that is itself late, by a tile or more. Any other row sees all events of
the last W - h and of up to h more. A label counts at tile ceil(known / h), so never before it was known.

The kernels interpret the tables of a `Layout`, so one compiled kernel serves every view. Tiles are summed
from the oldest to the newest: what comes out depends on the order of the rows and not on how they were
batched.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurestore.layout import (
    AS_IS,
    COUNT,
    DEVIATION,
    EXTREME,
    LAST_EVENT,
    LAST_LABEL,
    M2,
    MAX,
    MIN,
    QUOTIENT,
    RATIO,
    ROWS,
    SUM,
    Float64s,
    Int64s,
)

Bools = NDArray[np.bool_]

_AHEAD = 64
"""Rows whose records are fetched at once. Of many entities hardly a record is in a cache, and a row that waits for its
own keeps the next one waiting; reads that do not depend on each other are under way together."""

_LINE = 8
"""Words of a line of the processor's caches."""

_F32_MAX = float(np.finfo(np.float32).max)


def kernel(function: Any) -> Any:
    """Compiles at the first call and keeps the machine code on disk, so that only the first process waits.

    Numba makes it anew when the file of the kernel changes, and does not look at what the kernel imports: who changes
    a constant or a kernel that another file uses must touch that file too, or delete the cached code.
    """
    # error_model="numpy": 0 / 0 is NaN, instead of a check at every division.
    return njit(cache=True, nogil=True, error_model="numpy")(function)


@kernel
def _accumulate(record: Float64s, word: int, kind: int, x: float) -> None:
    """Adds the finite number x to one accumulator."""
    if kind == COUNT:
        record[word] += 1.0
    elif kind == SUM:
        record[word] += x
    elif kind == M2:
        # Welford's step. The count and the sum that follow do not hold x yet.
        n = record[word + 1]
        if n > 0.0:
            d = x - record[word + 2] / n
            record[word] += d * d * (n / (n + 1.0))
    elif kind == MIN:
        record[word] = min(record[word], x)
    elif kind == MAX:
        record[word] = max(record[word], x)


@kernel
def _write(
    record: Float64s,
    blank: Float64s,
    rings: Int64s,
    ops: Int64s,
    ring: int,
    tile: int,
    tiles: int,
    values: Float64s,
    i: int,
) -> None:
    """Adds row i of `values` to one tile of one ring, unless a newer tile has its slot."""
    width, first_op = rings[ring, 2], rings[ring, 3]
    slot = rings[ring, 1] + (tile % tiles) * width
    if record[slot] > tile:
        return
    if record[slot] < tile:
        record[slot] = tile
        for word in range(slot + 1, slot + width):
            record[word] = blank[word]
    for j in range(width - 1):
        kind = ops[first_op + j, 0]
        if kind == ROWS:
            record[slot + 1 + j] += 1.0
        else:
            x = values[ops[first_op + j, 1], i]
            if np.isfinite(x):
                _accumulate(record, slot + 1 + j, kind, x)


@kernel
def _take_back(
    record: Float64s, rings: Int64s, ops: Int64s, ring: int, tile: int, tiles: int, label: float
) -> None:
    """Takes one label from its tile, if that is still there. A label ring holds counts and sums only."""
    width, first_op = rings[ring, 2], rings[ring, 3]
    slot = rings[ring, 1] + (tile % tiles) * width
    if record[slot] != tile:
        return
    for j in range(width - 1):
        kind = ops[first_op + j, 0]
        record[slot + 1 + j] -= 1.0 if kind == COUNT else label


@kernel
def _total(
    record: Float64s, slots: Int64s, filled: int, word: int, kind: int, totals: Float64s, op: int
) -> float:
    """One accumulator over the first `filled` of `slots`."""
    if kind == MIN:
        total = np.inf
        for j in range(filled):
            total = min(total, record[slots[j] + word])
    elif kind == MAX:
        total = -np.inf
        for j in range(filled):
            total = max(total, record[slots[j] + word])
    elif kind == M2:
        # Two passes: the mean of the window first, then every tile's own M2 and its distance from that mean.
        total = 0.0
        mean = totals[op + 2] / totals[op + 1]
        for j in range(filled):
            n = record[slots[j] + word + 1]
            if n > 0.0:
                d = record[slots[j] + word + 2] / n - mean
                total += record[slots[j] + word] + n * d * d
    else:
        total = 0.0
        for j in range(filled):
            total += record[slots[j] + word]
    return total


@kernel
def _read(
    record: Float64s, rings: Int64s, ops: Int64s, tiles: int, time: int, slots: Int64s, totals: Float64s
) -> None:
    """Combines the tiles that each window covers at `time`, into one total for each op."""
    for ring in range(rings.shape[0]):
        offset, width, first_op = rings[ring, 1], rings[ring, 2], rings[ring, 3]
        newest = time // rings[ring, 0]
        filled = 0
        place = (newest + 1) % tiles
        for tile in range(newest - tiles + 1, newest + 1):
            slot = offset + place * width
            if record[slot] == tile:
                slots[filled] = slot
                filled += 1
            place = place + 1 if place + 1 < tiles else 0
        # From the last op to the first, since M2 needs the totals of the COUNT and SUM that follow it.
        for j in range(width - 2, -1, -1):
            op = first_op + j
            totals[op] = _total(record, slots, filled, 1 + j, ops[op, 0], totals, op)


@kernel
def _feature(kind: int, totals: Float64s, op: int, x: float, since_ms: float) -> float:
    """One feature from the totals. NaN where nothing is known, but 0 for counts and sums."""
    y = np.nan
    if kind == AS_IS:
        y = totals[op]
    elif kind == QUOTIENT:
        if totals[op] > 0.0:
            y = totals[op + 1] / totals[op]
    elif kind == EXTREME:
        if np.isfinite(totals[op]):
            y = totals[op]
    elif kind == DEVIATION:
        if totals[op + 1] > 0.0:
            y = np.sqrt(totals[op] / totals[op + 1])
    elif kind == RATIO:
        if totals[op] > 0.0 and totals[op + 1] != 0.0 and np.isfinite(x):
            y = x * totals[op] / totals[op + 1]
    elif np.isfinite(since_ms) and since_ms >= 0.0:  # a late row cannot tell: only the newest time is kept
        y = since_ms / 1000.0
    return y


@kernel
def _fetch(cells: Float64s, rows: Int64s, first: int, stop: int) -> float:
    """Reads the records of `rows[first:stop]` into the caches. Returns their sum, for which nobody would read them."""
    total = 0.0
    for i in range(first, stop):
        if rows[i] >= 0:
            for word in range(0, cells.shape[1], _LINE):
                total += cells[rows[i], word]
    return total


@kernel
def fold_events(
    cells: Float64s,
    blank: Float64s,
    rings: Int64s,
    ops: Int64s,
    features: Int64s,
    tiles: int,
    event_rings: int,
    rows: Int64s,
    times: Int64s,
    values: Float64s,
    add: Bools,
    out: NDArray[np.float32],
) -> float:
    """Row by row: reads the features of its entity at its time into `out`, then adds it where `add` says so.

    What it returns has no meaning (`_fetch`).

    cells f64[capacity, words] · rows i64[n], -1 = unknown entity · times i64[n] ms · values f64[V, n]
    add bool[n] · out f32[n, F], of which only the columns of `features` are written
    """
    slots = np.empty(tiles, np.int64)
    totals = np.empty(ops.shape[0], np.float64)
    fetched = 0.0
    for i in range(rows.shape[0]):
        if i % _AHEAD == 0:
            fetched += _fetch(cells, rows, i, min(i + _AHEAD, rows.shape[0]))
        record = cells[rows[i]] if rows[i] >= 0 else blank
        time = times[i]
        _read(record, rings, ops, tiles, time, slots, totals)
        since_ms = time - record[LAST_EVENT]
        for f in range(features.shape[0]):
            kind = features[f, 0]
            x = values[features[f, 2], i] if kind == RATIO else 0.0
            y = _feature(kind, totals, features[f, 1], x, since_ms)
            out[i, features[f, 3]] = min(max(y, -_F32_MAX), _F32_MAX) if y == y else np.nan
        if add[i]:
            for ring in range(event_rings):
                _write(record, blank, rings, ops, ring, time // rings[ring, 0], tiles, values, i)
            record[LAST_EVENT] = max(record[LAST_EVENT], time)
    return fetched


@kernel
def fold_labels(
    cells: Float64s,
    blank: Float64s,
    rings: Int64s,
    ops: Int64s,
    tiles: int,
    event_rings: int,
    rows: Int64s,
    known: Int64s,
    labels: Float64s,
    back: Bools,
) -> None:
    """Adds labels f64[1, n], known at `known` i64[n] ms, to the label rings of their entities, or takes them back."""
    for i in range(rows.shape[0]):
        record = cells[rows[i]]
        for ring in range(event_rings, rings.shape[0]):
            # Rounded up: at the first millisecond of its tile the label is already known.
            tile = -(-known[i] // rings[ring, 0])
            if back[i]:
                _take_back(record, rings, ops, ring, tile, tiles, labels[0, i])
            else:
                _write(record, blank, rings, ops, ring, tile, tiles, labels, i)
        record[LAST_LABEL] = max(record[LAST_LABEL], known[i])


@kernel
def mix(key: Any) -> Any:
    """Spreads a key i64 over 64 bits (the finaliser of splitmix64), since keys may come in any pattern."""
    z = np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def find(table: NDArray[np.int32], known: Int64s, size: int, keys: Int64s, add: Bools, rows: Int64s) -> int:
    """The row of each key, into `rows`; an unknown key gets the next row if `add`, else -1. Returns the size.

    table i32[a power of two]  row, or -1 = free; open addressing with linear probing
    known i64[>= size + n]     the key of each row
    The caller keeps both large enough for every key to be new.
    """
    mask = np.uint64(table.shape[0] - 1)
    for i in range(keys.shape[0]):  # fetched together, as records are; the keys by the loop below
        rows[i] = table[mix(keys[i]) & mask]
    for i in range(keys.shape[0]):
        key = keys[i]
        place = mix(key) & mask
        while table[place] >= 0 and known[table[place]] != key:
            place = (place + np.uint64(1)) & mask
        if table[place] < 0 and add[i]:
            table[place] = size
            known[size] = key
            size += 1
        rows[i] = table[place]
    return size
