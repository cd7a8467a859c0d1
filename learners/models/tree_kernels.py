"""Growing Hoeffding trees, a row at a time, compiled.

Trees live in the blocks of a `Grove`: B blocks of K nodes, of which each leaf observes m of the F columns. A
node's record is float32 [8], see the constants. Children have higher numbers than their parent, so every path
ends. A column that is unknown (NaN) is above every threshold.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

# The last two: the log loss (of late) of the leaf's share of positives, and that of its naive Bayes.
FEATURE, THRESHOLD, LEFT, RIGHT, NEGATIVES, POSITIVES, BY_COUNT, BY_BAYES, RECORD = range(9)
LEAF = -1.0  # the feature of a node without children

# What is remembered of a column at a leaf: for each class its weight, mean and sum of squared deviations; then
# the smallest and the largest value.
WEIGHT, MEAN, SQUARES, SMALLEST, LARGEST, OBSERVED = 0, 1, 2, 6, 7, 8
NEVER_NEGATIVE = (WEIGHT, SQUARES, WEIGHT + 3, SQUARES + 3)

LEAF_ROWS = 5_000.0  # weight that a leaf's counts remember: older rows fade
LOSS_ROWS = 500.0  # rows over which a leaf compares its two ways to guess
LEAST_VARIANCE = 1e-4
# Nats that the columns of a leaf may add: they overlap, and naive Bayes takes them for independent.
MOST_SAID = 4.0
CUTS = 10  # thresholds that are tried for a column
TIE = 0.05  # once the bound is this small, the best split is taken even if another is as good
SMALLEST_GAIN = 0.001  # bits; a split that gains less is noise
SMALLEST_BRANCH = 0.01  # share of the rows that each branch must get
POISSON = 6.0  # mean weight of a row in a tree of a forest (Bifet, Holmes & Pfahringer 2010)
MOST_WEIGHT = 30
WARNING, DRIFT = 5e-3, 1e-4  # confidence that a tree has become worse: grow another beside it; replace it
TOTAL, WRONG, BEST_TOTAL, BEST_WRONG, BACKGROUND, WATCHED = range(6)  # a tree's record in `Grove.watch`


class Grove(NamedTuple):
    """The arrays that the kernels write, for B blocks and T trees.

    `nodes` float32 [B, K, 8]; `observers` float32 [B, K, m, 8]; `totals` float64 [B, K, 3]: weight of negatives
    and positives since the node began, and of both at the last attempt to split; `subset` int32 [B, K, m]: the
    observed columns; `used` int32 [B]: nodes in use; `births` int64 [B]: which planting of the block this is;
    `blocks` int32 [T, 2]: the tree's block, and that of the one grown beside it; `watch` float64 [T, 5].
    """

    nodes: NDArray[np.float32]
    observers: NDArray[np.float32]
    totals: NDArray[np.float64]
    subset: NDArray[np.int32]
    used: NDArray[np.int32]
    births: NDArray[np.int64]
    blocks: NDArray[np.int32]
    watch: NDArray[np.float64]


def kernel(function: Any) -> Any:
    """Compiles at the first call and keeps the machine code on disk, so that only the first process waits."""
    return njit(cache=True, nogil=True, error_model="numpy")(function)


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
    """The leaf of one tree [K, 8] that a row [F] falls into."""
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
    grove: Grove, block: int, node: int, row: NDArray[np.float32], positive: int, weight: float
) -> None:
    """Count a row at its leaf and in the leaf's observers (West 1979)."""
    record, totals = grove.nodes[block, node], grove.totals[block, node]
    record[NEGATIVES + positive] += weight
    both = record[NEGATIVES] + record[POSITIVES]
    if both > LEAF_ROWS:
        record[NEGATIVES] *= LEAF_ROWS / both
        record[POSITIVES] *= LEAF_ROWS / both
    totals[positive] += weight
    for at in range(grove.subset.shape[2]):
        value = row[grove.subset[block, node, at]]
        if not math.isfinite(value):
            continue
        seen = grove.observers[block, node, at]
        new = seen[0] + seen[3] == 0.0
        seen[SMALLEST] = value if new else min(seen[SMALLEST], value)
        seen[LARGEST] = value if new else max(seen[LARGEST], value)
        first = 3 * positive
        seen[first] += weight
        gap = value - seen[first + 1]
        seen[first + 1] += gap * weight / seen[first]
        seen[first + 2] += weight * gap * (value - seen[first + 1])


