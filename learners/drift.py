"""Drift in the loss: the alert, the settings of all detectors, and the detector on the loss (River's ADWIN).

The detector on inputs and scores is in learners/shift.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch

if TYPE_CHECKING:
    from river.drift import ADWIN

Policy = Literal["better", "manual", "shadow"]
POLICIES: tuple[Policy, ...] = ("better", "manual", "shadow")

LARGEST_LOSS = 6.0  # nats; a loss above counts as this much, because ADWIN's bound needs a bounded value
BLOCK = 32  # examples whose losses are fed to ADWIN as one value
MIN_BLOCKS = 5  # River's min_window_length: no sub-window is shorter than this many blocks
MOST_BLOCKS = 4_096  # ADWIN's memory: 131,072 examples
KEPT_BLOCKS = 2_048  # what is left of it when it is full
LONG_AGO = -(2**62)  # before any event time


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """The `[drift]` section of a task file. Counts are labelled examples; losses are nats of log loss.

    Raises ValueError, naming the field, for a value that cannot work.
    """

    delta: float = 0.01  # ADWIN's confidence: smaller means fewer and later loss alarms
    psi_threshold: float = 0.2  # PSI a column must pass, above its sampling noise and its own habit
    alpha: float = 0.01  # at most this share of alerts ends in a wrong promotion
    min_effect: float = 0.0005  # a challenger must be better, and a loss must rise, by more than this
    min_events: int = 1_000  # no verdict before a challenger was tested on this many
    max_events: int = 20_000  # a challenger without a verdict gives up after this many
    cooldown: int = 5_000  # one drift, one alert: a detector is silent this long after its alert
    policy: Policy = "better"  # "manual" and "shadow" recommend, and never promote by themselves
    window: int = 1_000  # size of the current window of the input and score detector
    keep_reference: bool = True  # the first lineage goes on learning after it was replaced, to compare
    ignore: tuple[str, ...] = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")  # the clock is no drift

    def __post_init__(self) -> None:
        for name in ("delta", "alpha"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be above 0 and below 1")
        if self.psi_threshold <= 0.0:
            raise ValueError("psi_threshold must be above 0")
        if not 0.0 <= self.min_effect < 1.0:
            raise ValueError("min_effect must be at least 0 and below 1 nat")
        for name in ("min_events", "max_events", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.cooldown < 0:
            raise ValueError("cooldown must be at least 0")
        if self.max_events < self.min_events:
            raise ValueError("max_events must be at least min_events")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}")


@dataclass(frozen=True, slots=True)
class Alert:
    """One drift, noticed once. `strength` above `threshold` raised it; both are in the detector's unit."""

    alert_id: str  # "adwin-<labelled examples seen>": the same stream gives the same id after a restart
    detector: str  # "adwin" or "psi"
    level: Literal["loss", "input", "score"]
    subject: str  # the column, "score" or "log_loss"
    strength: float
    threshold: float
    since_event_id: str  # the first event of the newer regime, as far as the detector can tell
    since_ms: int  # its event time
    event_ms: int  # event time of the newest example the alarm rests on
    version: str  # the live model when the alarm was raised
    message: str


