"""Anytime-valid evidence of many statistics at once, against one budget of false alarms: ranks, bets, and their sum.

Every block of a stream gives each statistic one value, the larger the stranger. A value is ranked among those of the
blocks before it. While blocks are exchangeable, the ranks are independent and uniform, whatever the statistic's
distribution is (conformal test martingales, Vovk et al. 2021), so a bet that pays a rank r from the top in proportion
to r^-a, with mean 1 over all ranks, is fair: an e-value. Bets are gathered as Shiryaev and Roberts do, R = (R + 1) e.
R minus the number of blocks is a supermartingale in what the statistic's own ranks tell, and so is a mean of such R
over exponents a: an e-detector (Shin, Ramdas & Rinaldo 2023). Its mean after t blocks is t at most: by a union bound,
however K statistics depend on each other, the chance that one of them reaches K times the budget within t blocks
without a change is at most t / budget: that is the correction for how many there are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXPONENTS = np.array([0.5, 1.0, 2.0])
MEMORY = 256  # values of each statistic that the next one is ranked among
LARGEST = 1e100  # of R: less is allowed, an overflow is not


def _harmonic() -> Floats:
    """Sum of r^-a over the ranks 1 to n, [MEMORY + 2, exponents]; row 0 is not used."""
    ranks = np.arange(1, MEMORY + 2, dtype=np.float64)[:, None]
    return np.concatenate([np.ones((1, len(EXPONENTS))), np.cumsum(ranks**-EXPONENTS, axis=0)])


_TOTAL = _harmonic()


class RankEvidence:
    """R of `statistics` many statistics. What has no value now (NaN) neither bets nor is ranked among later."""

    def __init__(self, statistics: int) -> None:
        self._past = np.full((MEMORY, statistics), np.nan)
        self._count = np.zeros(statistics, np.int64)  # values of each in the past
        self._next = 0  # row of `_past` that is written next
        self.restart()

    def restart(self) -> None:
        """Without evidence; the past stays."""
        shape = self._past.shape[1], len(EXPONENTS)
        self._r, self._gain = np.zeros(shape), np.zeros(shape)
        self._since = np.zeros(shape, np.int64)

    def forget(self, statistic: int) -> None:
        """One statistic begins anew, its past too."""
        self._past[:, statistic], self._count[statistic] = np.nan, 0
        self._r[statistic] = self._gain[statistic] = 0.0
        self._since[statistic] = 0

    def update(self, values: Floats) -> None:
        """The next block's values [statistics]."""
        known = np.isfinite(values)
        # Ties count as above: a statistic that is nearly always the same pays nothing for being so.
        rank = 1.0 + (self._past >= values).sum(axis=0)
        count = self._count + 1
        pay = rank[:, None] ** -EXPONENTS * count[:, None] / _TOTAL[count]
        pay[~known] = 1.0
        grown = (self._r + 1.0) * pay
        self._r = np.where(known[:, None], np.minimum(grown, LARGEST), self._r)
        fresh = self._gain <= 0.0
        self._gain = np.where(fresh, 0.0, self._gain) + np.log(pay)
        self._since = np.where(fresh, 1, self._since + 1)
        self._count += known
        self._count -= np.isfinite(self._past[self._next])
        self._past[self._next] = values
        self._next = (self._next + 1) % MEMORY

    @property
    def values(self) -> Floats:
        """R of each statistic [statistics], the mean over exponents."""
        means: Floats = self._r.mean(axis=1)
        return means

    def since(self, statistic: int) -> int:
        """How many blocks ago its change most likely began: from there on its bets won most (Page's CUSUM)."""
        return int(self._since[statistic, self._r[statistic].argmax()])

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything; `load` is the inverse."""
        place = np.array([self._next], np.int64)
        arrays = {"past": self._past, "r": self._r, "gain": self._gain, "since": self._since}
        return {name: array.copy() for name, array in arrays.items()} | {"next": place}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`, for as many statistics."""
        self._past, self._r = state["past"].copy(), state["r"].copy()
        self._count = np.isfinite(self._past).sum(axis=0)
        self._gain, self._since = state["gain"].copy(), state["since"].copy()
        self._next = int(state["next"][0])