@kernel
def said(observers: NDArray[np.float32], subset: NDArray[np.int32], row: NDArray[np.float32]) -> float:
    """Log of how much likelier the observed columns of a row are among the positives of a leaf: naive Bayes."""
    total = 0.0
    for at in range(subset.shape[0]):
        seen, value = observers[at], row[subset[at]]
        if seen[WEIGHT] < 2.0 or seen[WEIGHT + 3] < 2.0 or not math.isfinite(value):
            continue
        for first, sign in ((0, -1.0), (3, 1.0)):
            variance = seen[first + SQUARES] / seen[first + WEIGHT] + LEAST_VARIANCE
            gap = value - seen[first + MEAN]
            total -= sign * 0.5 * (gap * gap / variance + math.log(variance))
    return min(max(total, -MOST_SAID), MOST_SAID)


@kernel
def compare(grove: Grove, block: int, node: int, row: NDArray[np.float32], positive: int) -> None:
    """Note the loss of a leaf's two ways to guess at a row before it is counted (after Gama et al. 2003)."""
    record = grove.nodes[block, node]
    count = math.log((record[POSITIVES] + 1.0) / (record[NEGATIVES] + 1.0))
    bayes = count + said(grove.observers[block, node], grove.subset[block, node], row)
    for column, logit in ((BY_COUNT, count), (BY_BAYES, bayes)):
        loss = math.log1p(math.exp(-logit if positive == 1 else logit))
        record[column] += (loss - record[column]) / LOSS_ROWS


@kernel
def score(
    grove: Grove,
    active: NDArray[np.int64],
    rows: NDArray[np.float32],
    base: float,
    prior: float,
    out: NDArray[np.float32],
) -> None:
    """The mean over the trees in blocks `active` [T] of the probability at each row's leaf, into `out` [n].

    A leaf has `prior` rows of the `base` rate on top of its own.
    """
    for at in range(rows.shape[0]):
        total = 0.0
        for block in active:
            leaf = find(grove.nodes[block], rows[at])
            record = grove.nodes[block, leaf]
            positives = record[POSITIVES] + prior * base
            negatives = record[NEGATIVES] + prior * (1.0 - base)
            if record[BY_BAYES] < record[BY_COUNT]:
                more = said(grove.observers[block, leaf], grove.subset[block, leaf], rows[at])
                positives *= math.exp(more)
            total += positives / (positives + negatives)
        out[at] = total / len(active)


@kernel
def below(seen: NDArray[np.float32], positive: int, threshold: float) -> float:
    """Weight of a class at or below a threshold, if its values were normally distributed."""
    weight, mean = seen[3 * positive], seen[3 * positive + 1]
    if weight == 0.0:
        return 0.0
    spread = math.sqrt(seen[3 * positive + 2] / weight)
    if spread == 0.0:
        return float(weight) if mean <= threshold else 0.0
    return float(weight * 0.5 * (1.0 + math.erf((threshold - mean) / (spread * math.sqrt(2.0)))))


@kernel
def entropy(negatives: float, positives: float) -> float:
    """Bits of a split into two classes."""
    both, bits = negatives + positives, 0.0
    for part in (negatives, positives):
        if part > 0.0:
            bits -= part / both * math.log2(part / both)
    return bits


@kernel
def best_cut(seen: NDArray[np.float32], negatives: float, positives: float) -> tuple[float, float]:
    """Gain in bits, and threshold, of a column's best split among evenly spaced ones; (0, 0) if none is."""
    best, threshold, both = 0.0, 0.0, negatives + positives
    low, high = seen[SMALLEST], seen[LARGEST]
    for cut in range(1, CUTS + 1):
        # In float32, as the record will hold it.
        at = float(np.float32(low + (high - low) * cut / (CUTS + 1)))
        left_negatives = min(below(seen, 0, at), negatives)
        left_positives = min(below(seen, 1, at), positives)
        left = left_negatives + left_positives
        if left < SMALLEST_BRANCH * both or both - left < SMALLEST_BRANCH * both:
            continue
        right_negatives, right_positives = negatives - left_negatives, positives - left_positives
        after = left * entropy(left_negatives, left_positives)
        after += (both - left) * entropy(right_negatives, right_positives)
        gain = entropy(negatives, positives) - after / both
        if gain > best:
            best, threshold = gain, at
    return best, threshold


