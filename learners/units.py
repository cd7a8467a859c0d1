"""Whether a column is what it was in other units: euros that became cents, degrees Celsius that became Fahrenheit.

The values after a change are the values before it times a factor, plus an offset, if undoing that makes the two
distributions alike (the two-sample statistic of Kolmogorov and Smirnov says how much).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 50  # values on both sides, before anything is said
LEAST_FACTOR = 1.5  # a smaller one is no other unit
SHARES = np.linspace(0.05, 0.95, 19)
USUAL = (1.8, 2, 7, 12, 24, 32, 60, 365, 1_024, 3_600, 86_400)
NEAR, TEN = 0.05, 0.2  # how near a factor must be to one of these; to a power of ten, which it mostly is
ALIKE = 0.05  # distance of two distributions that are alike, above that of two samples of one


@dataclass(frozen=True, slots=True)
class Rescaled:
    """Values after a change are `factor` times those before it, plus `offset`."""

    factor: float
    offset: float

    @property
    def words(self) -> str:
        """Such as "about 100 times larger"."""
        if self.offset:
            sign = "plus" if self.offset > 0 else "minus"
            return f"about {_short(self.factor)} times what it was {sign} {_short(abs(self.offset))}"
        if self.factor < 1.0:
            return f"about {_short(1.0 / self.factor)} times smaller"
        return f"about {_short(self.factor)} times larger"


def distance(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """The Kolmogorov-Smirnov distance of two samples, from 0 to 1."""
    first, second = np.sort(first), np.sort(second)
    both = np.concatenate([first, second])
    below = [np.searchsorted(each, both, side="right") / len(each) for each in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def rescaled(before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]]) -> Rescaled | None:
    """The change of units that explains `after` [n] from `before` [m], where there is one. NaN are left out.

    A factor alone is tried first; with an offset, the factor must be that of another unit too: a distribution that
    merely moved is not said to be in other units.
    """
    before, after = (
        before[np.isfinite(before)].astype(np.float64),
        after[np.isfinite(after)].astype(np.float64),
    )
    if min(len(before), len(after)) < FEWEST or len(np.unique(after)) < 3:
        return None
    noise = 1.63 * math.sqrt(
        1.0 / len(before) + 1.0 / len(after)
    )  # two samples of one pass it once in a hundred
    left, right = np.quantile(before, SHARES), np.quantile(after, SHARES)
    for found in (_factor(left, right), _affine(left, right)):
        if found is None or max(found.factor, 1.0 / found.factor) < LEAST_FACTOR:
            continue
        undone = (after - found.offset) / found.factor
        if distance(before, undone) <= noise + ALIKE < distance(before, after):
            return found
    return None


def _factor(left: NDArray[np.float64], right: NDArray[np.float64]) -> Rescaled | None:
    known = left != 0.0
    ratio = float(np.median(right[known] / left[known])) if known.any() else 0.0
    return Rescaled(ratio, 0.0) if ratio > 0.0 else None


def _affine(left: NDArray[np.float64], right: NDArray[np.float64]) -> Rescaled | None:
    spread = float(((left - left.mean()) ** 2).sum())
    factor = float(((left - left.mean()) * right).sum()) / spread if spread else 0.0
    return Rescaled(factor, float(np.median(right - factor * left))) if factor > 0.0 else None


def _short(value: float) -> str:
    """The factor between two usual units that is near, a power of ten where it might be one, or else two digits."""
    ten = 10.0 ** round(math.log10(value))
    if ten > 1.0 and abs(value / ten - 1.0) < TEN:
        return f"{ten:,.0f}"
    near = min(USUAL, key=lambda each: abs(math.log(value / each)))
    return f"{near:,}" if abs(value / near - 1.0) < NEAR else f"{value:.2g}"
