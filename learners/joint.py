"""How the inputs hang together: a change that no column shows by itself, such as two that no longer go up together.

Each pair of columns has four correlations within a block: of the ranks, of the squares of how far these are from the
middle, and of one with the other (the first two Legendre polynomials of a copula, Kallenberg & Ledwina 1999). Ranks are
those within the block, so what moves a column and keeps its order, such as another unit, is no change here. The values
of a category have the order of their hashes. What shows in three columns only, and in no two of them, is not seen.

A block is tested as in "Sequential predictive two-sample and independence testing" (Podkopaev & Ramdas 2023): what is
known of the blocks before makes a direction in which the newest ones differ from the reference, and the next block must
go on in it. The direction is learned from one half of the reference and tested against the other, and the value is in
units of what the reference's blocks do in it (cross-MMD, Shekhar, Kim & Ramdas 2022): without a change its mean is 0
and its deviation 1, whatever was learned. That makes it a statistic like the others of `learners.shift`, whose ranks
are bet on against the budget that all of them share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from learners.watched import Watched

GROUP = 64  # columns of which all pairs are watched; more are dealt into groups, pairs within each
FEWEST_ROWS = 30  # of a block: correlations of fewer say nothing
TELLING = 4.0  # deviations by which a correlation has changed for its columns to be named
PAIRS, PART = (
    5,
    0.05,
)  # that are named at most; and how much of the first one's part in the change each has at least

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


def scores(numbers: Singles, categories: NDArray[np.int64]) -> Floats:
    """Rank r of each value among its column's known ones, then r squared [2 columns, n], all whole numbers.

    r is twice the rank less what makes its mean 0; equal values share theirs. What is missing has the means of both.
    Whole numbers so that sums of their products are exact: how a processor adds up does not matter.
    """
    mixed = (categories.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.float32)
    mixed[categories == 0] = np.nan
    values = np.concatenate([numbers.T, mixed.T])
    columns, rows = values.shape
    order = np.argsort(values, axis=1)
    order += np.arange(0, values.size, rows)[:, None]  # places in the whole of it
    ranked = values.ravel()[order]
    places = np.arange(rows, dtype=np.int32)
    other = ranked[:, 1:] != ranked[:, :-1]  # than the one before it
    first, last = np.zeros(values.shape, np.int32), np.full(values.shape, rows - 1, np.int32)
    first[:, 1:] = other * places[1:]
    last[:, :-1] -= other * places[:0:-1]
    first = np.maximum.accumulate(first, axis=1)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    missing = np.isnan(values)
    known = rows - missing.sum(axis=1, keepdims=True)
    found = np.empty((2 * columns, rows))
    rank, square = found[:columns], found[columns:]
    rank.ravel()[order] = first + last + 1 - known
    rank[missing] = 0.0
    np.multiply(rank, rank, out=square)
    middle = np.floor(square.sum(axis=1, keepdims=True) / np.maximum(known, 1))
    np.copyto(square, middle, where=missing)
    return found


class Pairs:
    """The pairs of columns, four correlations each: D in all.

    `left` and `right` [D] are the columns that each is of; `straight` [D]: whether of ranks with ranks.
    """

    def __init__(self, columns: int) -> None:
        dealt = np.arange(columns)
        if columns > GROUP:
            np.random.default_rng(0).shuffle(dealt)
        self._groups = np.array_split(dealt, -(-columns // GROUP))
        self._places = []
        left, right, straight = [], [], []
        for group in self._groups:
            size = len(group)
            one, two = np.triu_indices(2 * size, 1)
            apart = one % size != two % size  # a rank and its own square are no pair
            one, two = one[apart], two[apart]
            self._places.append(one * 2 * size + two)  # in a matrix of all products
            left.append(group[one % size])
            right.append(group[two % size])
            straight.append(two < size)
        self.left, self.right = np.concatenate(left), np.concatenate(right)
        self.straight = np.concatenate(straight)

    def correlations(self, ranked: Floats) -> Singles:
        """Of rows of `scores`, [D]; 0 where a column has one value only."""
        found = []
        for group, places in zip(self._groups, self._places, strict=True):
            part = _of_group(ranked, group)
            sums = part.sum(axis=1)
            products = part.shape[1] * (part @ part.T) - np.outer(sums, sums)
            spread = np.sqrt(np.diag(products))
            scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0.0)
            products *= scale[:, None]
            products *= scale
            found.append(products.ravel()[places])
        return np.concatenate(found, dtype=np.float32)

    def along(self, ranked: Floats, direction: Singles) -> Floats:
        """How far each row of `scores` goes in a direction [D]: its mean is that of the correlations."""
        total = np.zeros(ranked.shape[1])
        for group, places in zip(self._groups, self._places, strict=True):
            part = _of_group(ranked, group)
            part = part - part.mean(axis=1, keepdims=True)
            spread = part.std(axis=1, keepdims=True)
            part = np.divide(part, spread, out=np.zeros(part.shape), where=spread > 0.0)
            weights = np.zeros((len(part), len(part)))
            weights.ravel()[places], direction = direction[: len(places)], direction[len(places) :]
            total += ((weights @ part) * part).sum(axis=0)
        return total


def _of_group(ranked: Floats, group: NDArray[np.int64]) -> Floats:
    """Ranks and squares of some columns."""
    return ranked if len(group) * 2 == len(ranked) else ranked[np.append(group, group + len(ranked) // 2)]


class Reference:
    """The correlations of the blocks [blocks, D] that say what is usual. `able` [D]: which of them may be looked at.

    `delta` is the probability that any of them passes its noise by chance.
    """

    def __init__(self, blocks: Singles, able: NDArray[np.bool_], delta: float) -> None:
        self._blocks = blocks
        self._one, self._other = blocks[::2].mean(axis=0), blocks[1::2].mean(axis=0)
        self.usual = blocks.mean(axis=0)
        self.noise = blocks.std(axis=0)  # of one block
        known = able & (self.noise > 1e-4)
        self._weight = np.divide(1.0, self.noise, out=np.zeros_like(self.noise), where=known)
        self._weights = self._weight**4
        self._often = NormalDist().inv_cdf(1.0 - delta / (2.0 * len(able)))  # deviations

    def direction(self, change: Singles) -> Singles:
        """What tells blocks that changed so [D] from those of the reference, of length 1; zeros if nothing changed.

        The weight of a correlation is the cube of its change in deviations, so that a few that change are enough.
        """
        found: Singles = change * change * change * self._weights
        length = np.sqrt(found @ found)
        return found / length if length > 0.0 else found

    def strangeness(self, before: Singles, block: Singles) -> float:
        """How far a block [D] goes where the blocks before it [k, D] went, in deviations of the reference's blocks."""
        direction = self.direction(before.mean(axis=0) - self._one)
        deviation = float((self._blocks @ direction).std())
        return float((block - self._other) @ direction) / deviation if deviation > 0.0 else 0.0

    def deviations(self, change: Singles, blocks: float) -> Singles:
        """A change [D] of the mean of so many blocks, in deviations; 0 where it may not be looked at."""
        found: Singles = change * self._weight * np.float32(np.sqrt(blocks))
        return found

    def effect(self, window: Singles) -> float:
        """How much the correlation changed most that did in a window [blocks, D], beyond its noise; at least 0."""
        noise = self.noise * np.float32(self._often * math.sqrt(1.0 / len(window) + 1.0 / len(self._blocks)))
        beyond = np.abs(window.mean(axis=0) - self.usual) - noise
        return max(0.0, float(beyond.max(where=self._weight > 0.0, initial=0.0)))


