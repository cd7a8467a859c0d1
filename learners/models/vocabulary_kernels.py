"""The map from ids to table rows, compiled: open addressing with linear probing over row numbers.

A slot holds the number of a row, or `FREE`; the row's id stands in `ids`, and its field follows from its number. Slots
are a power of two, at least twice as many as rows, so that a probe ends.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

FREE = -1
RESERVED = 2  # a field's first rows: of missing ids, and of those that have no row of their own
MISSING, RARE = 0, 1

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Counts = NDArray[np.uint8]


def kernel(function: Any) -> Any:
    """Compiles at the first call and keeps the machine code on disk."""
    return njit(cache=True, nogil=True)(function)


@kernel
def _mixed(key: int, field: int) -> int:
    """A hash of 63 bits (the finaliser of splitmix64, Steele, Lea & Flood 2014)."""
    bits = np.uint64(key) + np.uint64(field + 1) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return int(bits >> np.uint64(1))


@kernel
def _slot(slots: Int32s, ids: Int64s, size: int, key: int, field: int) -> int:
    """The slot that holds the row of a field's id, or the free one where it would stand."""
    mask = len(slots) - 1
    at: int = _mixed(key, field) & mask
    while slots[at] != FREE and not (ids[slots[at]] == key and slots[at] // size == field):
        at = (at + 1) & mask
    return at


@kernel
def fill(slots: Int32s, ids: Int64s, size: int) -> None:
    """Builds the slots anew from the ids of the rows."""
    slots[:] = FREE
    for row in range(len(ids)):
        if ids[row] != 0:
            slots[_slot(slots, ids, size, ids[row], row // size)] = row


@kernel
def find(slots: Int32s, ids: Int64s, size: int, fields: Int64s, keys: Int64s, rows: Int64s) -> None:
    """Writes the row of each id of keys i64[n, F] into rows i64[n, F]; column f is of field `fields[f]`."""
    for i in range(keys.shape[0]):
        for f in range(keys.shape[1]):
            key, first = keys[i, f], fields[f] * size
            if key == 0:
                rows[i, f] = first + MISSING
                continue
            row = slots[_slot(slots, ids, size, key, fields[f])]
            rows[i, f] = row if row != FREE else first + RARE


@kernel
def note(
    slots: Int32s,
    ids: Int64s,
    size: int,
    fields: Int64s,
    keys: Int64s,
    seen: Int64s,
    now: int,
    counts: Counts,
    admit_after: int,
    free: Int64s,
    left: Int64s,
    wanted: Int64s,
    admitted: Int64s,
) -> tuple[int, int]:
    """Counts ids of keys i64[n, F], row by row, and gives a row to those that have come often enough.

    free i64[fields, size] with left i64[fields]: the free rows of each field, the next one last. wanted i64[fields]:
    how many found none. Returns how many rows were given (their numbers are in `admitted`) and how many ids counted.
    """
    given = counted = 0
    for i in range(keys.shape[0]):
        for f in range(keys.shape[1]):
            key, field = keys[i, f], fields[f]
            if key == 0:
                continue
            at = _slot(slots, ids, size, key, field)
            if slots[at] != FREE:
                seen[slots[at]] = now
                continue
            count = _mixed(key, field + 7919) & (len(counts) - 1)
            counts[count] = min(counts[count] + 1, 255)
            counted += 1
            if counts[count] < admit_after:
                continue
            if left[field] == 0:
                wanted[field] += 1
                continue
            left[field] -= 1
            row = free[field, left[field]]
            ids[row], seen[row], slots[at] = key, now, row
            admitted[given] = row
            given += 1
    return given, counted
