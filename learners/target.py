"""What a task predicts: a probability, one for each of several classes, or a value. Whatever differs is asked here.

A label is float32 [n] in every kind: 0 or 1, the number of a class from 0, or the value itself. A score is the
probability of a 1, or the value, float32 [n]; of K classes it is K probabilities, [n, K].
This file imports no torch: roles that build no model read it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from learners.metrics import Floats, class_losses, class_metrics, log_loss, metrics, regression_metrics

KINDS = ("binary", "multiclass", "regression")

METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("auc", "average_precision", "log_loss", "ece"),
    "multiclass": ("accuracy", "macro_f1", "log_loss", "ece"),
    "regression": ("rmse", "mae", "r2"),
}
"""What is measured of a kind of task; all but the losses and the calibration error can be what reports lead with."""

SMALLER_IS_BETTER = {"log_loss", "ece", "rmse", "mae"}

LARGEST_VALUE = 1e15  # a label of a regression task, either way: its square is far from what float32 holds
_LARGEST_ERROR = 1e18  # so that a sum of squares is finite; also what a score that is not a number is off by
BINS = 40  # of a histogram of scores
_LARGEST_LOGIT = 15.0
_DECADES = (-4.0, 15.0)  # of the size of a value that a histogram tells apart


@dataclass(frozen=True)
class Target:
    """What is predicted. `kind` is one of `KINDS`; `classes` are the names of the classes of a multi-class task."""

    kind: str = "binary"
    classes: tuple[str, ...] = ()

    @property
    def is_value(self) -> bool:
        """Whether a number is predicted, and not a probability."""
        return self.kind == "regression"

    @property
    def width(self) -> int:
        """How many numbers a score is."""
        return len(self.classes) or 1

    def unknown(self, n: int) -> NDArray[np.float32]:
        """`n` scores that nobody made: NaN, [n] or [n, K]."""
        return np.full((n, self.width) if self.classes else n, np.nan, np.float32)

    def known(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Which scores [n] are numbers."""
        finite = np.isfinite(score)
        return np.asarray(finite.all(axis=1) if self.classes else finite)

    def one(self, score: NDArray[Any]) -> NDArray[Any]:
        """A number [n] for each score, to watch its distribution: the class that wins, else the score itself."""
        return score.argmax(axis=1).astype(np.float32) if self.classes else score

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what is measured."""
        return METRICS[self.kind]

    @property
    def loss_name(self) -> str:
        """What tests, guards and detectors look at (`learners.judge`), as a name of a field."""
        return "scaled_error" if self.is_value else "log_loss"

    @property
    def loss_words(self) -> str:
        """The same for people."""
        return self.loss_name.replace("_", " ")

    def usable(self, label: NDArray[Any]) -> NDArray[np.bool_]:
        """Which labels [n] can be learned from."""
        if self.is_value:
            return np.asarray(np.abs(label) <= LARGEST_VALUE)
        if self.classes:
            return np.asarray((label >= 0.0) & (label < len(self.classes)) & (label == np.floor(label)))
        return np.asarray((label == 0.0) | (label == 1.0))

    def losses(
        self, label: NDArray[Any], score: NDArray[np.floating[Any]], *, absolute: bool = False
    ) -> Floats:
        """What each score [n] cost, always finite: nats of log loss, or of a value the squared (or absolute) error."""
        if self.classes:
            return class_losses(label, score)
        if not self.is_value:
            return log_loss(label, score)
        error = np.abs(np.asarray(score, np.float64) - label)
        off: Floats = np.minimum(np.nan_to_num(error, nan=_LARGEST_ERROR), _LARGEST_ERROR)
        return off if absolute else off * off

    def measure(self, label: NDArray[Any], score: NDArray[np.floating[Any]]) -> dict[str, float]:
        """n, positives and all of `metrics` of labels [n] and scores [n]."""
        if self.classes:
            return class_metrics(label, score)
        return regression_metrics(label, score) if self.is_value else metrics(label, score)

    def histogram(self, score: NDArray[Any]) -> NDArray[np.int64]:
        """Counts [40] of finite scores: probabilities by their logit, values by sign and size (about half a decade), of
        several classes by the one that wins.
        """
        known = self.one(score[self.known(score)]).astype(np.float64)
        if self.classes:
            place, limit = 2.0 * (known + 0.5) / self.width - 1.0, 1.0
        elif self.is_value:
            low, high = _DECADES
            size = np.log10(np.clip(np.abs(known), 10.0**low, 10.0**high)) - low
            place, limit = np.copysign(size, known), high - low
        else:
            clipped = np.clip(known, 1e-9, 1.0 - 1e-9)
            place, limit = np.log(clipped / (1.0 - clipped)), _LARGEST_LOGIT
        counts = np.histogram(np.clip(place, -limit, limit), BINS, (-limit, limit))[0]
        return counts.astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` is its inverse."""
        return {"kind": self.kind, "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(str(raw["kind"]), tuple(str(name) for name in raw["classes"]))


BINARY = Target()
