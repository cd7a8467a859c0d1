"""Population stability index: the bins of a reference, the index against it, and its sampling noise."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = 10  # bins of a number column, besides: below and above all of the reference, and missing
TOP_CATEGORIES = 16  # the most frequent values of the reference have a bin of their own
OTHER_BUCKETS = 8  # all other values share these, by hash

Codes = NDArray[np.int64]


class NumberBins:
    """Bins between the quantiles of the reference: [below all] ... [above all] [missing]."""

    def __init__(self, reference: NDArray[np.float32]) -> None:
        known = np.sort(reference[~np.isnan(reference)])
        if len(known):
            inner = known[(np.arange(1, QUANTILES) * len(known)) // QUANTILES]
            below = np.nextafter(known[:1], np.float32(-np.inf))
            known = np.unique(np.concatenate([below, inner, known[-1:]]))
        self._edges = known
        self.count = len(known) + 2

    def codes(self, values: NDArray[np.float32]) -> Codes:
        """Bin of each value [n]. A value equal to an edge belongs below it, so that a frequent value is one
        bin.
        """
        found = np.searchsorted(self._edges, values, side="left")
        return np.where(np.isnan(values), self.count - 1, found)


class CategoryBins:
    """A bin for each frequent value of the reference, one for missing (0), a few by hash for all others."""

    def __init__(self, reference: NDArray[np.int64]) -> None:
        values, counts = np.unique(reference[reference != 0], return_counts=True)
        self._top = np.sort(values[np.argsort(-counts, kind="stable")[:TOP_CATEGORIES]])
        self.count = len(self._top) + 1 + OTHER_BUCKETS

    def codes(self, values: NDArray[np.int64]) -> Codes:
        """Bin of each value [n]."""
        top = len(self._top)
        other = top + 1 + (values.view(np.uint64) % np.uint64(OTHER_BUCKETS)).astype(np.int64)
        if not top:
            return np.where(values == 0, 0, other)
        place = np.minimum(np.searchsorted(self._top, values), top - 1)
        return np.where(values == 0, top, np.where(self._top[place] == values, place, other))


def shares(codes: Codes, bins: int) -> NDArray[np.float64]:
    """Share of each bin [bins]; half an example is added to each, so that none is empty."""
    counts = np.bincount(codes, minlength=bins).astype(np.float64)
    return (counts + 0.5) / (len(codes) + 0.5 * bins)


def psi(current: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Population stability index of two lists of shares [bins]; 0 when equal, 0.2 is called a shift."""
    return float(np.sum((current - reference) * np.log(current / reference)))


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


class Reference:
    """The bins of each column, and the share of each bin, in the rows that stand for "as before"."""

    def __init__(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> None:
        self.rows = len(numbers)
        self.bins: list[NumberBins | CategoryBins] = [NumberBins(column) for column in numbers.T]
        self.bins += [CategoryBins(column) for column in categories.T]
        codes = self.codes(numbers, categories)
        self.shares = [shares(code, bins.count) for code, bins in zip(codes, self.bins, strict=True)]

    def codes(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> list[Codes]:
        """Bins of every value, column by column: numbers, then categories."""
        columns: list[NDArray[Any]] = [*numbers.T, *categories.T]
        return [bins.codes(column) for bins, column in zip(self.bins, columns, strict=True)]
