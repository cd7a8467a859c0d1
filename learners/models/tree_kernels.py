"""Growing Hoeffding trees, a row at a time, compiled; `leaf_kernels` has what a leaf keeps.

Trees live in the blocks of a `Grove`: B blocks of K nodes, of which each leaf observes m of the F columns.
Children have higher numbers than their parent, so every path ends. A column that is unknown (NaN) is above every
threshold.
"""

import hashlib
import inspect
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.models import leaf_kernels
from learners.models.leaf_kernels import (
    BY_BAYES,
    BY_COUNT,
    COUNTS,
    FEATURE,
    LEAF,
    LEFT,
    RIGHT,
    THRESHOLD,
    below,
    class_cut,
    count_class,
    count_value,
    in_bins,
    note_class,
    note_value,
    said,
    value_cut,
)

LOSS_ROWS = 500.0  # rows over which a leaf compares its two ways to guess
TIE = 0.05  # once the bound is this small, the best split is taken even if another is as good
SMALLEST_GAIN = 0.001  # share of the bits of the classes; a split that gains less is noise
POISSON = 6.0  # mean weight of a row in a tree of a forest (Bifet, Holmes & Pfahringer 2010)
MOST_WEIGHT = 30
WARNING, DRIFT = 5e-3, 1e-4  # confidence that a tree has become worse: grow another beside it; replace it
TOTAL, WRONG, BEST_TOTAL, BEST_WRONG, BACKGROUND, WATCHED = range(6)  # a tree's record in `Grove.watch`
TRIED = -1  # in `Grove.totals`


_LEAVES = hashlib.blake2b(inspect.getsource(leaf_kernels).encode(), digest_size=4).hexdigest()


def kernel(function: Any) -> Any:
    """A kernel as of `leaf_kernels`, whose code is part of this one's: its hash is in the name under which numba keeps
    the machine code, as numba only looks whether this file has changed.
    """
    function.__qualname__ += _LEAVES
    return leaf_kernels.kernel(function)


class Grove(NamedTuple):
    """The arrays that the kernels write, for B blocks and T trees over classes, or over `values`.

    `nodes` float32 [B, K, …] and `observers` float32 [B, K, m, …]: see `leaf_kernels`; `totals` float64 [B, K, …]:
    since the node began, the weight of each class, or weight, mean and squared deviations of the labels; then the
    weight of all at the last attempt to split; `subset` int32 [B, K, m]: the observed columns; `used` int32 [B]: nodes
    in use; `births` int64 [B]: which planting of the block this is; `blocks` int32 [T, 2]: the tree's block, and that
    of the one grown beside it; `watch` float64 [T, 5].
    """

    values: bool
    nodes: NDArray[np.float32]
    observers: NDArray[np.float32]
    totals: NDArray[np.float64]
    subset: NDArray[np.int32]
    used: NDArray[np.int32]
    births: NDArray[np.int64]
    blocks: NDArray[np.int32]
    watch: NDArray[np.float64]


class Habits(NamedTuple):
    """How trees grow: an `adaptive` grove is a forest, whose rows have random weights on top and whose trees are
    watched and replaced; in a single tree the leaves compare their two ways to guess. A leaf tries to split every
    `grace` rows.
    """

    adaptive: bool
    grace: float
    confidence: float
    seed: int


@kernel
def uniform(seed: int, first: int, second: int) -> float:
    """A number in [0, 1) that is a pure function of three integers: splitmix64, once for each."""
    bits = np.uint64(seed)
    for word in (first, second, 0):
        bits = bits + np.uint64(word) * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return float(bits >> np.uint64(11)) * 2.0**-53


@kernel
def poisson(chance: float) -> int:
    """The Poisson(6) number of a uniform one, by its distribution function."""
    count, term = 0, math.exp(-POISSON)
    reached = term
    while chance > reached and count < MOST_WEIGHT:
        count += 1
        term *= POISSON / count
        reached += term
    return count


@kernel
def find(nodes: NDArray[np.float32], row: NDArray[np.float32]) -> int:
    """The leaf of one tree [K, …] that a row [F] falls into."""
    at = 0
    while nodes[at, FEATURE] >= 0.0:
        side = LEFT if row[int(nodes[at, FEATURE])] <= nodes[at, THRESHOLD] else RIGHT
        at = int(nodes[at, side])
    return at


@kernel
def begin(grove: Grove, block: int, node: int, columns: int, seed: int) -> None:
    """Make a node an empty leaf, and choose the columns that it observes (Knuth's algorithm S)."""
    grove.nodes[block, node] = 0.0
    grove.nodes[block, node, FEATURE] = LEAF
    grove.totals[block, node] = 0.0
    grove.observers[block, node] = 0.0
    wanted, chosen = grove.subset.shape[2], 0
    key = grove.births[block] * 65_536 + node
    for column in range(columns):
        if uniform(seed, key, column) * (columns - column) < wanted - chosen:
            grove.subset[block, node, chosen] = column
            chosen += 1


