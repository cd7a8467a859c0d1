"""What a leaf of a Hoeffding tree keeps of its rows, and how good its cuts are, compiled.

A leaf of a tree over K classes counts its classes, and of each column that it observes a normal distribution for each
class. A leaf of a tree over values keeps the mean label, and of each column `BINS` bins with the mean label in each
(after Mastelini & de Carvalho 2021); a value beyond the bins makes them twice as wide.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

# A node's record. Behind the counts of the K classes, or the weight of the labels and their mean, are two losses (of
# late): of the leaf's shares and of its naive Bayes.
FEATURE, THRESHOLD, LEFT, RIGHT, COUNTS = range(5)
BY_COUNT, BY_BAYES, NODE = -2, -1, 6
LEAF = -1.0  # the feature of a node without children

# What is remembered of a column at a leaf over classes: for each class its weight, mean and sum of squared deviations;
# then the smallest and the largest value.
SMALLEST, LARGEST, COLUMN = -2, -1, 2
# At one over values: where the bins begin, how wide one is; then, for each, its weight and mean label.
BEGIN, WIDTH, BIN = 0, 1, 2
BINS = 32
FIRST_WIDTH = 1e-3  # of all bins together, as a share of the first value

LEAF_ROWS = 5_000.0  # weight that a leaf's counts remember: older rows fade
LEAST_VARIANCE = 1e-4
# Nats that the columns of a leaf may add: they overlap, and naive Bayes takes them for independent.
MOST_SAID = 4.0
HARDLY = 2.0  # weight of a class below which its distribution says nothing
CUTS = 10  # thresholds that are tried for a column
SMALLEST_BRANCH = 0.01  # share of the rows that each branch must get

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def kernel(function: Any) -> Any:
    """Compiles at the first call and keeps the machine code on disk, so that only the first process waits."""
    return njit(cache=True, nogil=True, error_model="numpy")(function)


@kernel
def count_class(record: Floats, totals: Doubles, label: int, weight: float) -> None:
    """Count a row of a class in a leaf's record [K + 6] and its `totals` [K, …]."""
    counts = record[COUNTS:BY_COUNT]
    counts[label] += weight
    total = counts.sum()
    if total > LEAF_ROWS:
        counts *= LEAF_ROWS / total
    totals[label] += weight


@kernel
def moments(to: Floats | Doubles, value: float, weight: float) -> None:
    """Fold a value into a weight, a mean and a sum of squared deviations (West 1979)."""
    to[0] += weight
    gap = value - to[1]
    to[1] += gap * weight / to[0]
    to[2] += weight * gap * (value - to[1])


@kernel
def count_value(record: Floats, totals: Doubles, label: float, weight: float) -> None:
    """Fold a label into a leaf's weight and mean, and into `totals`: weight, mean, squared deviations."""
    record[COUNTS] = min(record[COUNTS] + weight, LEAF_ROWS)
    record[COUNTS + 1] += (label - record[COUNTS + 1]) * min(weight / record[COUNTS], 1.0)
    moments(totals, label, weight)


@kernel
def note_class(seen: Floats, value: float, label: int, weight: float) -> None:
    """Fold a row's value of a column into the distribution of its class."""
    new = True
    for first in range(0, seen.shape[0] - COLUMN, 3):
        new = new and seen[first] == 0.0
    seen[SMALLEST] = value if new else min(seen[SMALLEST], value)
    seen[LARGEST] = value if new else max(seen[LARGEST], value)
    moments(seen[3 * label : 3 * label + 3], value, weight)


@kernel
def note_value(seen: Floats, value: float, label: float, weight: float) -> None:
    """Fold a row's label into the bin of its value of a column."""
    if seen[WIDTH] == 0.0:
        whole = FIRST_WIDTH * max(abs(value), 1.0)
        seen[WIDTH], seen[BEGIN] = whole / BINS, value - whole / 2
    while not seen[BEGIN] < value <= seen[BEGIN] + BINS * seen[WIDTH]:
        widen(seen, value)
    at = min(max(math.ceil((value - seen[BEGIN]) / seen[WIDTH]) - 1, 0), BINS - 1)
    add(seen[BIN + 2 * at : BIN + 2 * at + 2], weight, label)


@kernel
def add(to: Floats, weight: float, mean: float) -> None:
    """Fold labels of a weight and a mean into a pair of both."""
    if weight > 0.0:
        to[0] += weight
        to[1] += (mean - to[1]) * (weight / to[0])


