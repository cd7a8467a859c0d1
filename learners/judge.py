"""What a score cost, event by event, as tests, guards and detectors look at it: bounded, and in a unit of its own.

Log loss has a unit, nats, and is bounded as it is. An error of a value has the label's unit, so it is divided by what
the champion's errors were so far: 1 is what a score costs as a rule, whatever the label is. That scale is known before
the events that it is for. A difference of two such losses is therefore one that `learners.verdict` may bet on, and its
error rates hold however the stream goes (Waudby-Smith & Ramdas 2023: a bet may depend on everything in the past).

The error is squared where the champion's own loss is, else absolute: `mae` and `huber` are chosen where single events
with a large error must not decide.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import ModelConfig
from learners.metrics import Floats
from learners.target import Target

LARGEST_LOSS = 100.0  # of a value, where 1 is usual: one event counts for no more
SCALE_ROWS = 5_000.0  # events that the scale remembers
SMALLEST_SCALE = 1e-30
ABSOLUTE = ("mae", "huber")  # losses of a model whose errors are not squared here either


class Judge:
    """Losses of one task's scores. `config` are the settings of the first champion."""

    def __init__(self, target: Target, config: ModelConfig) -> None:
        self._target, self._absolute = target, config.loss in ABSOLUTE
        self._count = self._scale = 0.0

    def raw(self, label: NDArray[Any], score: NDArray[np.floating[Any]]) -> Floats:
        """Losses [n] in their own unit: nats, or that of the label or its square. To compare on the same events."""
        return self._target.losses(label, score, absolute=self._absolute)

    def losses(self, label: NDArray[Any], score: NDArray[np.floating[Any]]) -> Floats:
        """Losses [n] by what was noted before: nats, or shares of a usual error, `LARGEST_LOSS` at most.

        Before the first note nothing is known of a value's errors, and each counts 1.
        """
        raw = self.raw(label, score)
        if not self._target.is_value:
            return raw
        if not self._count:
            return np.ones(len(raw))
        return np.minimum(raw / max(self._scale, SMALLEST_SCALE), LARGEST_LOSS)

    def note(self, label: NDArray[Any], score: NDArray[np.floating[Any]]) -> None:
        """Scores [n] of the champion, which the scale of later events is made of."""
        if not self._target.is_value or not len(label):
            return
        raw = self.raw(label, score)
        if self._scale > 0.0:  # a single event must not blind what comes after it
            raw = np.minimum(raw, LARGEST_LOSS * self._scale)
        total = self._count + len(raw)
        self._scale += (float(raw.mean()) - self._scale) * min(1.0, len(raw) / total)
        self._count = min(total, SCALE_ROWS)

    def state(self) -> list[float]:
        """What `load` needs to go on exactly from here; ready for JSON."""
        return [self._count, self._scale]

    def load(self, state: list[float]) -> None:
        """The inverse of `state`."""
        self._count, self._scale = state
