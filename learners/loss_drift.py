"""Drift in the loss of what was served: blocks, the detectors that look at them, and one alert for one drift."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch
from learners.drift import Alert, DriftConfig
from learners.packing import part, prefixed
from learners.ranks import Change, RankDetector
from learners.river_drift import RiverDetector
from learners.target import BINARY, Target

LARGEST_LOSS = 6.0  # nats; a loss above counts as this much: no single example decides
BLOCK = 32  # examples whose losses the detectors get as one value
NEGLIGIBLE = 0.5  # nats: blocks that cost less than this, not even one mistake (ln 2), are alike
MIN_BLOCKS = 2  # no change is placed nearer than this to an end of the history
MOST_BLOCKS = 4_096  # the history: 131,072 examples
KEPT_BLOCKS = 2_048  # what is left of it when it is full
CONFIDENCE = 0.01  # of the cut that a change is measured by where it is placed
SHOWN = 64  # blocks before the change whose losses an alert brings along
LONG_AGO = -(2**62)  # before any event time

Detector = RankDetector | RiverDetector


def make_detector(name: str, config: DriftConfig) -> Detector:
    """The detector of one of `drift.DETECTORS`; KeyError for another name."""
    if name == "ranks":
        return RankDetector(config.false_alarms_per / BLOCK, NEGLIGIBLE / LARGEST_LOSS)
    return RiverDetector(name, config.delta)


class LossDetector:
    """A rise of the loss (`learners.judge`) is an alarm, a fall is not, and one drift gives one alert.

    The detectors get the losses in blocks of `BLOCK` examples, each clipped to [0, LARGEST_LOSS] and scaled to [0, 1].
    A rise of the mean of an example is one of the block's sum, and the history of what they saw is a 32nd.

    For the detector on ranks, blocks that cost less than a single mistake are all alike (`NEGLIGIBLE`). Where one event
    in a hundred is a positive, most blocks have none, and a loss of .0009 after a week of .0000 is no drift: it takes
    positives that are missed.

    Detectors fire on improvement too. So when one fires, the change is placed where the difference of the means before
    and after is largest for its noise, its sign decides whether this is a rise, and all detectors go on with the
    values after the change. A rise within `cooldown` examples after an alert belongs to that alert, and so does one in
    events that were served before the alert: where labels are days late, these go on arriving for days and, all being
    mistakes of a model that could not know better, are no news. The price is that a second drift within that time is
    not noticed here. An alert after another one between which the loss never fell is a further step of the same rise,
    and its details say so (`further`).

    A rise in the first `cooldown` examples of a learner is no alert: its model is untrained, and the first labels may
    be all of one kind, where "nothing came" is known later. Detectors go on from such a rise as from any.
    """

    def __init__(self, config: DriftConfig, target: Target = BINARY) -> None:
        self._config, self._target = config, target
        self._detectors = {name: make_detector(name, config) for name in config.detectors}
        self._sums: list[float] = []  # of each block since the last change, and where the block began
        self._ids: list[str] = []
        self._times: list[int] = []
        self._rest: NDArray[np.float64] = np.zeros(0)  # scaled losses of the block that is not yet full
        self._rest_delays: NDArray[np.int64] = np.zeros(0, np.int64)  # how late its labels were, ms
        self._rest_start = ("", 0)
        self._seen = 0
        self._risen = False  # since the newest alert the loss did not fall
        self._quiet_until = config.cooldown  # no alert before this many examples ...
        self._quiet_ms = LONG_AGO  # ... nor for events up to this event time
        self._served_ms = LONG_AGO  # about how far the stream was served when the newest label became known

    def update(self, batch: Batch, losses: NDArray[np.floating[Any]], version: str) -> list[Alert]:
        """Feed the losses [n] of a batch, in its order. `version` is the live model's, for the alert.

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
        for block in range(full // BLOCK):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            first = rows.start - carried  # row of the batch that the block begins with, if it is here
            begin = self._rest_start if first < 0 else (batch.event_ids[first], int(batch.event_ms[first]))
            end_ms = int(batch.event_ms[first + BLOCK - 1])
            # The median: one label with a wrong clock must not silence the detector.
            self._served_ms = end_ms + int(np.median(delays[rows]))
            self._seen += BLOCK
            if fired := self._feed(values[rows], begin):
                alerts += self._judge(*fired, end_ms, version)
        self._rest, self._rest_delays = values[full:], delays[full:]
        first = full - carried
        if not len(self._rest):
            self._rest_start = ("", 0)
        elif first >= 0:
            self._rest_start = (batch.event_ids[first], int(batch.event_ms[first]))
        return alerts

    def swapped(self) -> None:
        """Another model is served from now on: its losses are compared with its own, and rises in what was served
        before are no news.
        """
        self._quiet_ms = self._served_ms
        self._rest, self._rest_delays, self._rest_start = self._rest[:0], self._rest_delays[:0], ("", 0)
        self._forget(len(self._sums))
        for detector in self._detectors.values():
            detector.restart([])

    def _feed(self, block: NDArray[np.float64], begin: tuple[str, int]) -> tuple[str, Change] | None:
        """One block; the first detector that saw a change, where the history has a before and an after."""
        self._sums.append(float(block.sum()))
        self._ids.append(begin[0])
        self._times.append(begin[1])
        told = {name: detector.update(block) for name, detector in self._detectors.items()}
        fired = [(name, change) for name, change in told.items() if change is not None]
        if len(self._sums) >= MOST_BLOCKS:
            self._forget(len(self._sums) - KEPT_BLOCKS)
        return fired[0] if fired and len(self._sums) >= 2 * MIN_BLOCKS else None

    def _forget(self, start: int) -> None:
        """Keep the history from block `start` on."""
        self._sums, self._ids, self._times = self._sums[start:], self._ids[start:], self._times[start:]

    def _judge(self, fired: str, change: Change, event_ms: int, version: str) -> list[Alert]:
        """Place the change, go on from there, and alert if the loss rose outside the cooldown."""
        sums = np.array(self._sums) * (LARGEST_LOSS / BLOCK)
        onset = len(sums) - min(change.blocks, len(sums) - 1) if change.blocks else change_point(sums)
        since_id, since_ms = self._ids[onset], self._times[onset]
        before = float(sums[:onset].mean())
        rise = float(sums[onset:].mean()) - before
        if change.rise and rise <= self._config.min_effect:
            return []  # most losses rose, but their mean not yet: more blocks will tell
        self._forget(onset)
        for detector in self._detectors.values():
            detector.restart(self._sums)
        history = sums[max(0, onset - SHOWN) :].round(5).tolist()
        self._risen &= rise > self._config.min_effect
        quiet = self._seen < self._quiet_until or event_ms <= self._quiet_ms
        if quiet or rise <= self._config.min_effect:
            return []
        self._quiet_until, self._quiet_ms = self._seen + self._config.cooldown, self._served_ms
        further, self._risen = self._risen, True
        words = self._target.loss_words
        message = f"{words} rose from {before:.4f} to {before + rise:.4f} since event {since_id} ({fired})"
        return [
            Alert(
                alert_id=f"{fired}-{self._seen}",
                detector=fired,
                level="loss",
                subject=self._target.loss_name,
                strength=rise,
                threshold=self._config.min_effect,
                since_event_id=since_id,
                since_ms=since_ms,
                event_ms=event_ms,
                version=version,
                message=message,
                severity=round(rise / (before + rise), 4),
                details={
                    "block": BLOCK,
                    "loss": [before, before + rise],
                    "blocks": history,
                    "onset": min(onset, SHOWN),
                    "further": further,
                },
            )
        ]

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detector goes on exactly as here."""
        states = [prefixed(name, detector.state()) for name, detector in self._detectors.items()]
        return {key: value for state in states for key, value in state.items()} | {
            "sums": np.array(self._sums, np.float64),
            "ids": np.array(self._ids, np.str_),
            "times": np.array(self._times, np.int64),
            "rest": self._rest,
            "rest_delays": self._rest_delays,
            "rest_id": np.array([self._rest_start[0]], np.str_),
            "counts": np.array([self._rest_start[1], self._seen, self._quiet_until], np.int64),
            "until": np.array([self._quiet_ms, self._served_ms], np.int64),
            "risen": np.array([self._risen], np.bool_),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`, for the same settings; a detector that the state does not have starts afresh."""
        self._sums, self._ids = state["sums"].tolist(), state["ids"].tolist()
        self._times = state["times"].tolist()
        self._rest, self._rest_delays = state["rest"], state["rest_delays"]
        rest_ms, self._seen, self._quiet_until = state["counts"].tolist()
        self._quiet_ms, self._served_ms = state["until"].tolist()
        self._risen = bool(state["risen"][0])
        self._rest_start = (str(state["rest_id"][0]), rest_ms)
        for name, detector in self._detectors.items():
            if its := part(name, state):
                detector.load(its)
            else:
                detector.restart(self._sums)


def change_point(sums: NDArray[np.float64]) -> int:
    """The first block after the change in a window of block sums.

    Of all splits that leave `MIN_BLOCKS` on both sides, the one whose difference of means is largest in units of
    ADWIN's cut for that split (Bifet & Gavalda 2007, section 3.3, as in River). The start of ADWIN's own window is a
    poor estimate: it drops its oldest bucket only.
    """
    count = len(sums)
    split = np.arange(MIN_BLOCKS, count - MIN_BLOCKS + 1)
    left = np.cumsum(sums)[split - 1]
    rise = (sums.sum() - left) / (count - split) - left / split
    least = MIN_BLOCKS - 1  # River's own correction: 1 / (n - min_window_length + 1)
    inverse = 1.0 / (split - least) + 1.0 / (count - split - least)
    confidence = math.log(2.0 * math.log(count) / CONFIDENCE)
    scale = max(float(sums.max() - sums.min()), 1e-12)  # the second term is for values in [0, 1]
    cut = np.sqrt(2.0 * inverse * float(sums.var()) * confidence) + 2.0 / 3.0 * scale * confidence * inverse
    return int(split[np.argmax(np.abs(rise) / cut)])