@kernel
def widen(seen: Floats, value: float) -> None:
    """Make each bin twice as wide. What there was and the `value` that has no bin come to lie in the middle of them."""
    before, begin, width = seen[BIN:].copy(), seen[BEGIN], 2.0 * seen[WIDTH]
    lowest, highest = min(begin, value), max(begin + BINS * seen[WIDTH], value)
    room = max(BINS * width - (highest - lowest), 0.0) / 2.0
    shift = min(max(int((begin - lowest + room) / width), 0), BINS // 2)
    seen[BIN:] = 0.0
    for at in range(BINS):
        to = BIN + 2 * (at // 2 + shift)
        add(seen[to : to + 2], before[2 * at], before[2 * at + 1])
    seen[BEGIN], seen[WIDTH] = begin - shift * width, width


@kernel
def below(seen: Floats, label: int, threshold: float) -> float:
    """Weight of a class at or below a threshold, if its values were normally distributed."""
    weight, mean, squares = seen[3 * label], seen[3 * label + 1], seen[3 * label + 2]
    if weight == 0.0:
        return 0.0
    spread = math.sqrt(squares / weight)
    if spread == 0.0:
        return float(weight) if mean <= threshold else 0.0
    return float(weight * 0.5 * (1.0 + math.erf((threshold - mean) / (spread * math.sqrt(2.0)))))


@kernel
def in_bins(seen: Floats, threshold: float, centre: float) -> tuple[float, float]:
    """Weight of the labels whose value is at or below a threshold between two bins; their sum, less `centre` each."""
    weight, total = 0.0, 0.0
    for at in range(round((threshold - seen[BEGIN]) / seen[WIDTH])):
        weight += seen[BIN + 2 * at]
        total += seen[BIN + 2 * at] * (seen[BIN + 2 * at + 1] - centre)
    return weight, total


@kernel
def entropy(counts: Doubles) -> float:
    """Bits of a split into classes."""
    total, bits = counts.sum(), 0.0
    for part in counts:
        if part > 0.0:
            bits -= part / total * math.log2(part / total)
    return bits


@kernel
def class_cut(seen: Floats, counts: Doubles) -> tuple[float, float]:
    """Gain, and threshold, of a column's best split among evenly spaced ones, given the classes' weights [K].

    The gain is a share of the most bits that K classes can have; (0, 0) if no split gains.
    """
    best, threshold, total = 0.0, 0.0, counts.sum()
    low, high, left = seen[SMALLEST], seen[LARGEST], np.empty_like(counts)
    before = entropy(counts)
    for cut in range(1, CUTS + 1):
        # In float32, as the record will hold it.
        at = float(np.float32(low + (high - low) * cut / (CUTS + 1)))
        for label in range(counts.shape[0]):
            left[label] = min(below(seen, label, at), counts[label])
        share = left.sum() / total
        if share < SMALLEST_BRANCH or 1.0 - share < SMALLEST_BRANCH:
            continue
        gain = before - share * entropy(left) - (1.0 - share) * entropy(counts - left)
        if gain > best:
            best, threshold = gain, at
    return best / math.log2(counts.shape[0]), threshold


@kernel
def value_cut(seen: Floats, totals: Doubles) -> tuple[float, float]:
    """Share of a leaf's variance that a column's best split explains, and its threshold; (0, 0) if none does.

    Rows without a value of the column are above every threshold.
    """
    best, threshold, weight = 0.0, 0.0, totals[0]
    if seen[WIDTH] == 0.0:
        return best, threshold
    for cut in range(1, BINS):
        at = float(np.float32(seen[BEGIN] + cut * seen[WIDTH]))
        left, off = in_bins(seen, at, totals[1])
        if left < SMALLEST_BRANCH * weight or weight - left < SMALLEST_BRANCH * weight:
            continue
        gain = off * off * (1.0 / left + 1.0 / (weight - left)) / totals[2]
        if gain > best:
            best, threshold = gain, at
    return best, threshold


@kernel
def said(observers: Floats, subset: NDArray[np.int32], row: Floats, out: Floats) -> None:
    """Write what the observed columns of a row say for each class into `out` [K], 0 for the likeliest: naive Bayes.

    A class that a column was hardly seen with is as likely by it as the least likely of the others.
    """
    out[:] = 0.0
    for at in range(subset.shape[0]):
        seen, value, least = observers[at], row[subset[at]], math.inf
        if not math.isfinite(value):
            continue
        for label in range(out.shape[0]):
            weight, mean = seen[3 * label], seen[3 * label + 1]
            if weight >= HARDLY:
                variance = seen[3 * label + 2] / weight + LEAST_VARIANCE
                density = -0.5 * ((value - mean) ** 2 / variance + math.log(variance))
                out[label] += density
                least = min(least, density)
        for label in range(out.shape[0]):
            if seen[3 * label] < HARDLY and math.isfinite(least):
                out[label] += least
    largest = out.max()
    for label in range(out.shape[0]):
        out[label] = max(out[label] - largest, -MOST_SAID)