class LossDetector:
    """River's ADWIN on log loss; a rise is an alarm, a fall is not, and one drift gives one alert.

    ADWIN gets one value for every `BLOCK` examples: the sum of their losses, each clipped to [0,
    LARGEST_LOSS] and scaled to [0, 1]. For such sums ADWIN's inequality is 32 times that for the single
    values (only its log log n differs), so nothing is lost but a resolution of 32 examples, and River by
    default looks only every 32 values anyway. What is gained is a small state: River's object cannot be saved
    without pickle, so the detector keeps what it fed and feeds it again. To bound that, ADWIN starts afresh
    from the newest `KEPT_BLOCKS` values whenever it holds `MOST_BLOCKS`.

    River's ADWIN fires on improvement too, and after an alarm forgets everything. So on each alarm the change
    point is placed where the difference passes ADWIN's cut by most, its sign decides whether this is a rise,
    and ADWIN goes on with the values after the change point. A rise within `cooldown` examples after an alert
    belongs to that alert, and so does one in events that were served before the alert: where labels are days
    late, these go on arriving for days and, all being mistakes of a model that could not know better, are no
    news. The price is that a second drift within that time is not noticed here.
    """

    def __init__(self, config: DriftConfig) -> None:
        self._config = config
        self._sums: list[float] = []  # what ADWIN was fed since it was new, and where each block began
        self._ids: list[str] = []
        self._times: list[int] = []
        self._rest: NDArray[np.float64] = np.zeros(0)  # scaled losses of the block that is not yet full
        self._rest_delays: NDArray[np.int64] = np.zeros(0, np.int64)  # how late its labels were, ms
        self._rest_start = ("", 0)
        self._seen = 0
        self._quiet_until = 0  # no alert before this many examples ...
        self._quiet_ms = LONG_AGO  # ... nor for events up to this event time
        self._served_ms = LONG_AGO  # about how far the stream was served when the newest label became known
        self._adwin = self._new_adwin()

    def update(self, batch: Batch, losses: NDArray[np.floating[Any]], version: str) -> list[Alert]:
        """Feed the log losses [n] of a batch, in its order. `version` is the live model's, for the alert.

        Rows with a loss that is not a number are left out.
        """
        finite = np.isfinite(losses)
        if not finite.all():
            batch, losses = batch.take(finite), losses[finite]
        if not len(batch):
            return []
        scaled = np.clip(losses.astype(np.float64), 0.0, LARGEST_LOSS) / LARGEST_LOSS
        carried = len(self._rest)
        values = np.concatenate([self._rest, scaled])
        delays = np.concatenate([self._rest_delays, batch.known_ms - batch.event_ms])
        full = len(values) // BLOCK * BLOCK
        alerts: list[Alert] = []
        for block, total in enumerate(values[:full].reshape(-1, BLOCK).sum(axis=1).tolist()):
            first = block * BLOCK - carried  # row of the batch that the block begins with, if it is here
            begin = self._rest_start if first < 0 else (batch.event_ids[first], int(batch.event_ms[first]))
            end_ms = int(batch.event_ms[first + BLOCK - 1])
            # The median: one label with a wrong clock must not silence the detector.
            self._served_ms = end_ms + int(np.median(delays[block * BLOCK : (block + 1) * BLOCK]))
            self._seen += BLOCK
            if self._feed(total, begin):
                alerts += self._judge(end_ms, version)
        self._rest, self._rest_delays = values[full:], delays[full:]
        first = full - carried
        if not len(self._rest):
            self._rest_start = ("", 0)
        elif first >= 0:
            self._rest_start = (batch.event_ids[first], int(batch.event_ms[first]))
        return alerts

    def swapped(self) -> None:
        """Another model is served from now on: rises in what was served before are no news either."""
        self._quiet_ms = self._served_ms

    def _feed(self, total: float, begin: tuple[str, int]) -> bool:
        """One block; True when ADWIN saw a change."""
        self._sums.append(total)
        self._ids.append(begin[0])
        self._times.append(begin[1])
        self._adwin.update(total)
        changed = bool(self._adwin.drift_detected)
        if not changed and len(self._sums) >= MOST_BLOCKS:
            self._restart(len(self._sums) - KEPT_BLOCKS)
        return changed

    def _judge(self, event_ms: int, version: str) -> list[Alert]:
        """Place the change, cut the window there, and alert if the loss rose outside the cooldown."""
        onset, rise, cut = change_point(np.array(self._sums), self._config.delta)
        since_id, since_ms = self._ids[onset], self._times[onset]
        before = float(np.mean(self._sums[:onset])) * LARGEST_LOSS / BLOCK
        self._restart(onset)
        quiet = self._seen < self._quiet_until or event_ms <= self._quiet_ms
        if quiet or rise <= self._config.min_effect:
            return []
        self._quiet_until, self._quiet_ms = self._seen + self._config.cooldown, self._served_ms
        message = (
            f"log loss rose from {before:.4f} to {before + rise:.4f} since event {since_id} "
            f"(ADWIN, delta {self._config.delta:g})"
        )
        return [
            Alert(
                alert_id=f"adwin-{self._seen}",
                detector="adwin",
                level="loss",
                subject="log_loss",
                strength=rise,
                threshold=max(cut, self._config.min_effect),
                since_event_id=since_id,
                since_ms=since_ms,
                event_ms=event_ms,
                version=version,
                message=message,
            )
        ]

    def _restart(self, start: int) -> None:
        """A new ADWIN, fed with the values from block `start` on. A change it sees in them again cuts,
        silently.
        """
        self._adwin = self._new_adwin()
        for after, total in enumerate(self._sums[start:], start + 1):
            self._adwin.update(total)
            if self._adwin.drift_detected:  # River would forget everything at the next value; do so now
                self._adwin, start = self._new_adwin(), after
        self._sums, self._ids, self._times = self._sums[start:], self._ids[start:], self._times[start:]

    def _new_adwin(self) -> "ADWIN":
        from river.drift import (
            ADWIN,
        )  # river takes seconds to import; roles that only read DriftConfig do not pay

        return ADWIN(
            delta=self._config.delta, clock=1, min_window_length=MIN_BLOCKS, grace_period=2 * MIN_BLOCKS
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detector goes on exactly as here."""
        return {
            "sums": np.array(self._sums, np.float64),
            "ids": np.array(self._ids, np.str_),
            "times": np.array(self._times, np.int64),
            "rest": self._rest,
            "rest_delays": self._rest_delays,
            "rest_id": np.array([self._rest_start[0]], np.str_),
            "counts": np.array([self._rest_start[1], self._seen, self._quiet_until], np.int64),
            "until": np.array([self._quiet_ms, self._served_ms], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self._sums, self._ids = state["sums"].tolist(), state["ids"].tolist()
        self._times = state["times"].tolist()
        self._rest, self._rest_delays = state["rest"], state["rest_delays"]
        rest_ms, self._seen, self._quiet_until = state["counts"].tolist()
        self._quiet_ms, self._served_ms = state["until"].tolist()
        self._rest_start = (str(state["rest_id"][0]), rest_ms)
        self._restart(0)


def change_point(sums: NDArray[np.float64], delta: float) -> tuple[int, float, float]:
    """Where a window of block sums changed: (first block after the change, rise in nats, ADWIN's cut in
    nats).

    Of all splits that leave `MIN_BLOCKS` on both sides, the one whose difference of means is largest in units
    of ADWIN's cut for that split (Bifet & Gavalda 2007, section 3.3, as in River). ADWIN itself tests only
    splits between its buckets, and drops old buckets one by one, so the start of its window is a poor
    estimate of the onset.
    """
    count = len(sums)
    split = np.arange(MIN_BLOCKS, count - MIN_BLOCKS + 1)
    left = np.cumsum(sums)[split - 1]
    rise = (sums.sum() - left) / (count - split) - left / split
    least = MIN_BLOCKS - 1  # River's own correction: 1 / (n - min_window_length + 1)
    inverse = 1.0 / (split - least) + 1.0 / (count - split - least)
    confidence = math.log(2.0 * math.log(count) / delta)
    cut = np.sqrt(2.0 * inverse * float(sums.var()) * confidence) + 2.0 / 3.0 * confidence * inverse
    best = int(np.argmax(np.abs(rise) / cut))
    nats = LARGEST_LOSS / BLOCK
    return int(split[best]), float(rise[best]) * nats, float(cut[best]) * nats
