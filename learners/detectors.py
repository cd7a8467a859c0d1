"""All detectors of one task as one: a drift that several of them notice, or notice again, is one alert.

The loss is what counts. An alarm of the loss soon after one about inputs or scores is the same drift, now known to
hurt: it is told again under the same id and with the columns that moved, so that who keeps alerts by their id has the
newer one. An alarm about inputs or calibration soon after one of the loss is no news. "Soon" is within `cooldown`
labelled examples.

What follows an alert, challengers on trial or a new model under guard, may take longer than that. Until it is over, a
loss that rises further without having fallen in between is the same drift: it is acted on under the id of that alert,
and not told. So are scores that are off meanwhile. Inputs that move, or a loss that had recovered and rises, are news.
That counts by when events were served: where labels take a week, those of what a new model served under its guard come
when the guard is long over.

Loss and calibration are the live model's: of a row that another one served, such as the one before a swap, whose
labels go on coming, or a canary, they know nothing.

Live, inputs and scores are watched when events are served, long before their labels may come. Such a warning is told at
once, and counts here as an alarm of the moment at which the labels have come as far as its onset: only then is there
something to learn of what holds since, and only then can the loss rise because of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, Schema, lineage_number
from learners.calibration import CalibrationDetector
from learners.drift import Affected, Alert, DriftConfig
from learners.loss_drift import LONG_AGO, LossDetector
from learners.packing import part, prefixed
from learners.shift import ShiftDetector


class Detectors:
    """The detectors of the loss, of inputs and scores, and of calibration.

    With `served` others watch inputs and scores, on served events, and say so with `warned`.
    """

    def __init__(self, schema: Schema, config: DriftConfig, *, served: bool = False) -> None:
        self._cooldown = config.cooldown
        self._loss = LossDetector(config, schema.target)
        self._shift = None if served else ShiftDetector(schema, config)
        self._target = schema.target
        self._calibrated = schema.target.kind == "binary"  # others say no one probability
        self._calibration = CalibrationDetector(config)
        self._seen = 0
        self._last: tuple[int, str, str] | None = None  # the newest alert: when (examples), its id and level
        self._moved: tuple[Affected, ...] = ()  # and the columns that moved
        self._told_ms = self._labelled_ms = LONG_AGO  # newest event that it rests on; newest labelled one
        # The newest alert that was followed, and how far the stream was served when it was last.
        self._followed, self._followed_ms = "", LONG_AGO
        self._waiting: list[Alert] = []  # warnings of events whose labels have not come
        # Alarms of the newest batch that were told before: warnings whose labels came, rises of an open episode.
        self.due: list[Alert] = []

    def psi(self) -> dict[str, float]:
        """PSI of each watched column in the newest full window (see `ShiftDetector.psi`)."""
        return self._shift.psi() if self._shift is not None else {}

    def warned(self, alert: Alert, episode: str = "") -> Alert | None:
        """Others noticed that inputs or scores moved; the alert as it is to be told, None where it is no news."""
        if episode and alert.level == "score":
            return None
        known = self._last is not None and self._seen - self._last[0] < self._cooldown
        if known and alert.since_ms <= self._told_ms:
            return None  # what the newest alert rests on came after the onset: it is the same drift
        self._waiting.append(replace(alert, details={}))
        return alert

    def update(
        self,
        batch: Batch,
        scores: NDArray[np.floating[Any]],
        losses: NDArray[np.floating[Any]],
        version: str,
        *,
        episode: str = "",
    ) -> list[Alert]:
        """Feed a batch, the live model's scores [n] of it and the losses [n] of what was served.

        `version` is the live model's. `episode` is the id of the alert that is still being followed, "" if none is.
        """
        self._seen += len(batch)
        self._mature(int(batch.event_ms.max()))
        if episode:
            self._followed, self._followed_ms = episode, int(np.median(batch.known_ms))
        mine = (batch.lineage == lineage_number(version)) | (batch.lineage == 0)
        own, of_own = (batch, losses) if mine.all() else (batch.take(mine), losses[mine])
        found = self._loss.update(own, of_own, version)
        if self._shift is not None:
            found += self._shift.update(batch, self._target.one(scores), version)
        if self._calibrated:
            served = np.where(np.isfinite(own.served), own.served, scores[mine])
            found += self._calibration.update(own, served, version)
        return [told for alert in found if (told := self._told(alert, episode)) is not None]

    def _mature(self, event_ms: int) -> None:
        """Labels have come up to `event_ms`: the warnings of what happened until then are alarms of this moment."""
        self._labelled_ms = max(self._labelled_ms, event_ms)
        self.due = [alert for alert in self._waiting if alert.since_ms <= self._labelled_ms]
        self._waiting = [alert for alert in self._waiting if alert.since_ms > self._labelled_ms]
        for alert in self.due:
            self._last, self._moved = (self._seen, alert.alert_id, alert.level), alert.features
            self._told_ms = alert.event_ms

    def _told(self, alert: Alert, episode: str) -> Alert | None:
        """The alert as it is told: None where it is no news."""
        last = self._last
        if not episode and alert.event_ms <= self._followed_ms:
            episode = self._followed
        known = last is not None and self._seen - last[0] < self._cooldown
        if episode and not known and alert.level == "score":
            return None
        if episode and not known and alert.details.get("further"):
            self.due.append(replace(alert, alert_id=episode, details={}))
            return None
        if last is None or not known:
            self._last, self._moved = (self._seen, alert.alert_id, alert.level), alert.features
            self._told_ms = alert.event_ms
            return alert
        if last[2] == "loss" or alert.level != "loss":
            return None
        self._last, self._told_ms = (self._seen, last[1], "loss"), alert.event_ms
        return replace(alert, alert_id=last[1], features=self._moved)

    def swapped(self) -> None:
        """Another model is served from now on."""
        self._loss.swapped()
        if self._shift is not None:
            self._shift.swapped()
        self._calibration.swapped()

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detectors go on exactly as here."""
        seen, alert_id, level = self._last or (-1, "", "")
        mine: dict[str, NDArray[Any]] = {
            "counts": np.array([self._seen, seen], np.int64),
            "last": np.array([alert_id, level, self._followed], np.str_),
            "times": np.array([self._told_ms, self._labelled_ms, self._followed_ms], np.int64),
            "waiting": np.array([msgspec.json.encode(self._waiting).decode()], np.str_),
            "moved": np.array([json.dumps([asdict(each) for each in self._moved])], np.str_),
        }
        mine |= prefixed("loss", self._loss.state())
        if self._shift is not None:
            mine |= prefixed("shift", self._shift.state())
        return mine | prefixed("calibration", self._calibration.state())

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self._loss.load(part("loss", state))
        if self._shift is not None:
            self._shift.load(part("shift", state))
        self._told_ms, self._labelled_ms, self._followed_ms = state["times"].tolist()
        self._waiting = msgspec.json.decode(str(state["waiting"][0]), type=list[Alert])
        self._calibration.load(part("calibration", state))
        self._moved = tuple(Affected(**each) for each in json.loads(str(state["moved"][0])))
        self._seen, last = state["counts"].tolist()
        alert_id, level, self._followed = state["last"].tolist()
        self._last = None if last < 0 else (last, alert_id, level)
