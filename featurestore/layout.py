"""Where the record of an entity keeps what: a view turned into the small tables that the kernels interpret.

All that an entity has is one record of float64 words (counts and tile numbers are exact up to 2**53):

    last event ms, last label ms,
    for each ring and each of its slots: stamp, accumulator, accumulator, …
    for each sketched window and each of its slots: stamp, words of a sketch
    for each value with decayed means: newest ms, its sum, its count, settled ms, then sum, weight a half-life
    for each value with last values: time in ms, value, time in ms, value, … from the newest to the oldest

One ring serves all features of the same window but for `distinct`. `windows` says what a ring is, `sketch` what the
words of a sketch are (64 bits each, not numbers), and `recent` what the last two are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurestore.spec import Feature, View

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

LAST_EVENT, LAST_LABEL, HEADER = 0, 1, 2
"""Words of a record before its first ring."""

ROWS, COUNT, SUM, M2, MIN, MAX = range(6)
"""Accumulators: rows; and of one value: how many, sum, squared distance from the mean, extremes."""
_START = {ROWS: 0.0, COUNT: 0.0, SUM: 0.0, M2: 0.0, MIN: np.inf, MAX: -np.inf}
# M2 before the COUNT and SUM it is updated from: the kernels reach these at +1 and +2.
_SLOT_ORDER = (ROWS, M2, COUNT, SUM, MIN, MAX)

AS_IS, QUOTIENT, EXTREME, DEVIATION, RATIO, SINCE = range(6)
"""What a feature makes of the totals of its accumulators over the tiles of a window."""
_NEEDS: dict[str, tuple[int, tuple[int, ...]]] = {
    "count": (AS_IS, (COUNT,)),
    "sum": (AS_IS, (SUM,)),
    "mean": (QUOTIENT, (COUNT, SUM)),
    "label_rate": (QUOTIENT, (COUNT, SUM)),
    "min": (EXTREME, (MIN,)),
    "max": (EXTREME, (MAX,)),
    "std": (DEVIATION, (M2, COUNT, SUM)),
    "ratio": (RATIO, (COUNT, SUM)),
}

SKETCH_WORDS = 8
"""Words of the sketch of one tile."""

DECAY_WORDS, HALF_LIFE_WORDS = 4, 2
"""Words for a value with decayed means, and for each of its half-lives."""

_Row = tuple[int, int, int, int]
_Ring = tuple[bool, int]  # (of labels?, window in ms): rings of events sort first
_Places = dict[tuple[_Ring, int, int], int]  # (ring, accumulator, value column) → op


@dataclass(frozen=True)
class Layout:
    """The tables of one view.

    rings[R, 4]     hop in ms, first word in the record, words a slot, first op; event rings come first
    ops[A, 2]       accumulator, value column; op j of a ring lies at word 1 + j of each of its slots
    features[F, 4]  what to make of the totals, the op it starts from, value column, output column
    sketches[S, 4]  hop in ms, first word in the record, place in `view.sketched`, output column
    decays[D, 4]    value column, first word in the record, first half-life, number of half-lives
    halves[H, 2]    half-life in ms, output column
    lasts[L, 4]     value column, first word in the record, number of output columns, the first of them
    blank[words]    the record of an entity that nothing is known of
    """

    tiles: int
    event_rings: int
    rings: Int64s = field(repr=False)
    ops: Int64s = field(repr=False)
    features: Int64s = field(repr=False)
    sketches: Int64s = field(repr=False)
    decays: Int64s = field(repr=False)
    halves: Int64s = field(repr=False)
    lasts: Int64s = field(repr=False)
    blank: Float64s = field(repr=False)

    @classmethod
    def of(cls, view: View) -> "Layout":
        """The layout of a view: a ring for each window of events and of labels, and only what it needs."""
        words: list[float] = [-np.inf] * HEADER
        windows = sorted({_ring(f) for f in view.features if f.aggregate in _NEEDS})
        rings, ops, places = _rings(view, windows, words)
        features = [
            (*_feature(f, view, places), out)
            for out, f in enumerate(view.features)
            if f.aggregate in _NEEDS or f.aggregate == "time_since_last"
        ]
        sketches = _sketches(view, words)
        decays, halves = _decays(view, words)
        lasts = _lasts(view, words)
        return cls(
            tiles=view.tiles,
            event_rings=sum(1 for of_labels, _ in windows if not of_labels),
            rings=_table(rings, 4),
            ops=_table(ops, 2),
            features=_table(features, 4),
            sketches=_table(sketches, 4),
            decays=_table(decays, 4),
            halves=_table(halves, 2),
            lasts=_table(lasts, 4),
            blank=np.array(words, np.float64),
        )


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Int64s:
    return np.array(rows, np.int64).reshape(-1, width)


def _rings(
    view: View, windows: Sequence[_Ring], words: list[float]
) -> tuple[list[_Row], list[tuple[int, int]], _Places]:
    """The tables `rings` and `ops`, and where each op is; appends their words to the record."""
    rings: list[_Row] = []
    ops: list[tuple[int, int]] = []
    places: _Places = {}
    for window in windows:
        within = [f for f in view.features if f.aggregate in _NEEDS and _ring(f) == window]
        needed = {need for f in within for need in _accumulators(f, view)}
        slot = sorted(needed, key=lambda need: (need[1], _SLOT_ORDER.index(need[0])))
        rings.append((window[1] // view.tiles, len(words), 1 + len(slot), len(ops)))
        for accumulator, column in slot:
            places[window, accumulator, column] = len(ops)
            ops.append((accumulator, column))
        words += [-np.inf, *(_START[accumulator] for accumulator, _ in slot)] * view.tiles
    return rings, ops, places


def _ring(feature: Feature) -> _Ring:
    return feature.aggregate == "label_rate", feature.window_ms


def _accumulators(feature: Feature, view: View) -> list[tuple[int, int]]:
    if feature.aggregate == "count" and feature.value is None:
        return [(ROWS, -1)]
    return [(need, _column(feature, view)) for need in _NEEDS[feature.aggregate][1]]


def _column(feature: Feature, view: View) -> int:
    # Labels are folded by themselves, as the only column.
    return 0 if feature.value is None else view.values.index(feature.value)


def _feature(feature: Feature, view: View, places: _Places) -> tuple[int, int, int]:
    if feature.aggregate == "time_since_last":
        return SINCE, 0, 0
    first = min(places[_ring(feature), need, column] for need, column in _accumulators(feature, view))
    return _NEEDS[feature.aggregate][0], first, _column(feature, view)


def _sketches(view: View, words: list[float]) -> list[_Row]:
    """The table `sketches`; appends their words to the record."""
    sketches: list[_Row] = []
    for out, feature in enumerate(view.features):
        if feature.aggregate == "distinct":
            place = view.sketched.index(feature.category or feature.value or "")
            sketches.append((feature.window_ms // view.tiles, len(words), place, out))
            words += [-np.inf, *[0.0] * SKETCH_WORDS] * view.tiles
    return sketches


def _decays(view: View, words: list[float]) -> tuple[list[_Row], list[tuple[int, int]]]:
    """The tables `decays` and `halves`; appends their words to the record."""
    decays: list[_Row] = []
    halves: list[tuple[int, int]] = []
    for column, value in enumerate(view.values):
        mine = [
            (out, f) for out, f in enumerate(view.features) if (f.aggregate, f.value) == ("decayed", value)
        ]
        if mine:
            decays.append((column, len(words), len(halves), len(mine)))
            halves += [(f.window_ms, out) for out, f in mine]
            words += [-np.inf, 0.0, 0.0, -np.inf, *[0.0] * (HALF_LIFE_WORDS * len(mine))]
    return decays, halves


def _lasts(view: View, words: list[float]) -> list[_Row]:
    """The table `lasts`; appends its words to the record."""
    lasts: list[_Row] = []
    for column, value in enumerate(view.values):
        mine = [out for out, f in enumerate(view.features) if (f.aggregate, f.value) == ("last", value)]
        if mine:
            lasts.append((column, len(words), len(mine), mine[0]))
            # One more than is shown, so that an event whose clock runs ahead hides none.
            words += [-np.inf, 0.0] * (len(mine) + 1)
    return lasts
