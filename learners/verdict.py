"""The verdict on a challenger: a pure function of paired losses, right whenever one looks at it.

The test is a betting e-process (Waudby-Smith & Ramdas 2023, "Estimating means of bounded random variables by
betting", section 4 and its aGRAPA bets). Let d be the loss of the champion minus that of the challenger on
one event, clipped to [-bound, bound]. A gambler starts with 1 and bets on every event that d is above
`margin`: the wealth is multiplied by 1 + bet * (d - margin), and the bet is chosen from earlier events only.
If the mean of d, given the past, is never above `margin`, the wealth is a non-negative supermartingale, so
the chance that it ever reaches 1 / alpha is at most alpha (Ville's inequality). One may look after every
event, stop when one likes, and both models may go on learning between the events.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["keep", "promote", "reject", "undecided"]
Floats = NDArray[np.float64]

BOUND = 2.0  # nats: one event counts for no more, however wrong a model was on it
LARGEST_STAKE = 0.9  # share of the wealth that the worst possible event may cost


class Wealth:
    """The gambler's wealth against "the mean of d given the past is at most `margin`", d in [-bound, bound].

    The bet is aGRAPA's: with g = d - margin, the mean of g so far over its second moment so far (the fraction
    that grows the wealth fastest if the future is like the past), never below 0 and never so large that one
    event could cost more than `LARGEST_STAKE` of the wealth. To begin with, the sums hold one imagined event
    with g = 0 in the mean and (bound / 2) squared in the second moment.
    """

    def __init__(self, margin: float, bound: float = BOUND) -> None:
        if not -bound < margin < bound:
            raise ValueError("the margin must be between minus the bound and the bound")
        self._margin, self._bound = margin, bound
        self._sum = 0.0
        self._squares = (bound / 2.0) ** 2
        self.log = 0.0  # natural logarithm of the wealth

    def update(self, differences: Floats) -> Floats:
        """Bet on each difference [n] in turn. Returns the logarithm of the wealth after each [n]."""
        gains = np.clip(differences, -self._bound, self._bound) - self._margin
        sums = self._sum + np.cumsum(gains)
        squares = self._squares + np.cumsum(gains * gains)
        # What was known before each event. In mean over second moment the number of events cancels.
        known = np.concatenate([[self._sum / self._squares], sums[:-1] / squares[:-1]])[: len(gains)]
        bets = np.clip(known, 0.0, LARGEST_STAKE / (self._bound + self._margin))
        path: Floats = self.log + np.cumsum(np.log1p(bets * gains))
        if len(gains):
            self._sum, self._squares, self.log = float(sums[-1]), float(squares[-1]), float(path[-1])
        return path

    def state(self) -> list[float]:
        """What `load` needs to go on exactly from here; ready for JSON."""
        return [self._sum, self._squares, self.log]

    def load(self, state: list[float]) -> None:
        """The inverse of `state`."""
        self._sum, self._squares, self.log = state


class PairedTest:
    """Is the challenger better than the champion by more than `min_effect` nats an event, or is it worse?

    Two gamblers look at the same clipped differences. One bets that the challenger is better by more than
    `min_effect`, the other (the mirrored test) that it is worse by more than nothing. Each is wrong with
    probability at most `alpha`, however often the verdict is asked for. The verdict is
      promote    the first has 1 / alpha, and at least `min_events` events were seen
      reject     the second has 1 / alpha, and at least `min_events` events were seen
      keep       `max_events` events brought neither: the champion stays
      undecided  go on
    """

    def __init__(
        self,
        alpha: float,
        min_effect: float,
        bound: float = BOUND,
        *,
        min_events: int = 1,
        max_events: int | None = None,
    ) -> None:
        if not 0.0 < alpha < 1.0:
            raise ValueError("alpha must be above 0 and below 1")
        self.alpha, self.min_effect = alpha, min_effect
        self._min_events, self._max_events = min_events, max_events
        self._better = Wealth(min_effect, bound)
        self._worse = Wealth(0.0, bound)
        self.count = 0
        self._losses = np.zeros(2)

    def update(self, champion: NDArray[np.floating[Any]], challenger: NDArray[np.floating[Any]]) -> None:
        """Log losses [n] of the two on the same events, that neither had learned from when it scored them.

        Raises ValueError for a loss that is not finite: what a model that fails costs is the caller's choice.
        """
        if not (np.isfinite(champion).all() and np.isfinite(challenger).all()):
            raise ValueError("a loss is not finite")
        first, second = champion.astype(np.float64), challenger.astype(np.float64)
        self._better.update(first - second)
        self._worse.update(second - first)
        self.count += len(first)
        self._losses += [first.sum(), second.sum()]

    @property
    def e_value(self) -> float:
        """Wealth of the bet that the challenger is better (at most about 1e308, what a float can hold)."""
        return float(np.exp(min(self._better.log, 709.0)))

    @property
    def e_value_worse(self) -> float:
        """Wealth of the bet that the challenger is worse."""
        return float(np.exp(min(self._worse.log, 709.0)))

    @property
    def losses(self) -> tuple[float, float]:
        """Mean log loss of champion and challenger over all events of the test, not clipped; NaN without."""
        champion, challenger = self._losses / self.count if self.count else (float("nan"), float("nan"))
        return float(champion), float(challenger)

    @property
    def verdict(self) -> Verdict:
        """The verdict now; see the class."""
        if self.count >= self._min_events:
            if self.e_value >= 1.0 / self.alpha:
                return "promote"
            if self.e_value_worse >= 1.0 / self.alpha:
                return "reject"
        if self._max_events is not None and self.count >= self._max_events:
            return "keep"
        return "undecided"

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on exactly from here; ready for JSON."""
        return {
            "count": self.count,
            "losses": self._losses.tolist(),
            "better": self._better.state(),
            "worse": self._worse.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, for a test with the same settings."""
        self.count, self._losses = int(state["count"]), np.array(state["losses"], np.float64)
        self._better.load(state["better"])
        self._worse.load(state["worse"])