@dataclass(frozen=True, slots=True)
class Related:
    """A pair of columns that relate otherwise than before, and the part that it has in the whole change."""

    left: int
    right: int
    share: float
    before: float  # rank correlation
    after: float
    straight: bool  # whether that is what changed most


class JointWatch:
    """Correlations of the blocks that a `ShiftDetector` keeps, as many and in their order, and their reference."""

    def __init__(self, columns: int, delta: float) -> None:
        self.pairs, self._delta = Pairs(columns), delta
        self._blocks: list[Singles] = []
        self.reference: Reference | None = None

    def add(self, block: Watched) -> None:
        """The next block."""
        self._blocks.append(self.pairs.correlations(self.ranked(block)))

    def keep(self, blocks: int) -> None:
        """Only the newest blocks; with 0 the reference is forgotten too."""
        self._blocks = self._blocks[len(self._blocks) - blocks :] if blocks else []
        if not blocks:
            self.reference = None

    def refer(self, start: int, end: int, able: NDArray[np.bool_]) -> None:
        """Make the reference of the blocks from `start` to `end`. `able` [columns]: which may be looked at."""
        both = able[self.pairs.left] & able[self.pairs.right]
        self.reference = Reference(np.stack(self._blocks[start:end]), both, self._delta)

    def strangeness(self, before: int) -> float:
        """Of the newest block, after so many others since the reference; NaN after none."""
        if self.reference is None or not before:
            return np.nan
        return self.reference.strangeness(np.stack(self._blocks[-1 - before : -1]), self._blocks[-1])

    def effect(self, blocks: int) -> float:
        """Of the newest blocks."""
        return self.reference.effect(np.stack(self._blocks[-blocks:])) if self.reference else np.nan

    @staticmethod
    def ranked(rows: Watched) -> Floats:
        """The `scores` of rows; of the model's score, their last number, none: how it relates changes as it learns."""
        return scores(rows.numbers[:, :-1], rows.categories)

    def onset(self, newest: Watched, blocks: int) -> int:
        """The most likely first row of the new regime among the newest, whose last half is `blocks` blocks.

        As in `Sides.onset`, with normal likelihoods of how far a row goes in the direction of the change.
        """
        assert self.reference is not None
        change = np.mean(self._blocks[-blocks:], axis=0) - self.reference.usual
        direction = self.reference.direction(change)
        along = self.pairs.along(self.ranked(newest), direction)
        before, after = float(self.reference.usual @ direction), along[len(along) // 2 :].mean()
        ratio = (along - (before + after) / 2.0) * (after - before)
        return int(np.argmax(np.cumsum(ratio[::-1])[::-1]))

    def related(self, after: Watched, block: int) -> list[Related]:
        """The pairs that relate otherwise in these rows, the largest part in it first. A block has `block` rows."""
        assert self.reference is not None
        now = self.pairs.correlations(self.ranked(after))
        usual, pairs = self.reference.usual, self.pairs
        moved = self.reference.deviations(now - usual, len(after) / block)
        part = moved.astype(np.float64) ** 4
        limit = min(TELLING, float(np.abs(moved).max()))  # the largest is always told
        keys = np.minimum(pairs.left, pairs.right) * len(now) + np.maximum(pairs.left, pairs.right)
        _, which = np.unique(keys, return_inverse=True)
        shares = np.bincount(which, part) / max(part.sum(), 1e-300)
        found = []
        told = np.unique(which[np.abs(moved) >= limit])
        told = told[shares[told] >= PART * shares.max()]
        for pair in told[np.argsort(-shares[told], kind="stable")][:PAIRS].tolist():
            mine = np.flatnonzero(which == pair)
            straight = mine[pairs.straight[mine]][0]
            most = mine[np.abs(moved[mine]).argmax()]
            one, two = sorted((int(pairs.left[straight]), int(pairs.right[straight])))
            then, here = float(usual[straight]), float(now[straight])
            found.append(Related(one, two, float(shares[pair]), then, here, bool(most == straight)))
        return found


def cells(rows: Watched, pairs: Sequence[tuple[int, int]]) -> list[Floats]:
    """Share of rows in each of the 16 cells that the quarters of two columns' ranks make, for each pair of columns."""
    ranked = JointWatch.ranked(rows)
    quarter = np.floor(2.0 * (ranked[: len(ranked) // 2] / len(rows) + 1.0)).astype(np.int64)
    counts = [np.bincount(quarter[one] * 4 + quarter[two], minlength=16) for one, two in pairs]
    return [(count.astype(np.float64) + 0.5) / (len(rows) + 8.0) for count in counts]
