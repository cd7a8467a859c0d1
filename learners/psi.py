"""Population stability index: the bins of a reference, the index against it, and its sampling noise."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

QUANTILES = 10  # bins of a number column, besides: below and above all of the reference, and missing
TOP_CATEGORIES = 16  # the most frequent values of the reference have a bin of their own
OTHER_BUCKETS = 8  # all other values share these, by hash
NUMBER_BINS = QUANTILES + 3
CATEGORY_BINS = TOP_CATEGORIES + 1 + OTHER_BUCKETS
MISSING_NUMBER, MISSING_CATEGORY = NUMBER_BINS - 1, TOP_CATEGORIES

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


class Bins:
    """Bins of every column, numbered through: numbers first, then categories, each `NUMBER_BINS` or `CATEGORY_BINS`.

    A number column has bins between the quantiles of its reference: [below all] ... [above all], bins that its few
    values do not fill, and at the end [missing]. A category has one for each frequent value of the reference, one for
    missing (0), and a few by hash for all others. All columns are coded together, since a call for each costs more
    than the work.
    """

    def __init__(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> None:
        self._edges = np.full((numbers.shape[1], QUANTILES + 1), np.inf, np.float32)
        self._top = np.zeros((categories.shape[1], TOP_CATEGORIES), np.int64)
        sizes = [NUMBER_BINS] * numbers.shape[1] + [CATEGORY_BINS] * categories.shape[1]
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(
            np.int64
        )  # first bin of each column
        self.total = sum(sizes)
        self.used = np.ones(self.total, np.bool_)  # bins that a value can fall into
        for at, column in enumerate(numbers.T):
            edges = _edges(column)
            self._edges[at, : len(edges)] = edges
            self.used[self.starts[at] + len(edges) + 1 : self.starts[at] + MISSING_NUMBER] = False
        for at, values in enumerate(categories.T):
            top = _frequent(values)
            self._top[at, : len(top)] = top
            first = self.starts[numbers.shape[1] + at]
            self.used[first + len(top) : first + MISSING_CATEGORY] = False
        self.counts = np.add.reduceat(self.used.astype(np.int64), self.starts)  # used bins of each column
        missing = [MISSING_NUMBER] * numbers.shape[1] + [MISSING_CATEGORY] * categories.shape[1]
        self.missing = self.starts + np.array(missing, np.int64)  # the bin of what is missing, of each column

    def edges(self, column: int) -> list[float]:
        """The finite edges of a number column, rising."""
        return [float(edge) for edge in self._edges[column] if np.isfinite(edge)]

    def codes(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> Codes:
        """Bin of each value [n, columns]. A value equal to an edge belongs below it, so that a frequent value is one
        bin.
        """
        place = np.zeros(numbers.shape, np.int64)
        for edges in self._edges.T:
            place += numbers > edges
        place[np.isnan(numbers)] = MISSING_NUMBER
        other = (categories.view(np.uint64) % np.uint64(OTHER_BUCKETS)).astype(np.int64)
        kind = MISSING_CATEGORY + 1 + other
        for at, top in enumerate(self._top.T):
            kind[categories == top] = at
        kind[categories == 0] = MISSING_CATEGORY
        return np.concatenate([place, kind], axis=1) + self.starts

    def histogram(self, codes: Codes) -> Floats:
        """How many values each bin has [bins]."""
        return np.bincount(codes.ravel(), minlength=self.total).astype(np.float64)

    def shares(self, histogram: Floats) -> Floats:
        """Share of each bin within its column [bins]; half an example is added to each, so that none is empty."""
        padded = np.where(self.used, histogram + 0.5, 0.0)
        shares: Floats = padded / self.spread(np.add.reduceat(padded, self.starts))
        return shares

    def spread(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """One value for each column [columns] as one for each of its bins [bins]."""
        return np.repeat(values, np.diff(np.append(self.starts, self.total)))

    def psi(self, current: Floats, reference: Floats) -> Floats:
        """Population stability index of each column [columns] for two lists of shares [bins]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(self.used, (current - reference) * np.log(current / reference), 0.0)
        found: Floats = np.add.reduceat(each, self.starts)
        return found


def _edges(column: NDArray[np.float32]) -> NDArray[np.float32]:
    """Edges of a number column: just below all of the reference, its inner quantiles, its largest; none twice."""
    known = np.sort(column[~np.isnan(column)])
    if not len(known):
        return known
    inner = known[(np.arange(1, QUANTILES) * len(known)) // QUANTILES]
    below = np.nextafter(known[:1], np.float32(-np.inf))
    return np.unique(np.concatenate([below, inner, known[-1:]]))


def _frequent(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most frequent values of the reference, in their order."""
    found, counts = np.unique(values[values != 0], return_counts=True)
    return np.sort(found[np.argsort(-counts, kind="stable")[:TOP_CATEGORIES]])


def psi_noise(bins: int, current: int, reference: int, probability: float) -> float:
    """PSI that two samples of one distribution pass with this probability, for these sizes and bins.

    Under no change PSI is about (1/current + 1/reference) times chi-square with bins - 1 degrees of freedom
    (Yurdakul 2018, "Statistical properties of population stability index"); its quantile by Wilson and
    Hilferty.
    """
    freedom = bins - 1
    spread = 2.0 / (9.0 * freedom)
    z = NormalDist().inv_cdf(1.0 - probability)
    return (1.0 / current + 1.0 / reference) * freedom * (1.0 - spread + z * math.sqrt(spread)) ** 3
