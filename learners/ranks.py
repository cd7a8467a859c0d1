"""An anytime-valid detector of a rise or a fall: ranks, bets on them, and a budget of false alarms.

The stream is cut into blocks, and each block's sum is ranked among those of the blocks before it. While the blocks are
exchangeable, whatever their distribution is, these ranks are independent and uniform: the basis of conformal test
martingales (Vovk et al. 2021, "Retrain or not retrain: conformal test martingales for change-point detection"). So any
non-negative function of the rank that has mean 1 over all ranks is a fair bet against "no change", an e-value, without
one number about the distribution. The bets e are gathered as Shiryaev and Roberts do, R = (R + 1) e. Without a change,
R minus the number of blocks is a supermartingale, hence the mean time until R first reaches A is at least A blocks: R
is an e-detector (Shin, Ramdas & Rinaldo 2023, "E-detectors: a nonparametric framework for sequential change
detection").
A mean of such R is one too, so all tilts of the bet are tried at once; the scales of the blocks share the budget.

All of this is proved up to the first change that is told. What a detector goes on with after it was chosen by looking:
after a false fall, values that are low by luck. How far that may go is measured (docs/log.md): with restarts it says "a
rise" 0.65 and 0.8 times as often as the budget allows, of bell-shaped and of skewed values; with `FALL` at 10 it did so
1.1 times as often.

Where few events cost anything, most blocks cost next to nothing, and ranks would see only how that little changes. So
sums up to a floor are all alike: they share their ranks, and bets on shared ranks are as fair.

Ranks do not care how heavy the tail of a loss is. The price: what is not exchangeable without being a drift, such as
a time of day at which the loss is always higher, is a drift to this detector unless a block covers it.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TILTS = (0.5, 1.0, 2.0, 3.0)  # of the bets: for shifts of a block by so many of its standard deviations
LADDER = (1, 4, 16)  # blocks that one value of each scale sums up
MEMORY = 256  # values of each scale that the next one is ranked among
FALL = 3.0  # a fall, which is no alarm, needs so much less evidence: the past must follow a model that gets better
WEIGHTS = np.array([1.0, FALL])


@dataclass(frozen=True, slots=True)
class Change:
    """What a detector of block sums says when it fires: how many blocks ago it began, and whether it is a rise.

    0 and None where it cannot tell.
    """

    blocks: int = 0
    rise: bool | None = None


@lru_cache(maxsize=MEMORY + 2)
def bets(count: int) -> Floats:
    """What each rank pays: running sums over ranks, [count + 1, tilts].

    A rank's pay is proportional to exp(tilt * normal score of the rank) and is 1 on average over the `count` ranks.
    Running sums, so that values which tie can share the mean of their ranks.
    """
    inverse = NormalDist().inv_cdf
    scores = np.array([inverse((rank + 0.5) / count) for rank in range(count)])
    pay = np.exp(scores[:, None] * np.array(TILTS))
    pay /= pay.mean(axis=0)
    return np.concatenate([np.zeros((1, len(TILTS))), np.cumsum(pay, axis=0)])


class Scale:
    """The detector on one scale: a rise against `limit`, the mean number of values between alarms, a fall sooner."""

    def __init__(self, limit: float, floor: float) -> None:
        self._limit, self._floor = limit, floor
        self._past: deque[float] = deque()  # in the order they came ...
        self._sorted: list[float] = []  # ... and sorted
        self._evidence = np.zeros((2, len(TILTS)))  # R of each tilt, for a rise and for a fall
        self._gain = np.zeros((2, len(TILTS)))  # log of what the bets won since the best moment to begin ...
        self._since = np.zeros((2, len(TILTS)), np.int64)  # ... and how many values ago that was

    def update(self, value: float) -> Change | None:
        """One more value. If R of a direction is at its limit now: the change, counted in values.

        It began most likely where the bets from there on have won most (Page's CUSUM).
        """
        low = bisect_left(self._sorted, value) if value > self._floor else 0
        high = bisect_right(self._sorted, max(value, self._floor))
        insort(self._sorted, value)
        self._past.append(value)
        count = len(self._sorted)
        sums, ties = bets(count), high - low + 1
        pay = np.stack([sums[high + 1] - sums[low], sums[count - low] - sums[count - high - 1]]) / ties
        self._evidence = (self._evidence + 1.0) * pay
        fresh = self._gain <= 0.0
        self._gain = np.where(fresh, 0.0, self._gain) + np.log(pay)
        self._since = np.where(fresh, 1, self._since + 1)
        if count > MEMORY:
            oldest = self._past.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        means = self._evidence.mean(axis=1) * WEIGHTS
        way = int(means[1] > means[0])
        if means[way] < self._limit:
            return None
        return Change(int(self._since[way, self._evidence[way].argmax()]), way == 0)

    def restart(self, values: Sequence[float]) -> None:
        """Without evidence, and with these values as the past."""
        self._past = deque(values[-MEMORY:])
        self._sorted = sorted(self._past)
        self._evidence, self._gain = np.zeros((2, len(TILTS))), np.zeros((2, len(TILTS)))
        self._since = np.zeros((2, len(TILTS)), np.int64)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything; `load` is the inverse."""
        past = np.array(self._past, np.float64)
        return {"past": past, "evidence": self._evidence, "gain": self._gain, "since": self._since}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self.restart(state["past"].tolist())
        self._evidence, self._gain, self._since = state["evidence"], state["gain"], state["since"]


class RankDetector:
    """Watches block sums on all scales. Without a change it says "a rise" once in `budget` blocks on average, or less.

    Falls are found more readily, which costs nothing but some of the past. Sums up to `floor`, of however many blocks,
    are all alike.
    """

    def __init__(self, budget: float, floor: float = -math.inf) -> None:
        # A scale alarms at most once in `limit` values of `width` blocks; the scales share the budget.
        self._scales = [Scale(len(LADDER) * budget / width, floor) for width in LADDER]
        self._open: list[float] = []  # blocks that the largest scale has not yet summed up

    def update(self, block: Floats) -> Change | None:
        """The next block of losses [n]; the change, if there is one."""
        self._open.append(float(block.sum()))
        count, found = len(self._open), None
        for width, scale in zip(LADDER, self._scales, strict=True):
            if count % width == 0:
                change = scale.update(sum(self._open[-width:]))
                if change is not None and found is None:
                    found = Change(change.blocks * width, change.rise)
        if count == LADDER[-1]:
            self._open = []
        return found

    def restart(self, sums: Sequence[float]) -> None:
        """Only blocks with these sums have been, and they are as usual."""
        whole = len(sums) // LADDER[-1] * LADDER[-1]
        for width, scale in zip(LADDER, self._scales, strict=True):
            full = len(sums) // width * width
            scale.restart([sum(sums[i : i + width]) for i in range(0, full, width)])
        self._open = list(sums[whole:])

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything; `load` is the inverse."""
        states = {
            f"{i}.{name}": value for i, s in enumerate(self._scales) for name, value in s.state().items()
        }
        return states | {"open": np.array(self._open, np.float64)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        for i, scale in enumerate(self._scales):
            scale.load({name: state[f"{i}.{name}"] for name in ("past", "evidence", "gain", "since")})
        self._open = state["open"].tolist()