@kernel
def plant(grove: Grove, block: int, columns: int, seed: int) -> None:
    """Begin a tree anew, as a leaf, with other columns than before."""
    grove.births[block] += grove.births.shape[0]
    grove.nodes[block] = 0.0
    grove.nodes[block, :, FEATURE] = LEAF
    grove.used[block] = 1
    begin(grove, block, 0, columns, seed)


@kernel
def absorb(
    grove: Grove, block: int, node: int, row: NDArray[np.float32], label: float, weight: float
) -> None:
    """Count a row at its leaf and in the leaf's observers."""
    record, totals = grove.nodes[block, node], grove.totals[block, node]
    if grove.values:
        count_value(record, totals, label, weight)
    else:
        count_class(record, totals, int(label), weight)
    for at in range(grove.subset.shape[2]):
        value = row[grove.subset[block, node, at]]
        if not math.isfinite(value):
            continue
        if grove.values:
            note_value(grove.observers[block, node, at], value, label, weight)
        else:
            note_class(grove.observers[block, node, at], value, int(label), weight)


@kernel
def compare(grove: Grove, block: int, node: int, row: NDArray[np.float32], label: int) -> None:
    """Note the loss of a leaf's two ways to guess at a row before it is counted (after Gama et al. 2003)."""
    record = grove.nodes[block, node]
    counts = record[COUNTS:BY_COUNT] + np.float32(1.0)
    columns = np.empty_like(counts)
    said(grove.observers[block, node], grove.subset[block, node], row, columns)
    both = counts * np.exp(columns)
    for column, shares in ((BY_COUNT, counts), (BY_BAYES, both)):
        loss = -math.log(shares[label] / shares.sum())
        record[column] += (loss - record[column]) / LOSS_ROWS


@kernel
def score(
    grove: Grove,
    active: NDArray[np.int64],
    rows: NDArray[np.float32],
    base: NDArray[np.float32],
    prior: float,
    out: NDArray[np.float32],
) -> None:
    """The mean over the trees in blocks `active` [T] of what each row's leaf says, into `out` [n, K], of values [n, 1].

    A leaf has `prior` rows of the `base` on top of its own: the shares [K] of the classes, or the mean label [1].
    """
    columns, shares = np.empty_like(base), np.empty_like(base)
    out[:] = 0.0
    for at in range(rows.shape[0]):
        for block in active:
            leaf = find(grove.nodes[block], rows[at])
            record = grove.nodes[block, leaf]
            if grove.values:
                weight, mean = record[COUNTS], record[COUNTS + 1]
                out[at, 0] += base[0] + (mean - base[0]) * weight / (weight + prior)
                continue
            for label in range(base.shape[0]):
                shares[label] = record[COUNTS + label] + np.float32(prior) * base[label]
            if record[BY_BAYES] < record[BY_COUNT]:
                said(grove.observers[block, leaf], grove.subset[block, leaf], rows[at], columns)
                shares *= np.exp(columns)
            total = shares.sum()
            for label in range(base.shape[0]):
                out[at, label] += shares[label] / total
    out /= np.float32(len(active))


@kernel
def rows_of(grove: Grove, totals: NDArray[np.float64]) -> float:
    """The weight of all rows that a node counted since it began."""
    return float(totals[0] if grove.values else totals[:TRIED].sum())


@kernel
def pure(grove: Grove, totals: NDArray[np.float64]) -> bool:
    """Whether all labels of a node are the same."""
    if grove.values:
        return bool(totals[2] <= 0.0)
    return bool(np.count_nonzero(totals[:TRIED]) < 2)


@kernel
def attempt(grove: Grove, block: int, node: int, columns: int, confidence: float, seed: int) -> None:
    """Split a leaf if its best column is better than the next, and than none, by Hoeffding's bound."""
    totals = grove.totals[block, node]
    if pure(grove, totals) or grove.used[block] + 2 > grove.nodes.shape[1]:
        return
    best, second, threshold, chosen = 0.0, 0.0, 0.0, 0
    for at in range(grove.subset.shape[2]):
        seen = grove.observers[block, node, at]
        gain, cut = value_cut(seen, totals) if grove.values else class_cut(seen, totals[:TRIED])
        if gain > best:
            best, second, threshold, chosen = gain, best, cut, at
        elif gain > second:
            second = gain
    # The gain of classes is a share, from 0 to 1; of values it is how much better the best column is than the next
    # that is (Ikonomovska et al. 2011), and chance explains so much of their variance with probability `confidence`.
    bound = math.sqrt(-math.log(confidence) / (2.0 * rows_of(grove, totals)))
    least = 4.0 * bound * bound if grove.values else SMALLEST_GAIN
    lead = 1.0 - second / best if grove.values and best > 0.0 else best - second
    if best >= least and (lead > bound or bound < TIE):
        split(grove, block, node, chosen, threshold)
        for child in (grove.used[block] - 2, grove.used[block] - 1):
            counts = grove.nodes[block, child, COUNTS:BY_COUNT].copy()
            begin(grove, block, child, columns, seed)
            grove.nodes[block, child, COUNTS:BY_COUNT] = counts


