"""How the learning rate and the size of a step change while the stream goes on, and begin again after drift.

A stream has no end, so no schedule ends either: the rate never falls below `SMALLEST_SHARE` of its start, and
`rewarm` sets everything back to the first step.
"""

import math
from collections.abc import Mapping

from learners.batch import ModelConfig

SMALLEST_SHARE = 0.01
BETTER = 0.999  # on a plateau: the mean loss of a period is not below this share of the best so far


class Schedule:
    """Counts accepted steps and says what the next one is like: its `share` of the rate, its `batch_size`.

    With p = `schedule_steps`, f = `schedule_factor` and t steps since the warm-up, which rises in a straight
    line, the share is

      constant      1
      step          f^⌊t / p⌋
      cosine        from 1 at t = 0 to f at t = p, then f (Loshchilov & Hutter 2017)
      inverse_sqrt  1 / √(1 + t / p) (as Vaswani et al. 2017 after their warm-up)
      plateau       times f after each p steps whose mean loss is no better than that of any before

    With `smallest_batch` a step has so many rows at first, twice as many after each p steps, and `batch_size`
    at most (after Smith et al. 2018): much is learned soon after drift, and with little noise later.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.rewarm()

    def rewarm(self) -> None:
        """Begin again, with the warm-up: for a caller that knows of drift."""
        self.steps = 0
        self._plateau = 1.0
        self._total, self._best = 0.0, math.inf

    @property
    def share(self) -> float:
        """What the learning rate is multiplied by in the next step; exactly 1.0 for a constant rate."""
        return self._share(self.steps)

    def shares(self, count: int) -> list[float]:
        """`share` of the next steps, none of which `needs_loss`."""
        if self.config.schedule == "constant" and self.steps >= self.config.warmup_steps:
            return [1.0] * count
        return [self._share(self.steps + ahead) for ahead in range(count)]

    def _share(self, steps: int) -> float:
        config = self.config
        warm = min(1.0, (steps + 1) / (config.warmup_steps + 1))
        after = max(steps - config.warmup_steps, 0)
        return warm * max(self._decayed(after / config.schedule_steps), SMALLEST_SHARE)

    def _decayed(self, periods: float) -> float:
        factor = self.config.schedule_factor
        match self.config.schedule:
            case "step":
                return float(factor ** math.floor(periods))
            case "cosine":
                return factor + (1.0 - factor) * 0.5 * (1.0 + math.cos(math.pi * min(periods, 1.0)))
            case "inverse_sqrt":
                return 1.0 / math.sqrt(1.0 + periods)
            case "plateau":
                return self._plateau
        return 1.0

    @property
    def batch_size(self) -> int:
        """Rows of the next step."""
        smallest, largest = self.config.smallest_batch, self.config.batch_size
        if not smallest:
            return largest
        doublings = min(self.steps // self.config.schedule_steps, 20)
        return min(smallest << doublings, largest)

    @property
    def needs_loss(self) -> bool:
        """Whether `advance` looks at the loss: reading it from a GPU costs a wait."""
        return self.config.schedule == "plateau"

    def advance(self, loss: float, steps: int = 1) -> None:
        """Count an accepted step and, if `needs_loss`, its mean loss; several where it does not."""
        self.steps += steps
        if not self.needs_loss:
            return
        self._total += loss
        period = self.config.schedule_steps
        if self.steps % period:
            return
        mean, self._total = self._total / period, 0.0
        if mean > BETTER * self._best:
            self._plateau = max(self._plateau * self.config.schedule_factor, SMALLEST_SHARE)
        self._best = min(self._best, mean)

    def state(self) -> dict[str, float | None]:
        """Everything, ready for JSON."""
        best = None if math.isinf(self._best) else self._best
        return {"steps": self.steps, "plateau": self._plateau, "total": self._total, "best": best}

    def load(self, state: Mapping[str, float | None]) -> None:
        """The inverse of `state`; nothing changes for an empty one."""
        if not state:
            return
        self.steps = int(state["steps"] or 0)
        self._plateau, self._total = float(state["plateau"] or 1.0), float(state["total"] or 0.0)
        self._best = math.inf if state["best"] is None else float(state["best"])
