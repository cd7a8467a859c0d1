"""What all detectors share: their settings, and the alert.

The detector of a rise of the loss is in learners/loss_drift.py, that of inputs and scores in learners/shift.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Policy = Literal["drift", "better", "always", "manual", "shadow"]
POLICIES: tuple[Policy, ...] = ("drift", "better", "always", "manual", "shadow")
BY_TEST: tuple[Policy, ...] = ("drift", "better", "always")
"""Where the test promotes; elsewhere it recommends, and a person may."""

DETECTORS = ("ranks", "adwin", "page_hinkley", "ddm", "eddm", "kswin")
"""What can watch the loss: our own, and River's by their names there."""


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """The `[drift]` section of a task file. Counts are labelled examples; losses are nats of log loss.

    Raises ValueError, naming the field, for a value that cannot work.
    """

    detectors: tuple[str, ...] = (
        "ranks",
    )  # what watches the loss; the first of them to fire raises the alert
    false_alarms_per: int = (
        1_000_000  # at most one false alarm in so many examples, on average: of "ranks", and
    )
    # another one of all columns of inputs, scores and their calibration together
    delta: float = (
        0.01  # chance of a false alarm of ADWIN at a time; of chance alone passing a PSI's threshold
    )
    psi_threshold: float = 0.2  # PSI a column must pass, above its sampling noise and its own habit
    joint_threshold: float = 0.1  # change of inputs' correlations that counts, above their habit; 2 is never
    alpha: float = 0.01  # at most this share of alerts ends in a wrong promotion
    min_effect: float = 0.0005  # a challenger must be better, and a loss must rise, by more than this
    min_events: int = 200  # no verdict before a challenger was tested on this many
    max_events: int = 20_000  # a challenger without a verdict gives up after this many
    cooldown: int = 2_000  # one drift, one alert: a detector is silent this long after its alert
    segment_share: float = 0.1  # a value of `task.segments` with so much of the traffic is large
    max_segment_harm: float = 0.02  # nats by which a challenger may be worse in a large segment
    max_scoring_ratio: float = 10.0  # how many times as long as the champion a challenger may take to score
    policy: Policy = "better"  # see docs/swap.md
    window: int = 1_000  # size of the current window of the input and score detector
    keep_reference: bool = True  # the first lineage goes on learning after it was replaced, to compare
    ignore: tuple[str, ...] = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")  # the clock is no drift

    def __post_init__(self) -> None:
        unknown = [name for name in self.detectors if name not in DETECTORS]
        wrong = {
            "delta must be above 0 and below 1": not 0.0 < self.delta < 1.0,
            "alpha must be above 0 and below 1": not 0.0 < self.alpha < 1.0,
            f"detectors may be {', '.join(DETECTORS)}, not {', '.join(unknown)}": bool(unknown),
            "detectors must name at least one": not self.detectors,
            "psi_threshold must be above 0": self.psi_threshold <= 0.0,
            "joint_threshold must be above 0": self.joint_threshold <= 0.0,
            "min_effect must be at least 0 and below 1 nat": not 0.0 <= self.min_effect < 1.0,
            "segment_share must be above 0 and at most 1": not 0.0 < self.segment_share <= 1.0,
            "max_segment_harm must be above 0 and below 1 nat": not 0.0 < self.max_segment_harm < 1.0,
            "max_scoring_ratio must be at least 1": self.max_scoring_ratio < 1.0,
            "cooldown must be at least 0": self.cooldown < 0,
            f"policy must be one of {', '.join(POLICIES)}": self.policy not in POLICIES,
        }
        for name in ("min_events", "max_events", "window", "false_alarms_per"):
            wrong[f"{name} must be at least 1"] = getattr(self, name) < 1
        wrong["max_events must be at least min_events"] = self.max_events < self.min_events
        for reason, holds in wrong.items():
            if holds:
                raise ValueError(reason)


@dataclass(frozen=True, slots=True)
class Affected:
    """A column that moved: by how much, from 0 to 1 (see `Alert`), and in words."""

    name: str
    severity: float
    change: str  # such as "missing in 5.1 % of events instead of 0.0 %"


@dataclass(frozen=True, slots=True)
class Alert:
    """One drift, noticed once. `strength` above `threshold` raised it; both are in the detector's unit.

    `severity` is from 0 to 1. Of an input or the scores: the share of events whose value would have to be another one
    for all to be as before (total variation distance); of `joint`, the quarter of the ranks that a value of two inputs
    is in. Of calibration: the part of the scores, or of the labels, that is too much. Of the loss: the part of it that
    the rise made. 1 for steps that were rejected.
    """

    alert_id: str  # "ranks-<labelled examples seen>": the same stream gives the same id after a restart
    detector: str  # one of `DETECTORS`, of `learners.shift.STATISTICS`, "calibration", or "rejected_steps"
    level: Literal["loss", "input", "score", "step"]
    subject: str  # the column, "score", "calibration", "log_loss", or the lineage whose steps were rejected
    strength: float
    threshold: float
    since_event_id: str  # the first event of the newer regime, as far as the detector can tell
    since_ms: int  # its event time
    event_ms: int  # event time of the newest example the alarm rests on
    version: str  # the live model when the alarm was raised
    message: str
    severity: float = 1.0
    features: tuple[Affected, ...] = ()  # the columns that moved, the worst first
    details: Mapping[str, Any] = field(default_factory=dict)  # what it rests on, ready for JSON: large