@kernel
def split(grove: Grove, block: int, node: int, chosen: int, threshold: float) -> None:
    """Give a leaf two children, which begin with what its observers expect of them."""
    record, totals = grove.nodes[block, node], grove.totals[block, node]
    seen, at = grove.observers[block, node, chosen], grove.used[block]
    left, right = grove.nodes[block, at, COUNTS:BY_COUNT], grove.nodes[block, at + 1, COUNTS:BY_COUNT]
    if grove.values:
        weight, off = in_bins(seen, threshold, totals[1])
        left[0], left[1] = weight, totals[1] + off / weight
        right[0], right[1] = totals[0] - weight, totals[1] - off / (totals[0] - weight)
    else:
        for label in range(left.shape[0]):
            left[label] = min(below(seen, label, threshold), totals[label])
            right[label] = totals[label] - left[label]
    record[FEATURE] = grove.subset[block, node, chosen]
    record[THRESHOLD] = threshold
    record[LEFT], record[RIGHT] = at, at + 1
    grove.used[block] += 2


@kernel
def grow(
    grove: Grove, habits: Habits, block: int, row: NDArray[np.float32], label: float, weight: float
) -> None:
    """VFDT's step (Domingos & Hulten 2000): count the row at its leaf; every `grace` rows, try to split it."""
    leaf = find(grove.nodes[block], row)
    if not (habits.adaptive or grove.values):
        compare(grove, block, leaf, row, int(label))
    absorb(grove, block, leaf, row, label, weight)
    totals = grove.totals[block, leaf]
    if rows_of(grove, totals) - totals[TRIED] >= habits.grace:
        totals[TRIED] = rows_of(grove, totals)
        attempt(grove, block, leaf, row.shape[0], habits.confidence, habits.seed)


@kernel
def worse(watch: NDArray[np.float64], wrong: float) -> int:
    """Whether a tree errs more than it used to: 0 no, 1 perhaps, 2 yes. HDDM with averages (Frías-Blanco 2015).

    The share of errors up to now is compared with that up to the row where it was smallest.
    """
    watch[TOTAL] += 1.0
    watch[WRONG] += wrong
    total, share = watch[TOTAL], watch[WRONG] / watch[TOTAL]
    slack = math.sqrt(-math.log(DRIFT) / 2.0)
    best_total = watch[BEST_TOTAL]
    if best_total == 0.0 or share + slack / math.sqrt(total) <= (
        watch[BEST_WRONG] / best_total + slack / math.sqrt(best_total)
    ):
        watch[BEST_TOTAL], watch[BEST_WRONG] = total, watch[WRONG]
        return 0
    spread = math.sqrt((total - best_total) / (best_total * total) / 2.0)
    rise = share - watch[BEST_WRONG] / best_total
    if rise >= spread * math.sqrt(math.log(2.0 / DRIFT)):
        return 2
    return 1 if rise >= spread * math.sqrt(math.log(2.0 / WARNING)) else 0


@kernel
def error(grove: Grove, block: int, row: NDArray[np.float32], label: float, unit: float) -> float:
    """How wrong a tree is about a row, from 0 to 1: whether it names another class; of a value that is off by e,
    e / (e + unit).
    """
    record = grove.nodes[block, find(grove.nodes[block], row)]
    if grove.values:
        off = abs(label - record[COUNTS + 1])
        return float(off / (off + unit))
    return 1.0 if np.argmax(record[COUNTS:BY_COUNT]) != int(label) else 0.0


@kernel
def look_after(
    grove: Grove, tree: int, row: NDArray[np.float32], label: float, unit: float, seed: int
) -> None:
    """A forest's care for one tree before it learns a row (Gomes et al. 2017).

    When it may have become worse, another is grown beside it; when it has, that one takes its place.
    """
    watch, blocks = grove.watch[tree], grove.blocks[tree]
    state = worse(watch, error(grove, blocks[0], row, label, unit))
    if state == 0 or (state == 1 and watch[BACKGROUND] == 1.0):
        return
    if watch[BACKGROUND] == 0.0:
        plant(grove, blocks[1], row.shape[0], seed)
        watch[BACKGROUND] = 1.0
    if state == 2:
        blocks[0], blocks[1] = blocks[1], blocks[0]
        watch[:] = 0.0


@kernel
def learn(
    grove: Grove,
    habits: Habits,
    rows: NDArray[np.float32],
    label: NDArray[np.float32],
    votes: NDArray[np.float32],
    before: int,
    unit: float,
) -> None:
    """All trees learn rows [n, F] with labels and weights [n] in order; `before` rows were learned so far.

    `unit` is the standard deviation of labels that are values.
    """
    for at in range(rows.shape[0]):
        row, truth = rows[at], float(label[at])
        for tree in range(grove.blocks.shape[0]):
            weight = float(votes[at])
            if habits.adaptive:
                look_after(grove, tree, row, truth, unit, habits.seed)
                weight *= float(poisson(uniform(habits.seed, before + at, tree)))
            if weight == 0.0:
                continue
            grow(grove, habits, grove.blocks[tree, 0], row, truth, weight)
            if grove.watch[tree, BACKGROUND] == 1.0:
                grow(grove, habits, grove.blocks[tree, 1], row, truth, weight)