@kernel
def attempt(grove: Grove, block: int, node: int, columns: int, confidence: float, seed: int) -> None:
    """Split a leaf if its best column is better than the next, and than none, by Hoeffding's bound."""
    negatives, positives = grove.totals[block, node, 0], grove.totals[block, node, 1]
    if negatives == 0.0 or positives == 0.0 or grove.used[block] + 2 > grove.nodes.shape[1]:
        return
    best, second, threshold, chosen = 0.0, 0.0, 0.0, 0
    for at in range(grove.subset.shape[2]):
        gain, cut = best_cut(grove.observers[block, node, at], negatives, positives)
        if gain > best:
            best, second, threshold, chosen = gain, best, cut, at
        elif gain > second:
            second = gain
    # The gain of two classes lies between 0 and 1 bit.
    bound = math.sqrt(-math.log(confidence) / (2.0 * (negatives + positives)))
    if best >= SMALLEST_GAIN and (best - second > bound or bound < TIE):
        split(grove, block, node, chosen, threshold)
        for child in (grove.used[block] - 2, grove.used[block] - 1):
            counts = grove.nodes[block, child, NEGATIVES : POSITIVES + 1].copy()
            begin(grove, block, child, columns, seed)
            grove.nodes[block, child, NEGATIVES : POSITIVES + 1] = counts


@kernel
def split(grove: Grove, block: int, node: int, chosen: int, threshold: float) -> None:
    """Give a leaf two children, which begin with the counts that its observers expect of them."""
    record, totals = grove.nodes[block, node], grove.totals[block, node]
    left = grove.used[block]
    for positive in range(2):
        both = totals[positive]
        under = min(below(grove.observers[block, node, chosen], positive, threshold), both)
        grove.nodes[block, left, NEGATIVES + positive] = under
        grove.nodes[block, left + 1, NEGATIVES + positive] = both - under
    record[FEATURE] = grove.subset[block, node, chosen]
    record[THRESHOLD] = threshold
    record[LEFT], record[RIGHT] = left, left + 1
    grove.used[block] += 2


@kernel
def grow(
    grove: Grove,
    block: int,
    row: NDArray[np.float32],
    positive: int,
    weight: float,
    bayes: bool,
    grace: float,
    confidence: float,
    seed: int,
) -> None:
    """VFDT's step (Domingos & Hulten 2000): count the row at its leaf; every `grace` rows, try to split it."""
    leaf = find(grove.nodes[block], row)
    if bayes:
        compare(grove, block, leaf, row, positive)
    absorb(grove, block, leaf, row, positive, weight)
    totals = grove.totals[block, leaf]
    if totals[0] + totals[1] - totals[2] >= grace:
        totals[2] = totals[0] + totals[1]
        attempt(grove, block, leaf, row.shape[0], confidence, seed)


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
def look_after(grove: Grove, tree: int, row: NDArray[np.float32], positive: int, seed: int) -> None:
    """A forest's care for one tree before it learns a row (Gomes et al. 2017).

    When it may have become worse, another is grown beside it; when it has, that one takes its place.
    """
    watch, blocks = grove.watch[tree], grove.blocks[tree]
    record = grove.nodes[blocks[0], find(grove.nodes[blocks[0]], row)]
    guess = 1 if record[POSITIVES] > record[NEGATIVES] else 0
    state = worse(watch, 1.0 if guess != positive else 0.0)
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
    rows: NDArray[np.float32],
    label: NDArray[np.float32],
    votes: NDArray[np.float32],
    before: int,
    adaptive: bool,
    grace: float,
    confidence: float,
    seed: int,
) -> None:
    """All trees learn rows [n, F] with labels and weights [n] in order; `before` rows were learned so far.

    An `adaptive` grove is a forest: rows have random weights on top, trees are watched and replaced. In a single tree
    the leaves compare their two ways to guess.
    """
    for at in range(rows.shape[0]):
        row, positive = rows[at], int(label[at])
        for tree in range(grove.blocks.shape[0]):
            weight = float(votes[at])
            if adaptive:
                look_after(grove, tree, row, positive, seed)
                weight *= float(poisson(uniform(seed, before + at, tree)))
            if weight == 0.0:
                continue
            grow(grove, grove.blocks[tree, 0], row, positive, weight, not adaptive, grace, confidence, seed)
            if grove.watch[tree, BACKGROUND] == 1.0:
                grow(grove, grove.blocks[tree, 1], row, positive, weight, False, grace, confidence, seed)
