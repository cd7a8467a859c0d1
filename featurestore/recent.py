"""Kernels for what has no window: exponentially decayed means and the last values of an entity, no Python per event.

**Decayed mean** with half-life H, over the values x of the events e that were processed before: Σ w x / Σ w with
w = 2^(-(t - time(e)) / H). An entity keeps two sums a half-life, Σ w x and Σ w, with weights as seen from the *settled*
time. The events of the *newest* time are kept apart, by their sum and count, until a newer one comes. So

    a row at or after the newest time sees all events,
    a row between the settled time (the newest but one) and the newest sees all but those of the newest time,
    an older row cannot tell what it may see, and sees nothing.

That is why one event whose clock runs ahead takes nothing from the others. Weights are at most 1 at the time of the
newest value that they stand for, and a sum of them is at least 1: however far a clock jumps, nothing overflows and
nothing is divided by zero. A late event gets the weight that its own time gives it.

**Last values**: of the k + 1 newest values processed before, by event time and of equal times the one processed later
first, those that are not from after the row; the newest k of them.

The order of the rows decides what comes out, to the last bit, and not how they were batched.
"""

import numpy as np
from numpy.typing import NDArray

from featurestore.layout import DECAY_WORDS, HALF_LIFE_WORDS, Float64s, Int64s
from featurestore.windows import Bools, kernel

NEWEST, NEWEST_SUM, NEWEST_COUNT, SETTLED = range(4)
"""Words of a value with decayed means, before the sums of its half-lives."""

_F32_MAX = float(np.finfo(np.float32).max)
# Values are cut to this, far above what can be handed on: a sum that overflowed would never be finite again.
_LARGEST = 1e280


@kernel
def _fitting(y: float) -> float:
    """The number cut to what float32 holds; NaN stays."""
    return min(max(y, -_F32_MAX), _F32_MAX) if y == y else np.nan


@kernel
def _decayed(record: Float64s, first: int, sums: int, half_life: float, time: float) -> float:
    """The decayed mean at `time` of the value whose words begin at `first`; NaN where there is none."""
    newest, settled = record[first + NEWEST], record[first + SETTLED]
    y = np.nan
    if time >= newest and record[first + NEWEST_COUNT] > 0.0:
        fade = np.exp2((settled - newest) / half_life)
        weight = record[sums + 1] * fade + record[first + NEWEST_COUNT]
        y = (record[sums] * fade + record[first + NEWEST_SUM]) / weight
    elif time >= settled and record[sums + 1] > 0.0:
        y = record[sums] / record[sums + 1]
    return y


@kernel
def _settle(
    record: Float64s, sums: int, half_life: float, settled: float, time: float, x: float, n: float
) -> None:
    """Adds the sum x of n values at `time` to the sums as seen from the later of `settled` and `time`."""
    if time >= settled:
        fade = np.exp2((settled - time) / half_life)
        record[sums] = record[sums] * fade + x
        record[sums + 1] = record[sums + 1] * fade + n
    else:
        fade = np.exp2((time - settled) / half_life)
        record[sums] += x * fade
        record[sums + 1] += n * fade


@kernel
def _add_decayed(record: Float64s, first: int, halves: Int64s, time: float, x: float) -> None:
    """Adds the finite value x of an event at `time`. `halves` are the rows of this value's half-lives."""
    newest, settled = record[first + NEWEST], record[first + SETTLED]
    x = min(max(x, -_LARGEST), _LARGEST)
    if time == newest:
        record[first + NEWEST_SUM] += x
        record[first + NEWEST_COUNT] += 1.0
        return
    at, total, count = time, x, 1.0
    if time > newest:
        # What was newest settles, and this event takes its place.
        at, total, count = newest, record[first + NEWEST_SUM], record[first + NEWEST_COUNT]
        record[first + NEWEST], record[first + NEWEST_SUM], record[first + NEWEST_COUNT] = time, x, 1.0
    if count > 0.0:
        for h in range(halves.shape[0]):
            sums = first + DECAY_WORDS + HALF_LIFE_WORDS * h
            _settle(record, sums, float(halves[h, 0]), settled, at, total, count)
        record[first + SETTLED] = max(settled, at)


@kernel
def _read_last(record: Float64s, first: int, count: int, time: float, out: NDArray[np.float32]) -> None:
    """Writes the newest `count` values that are not from after `time` into `out`, and NaN where there are fewer."""
    found = 0
    for word in range(first, first + 2 * (count + 1), 2):
        if found < count and -np.inf < record[word] <= time:
            out[found] = _fitting(record[word + 1])
            found += 1
    out[found:] = np.nan


@kernel
def _add_last(record: Float64s, first: int, count: int, time: float, x: float) -> None:
    """Puts the value x of an event at `time` where it belongs; the oldest one goes."""
    word = first + 2 * count
    if record[word] > time:
        return
    while word > first and record[word - 2] <= time:
        record[word], record[word + 1] = record[word - 2], record[word - 1]
        word -= 2
    record[word], record[word + 1] = time, x


@kernel
def fold_recent(
    cells: Float64s,
    blank: Float64s,
    decays: Int64s,
    halves: Int64s,
    lasts: Int64s,
    rows: Int64s,
    times: Int64s,
    values: Float64s,
    add: Bools,
    out: NDArray[np.float32],
) -> None:
    """Row by row: reads the decayed means and last values of its entity, then adds its own where `add` says so.

    cells f64[capacity, words] · rows i64[n], -1 = unknown entity · times i64[n] ms · values f64[V, n]
    add bool[n] · out f32[n, F], of which only the columns of these features are written
    """
    for i in range(rows.shape[0]):
        record = cells[rows[i]] if rows[i] >= 0 else blank
        time = float(times[i])
        for d in range(decays.shape[0]):
            column, first, half, count = decays[d]
            for h in range(count):
                sums = first + DECAY_WORDS + HALF_LIFE_WORDS * h
                y = _decayed(record, first, sums, float(halves[half + h, 0]), time)
                out[i, halves[half + h, 1]] = _fitting(y)
            if add[i] and np.isfinite(values[column, i]):
                _add_decayed(record, first, halves[half : half + count], time, values[column, i])
        for j in range(lasts.shape[0]):
            column, first, count, place = lasts[j]
            _read_last(record, first, count, time, out[i, place : place + count])
            if add[i] and np.isfinite(values[column, i]):
                _add_last(record, first, count, time, values[column, i])
