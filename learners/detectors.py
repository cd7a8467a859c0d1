"""All detectors of one task as one: a drift that several of them notice is one alert.

The loss is what counts. An alarm of the loss soon after one about inputs or scores is the same drift, now known to
hurt: it is told again under the same id and with the columns that moved, so that who keeps alerts by their id has the
newer one. An alarm about inputs or calibration soon after one of the loss is no news. "Soon" is within `cooldown`
labelled examples.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, Schema
from learners.calibration import CalibrationDetector
from learners.drift import Affected, Alert, DriftConfig
from learners.loss_drift import LossDetector
from learners.packing import part, prefixed
from learners.shift import ShiftDetector


class Detectors:
    """The detectors of the loss, of inputs and scores, and of calibration."""

    def __init__(self, schema: Schema, config: DriftConfig) -> None:
        self._cooldown = config.cooldown
        self._loss, self._shift = LossDetector(config, schema.target), ShiftDetector(schema, config)
        self._calibrated = not schema.target.is_value  # a value says no probability
        self._calibration = CalibrationDetector(config)
        self._seen = 0
        self._last: tuple[int, str, str] | None = None  # the newest alert: when (examples), its id and level
        self._moved: tuple[Affected, ...] = ()  # and the columns that moved

    def psi(self) -> dict[str, float]:
        """PSI of each watched column in the newest full window (see `ShiftDetector.psi`)."""
        return self._shift.psi()

    def update(
        self, batch: Batch, scores: NDArray[np.floating[Any]], losses: NDArray[np.floating[Any]], version: str
    ) -> list[Alert]:
        """Feed a batch, the live model's scores [n] of it and the losses [n] of what was served."""
        self._seen += len(batch)
        found = [*self._loss.update(batch, losses, version), *self._shift.update(batch, scores, version)]
        if self._calibrated:
            served = np.where(np.isfinite(batch.served), batch.served, scores)
            found += self._calibration.update(batch, served, version)
        return [told for alert in found if (told := self._told(alert)) is not None]

    def _told(self, alert: Alert) -> Alert | None:
        """The alert as it is told: None where it is no news."""
        last = self._last
        known = last is not None and self._seen - last[0] < self._cooldown
        if last is None or not known:
            self._last, self._moved = (self._seen, alert.alert_id, alert.level), alert.features
            return alert
        if last[2] == "loss" or alert.level != "loss":
            return None
        self._last = (self._seen, last[1], "loss")
        return replace(alert, alert_id=last[1], features=self._moved)

    def swapped(self) -> None:
        """Another model is served from now on."""
        self._loss.swapped()
        self._shift.swapped()
        self._calibration.swapped()

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detectors go on exactly as here."""
        seen, alert_id, level = self._last or (-1, "", "")
        mine: dict[str, NDArray[Any]] = {
            "counts": np.array([self._seen, seen], np.int64),
            "last": np.array([alert_id, level], np.str_),
            "moved": np.array([json.dumps([asdict(each) for each in self._moved])], np.str_),
        }
        mine |= prefixed("loss", self._loss.state()) | prefixed("shift", self._shift.state())
        return mine | prefixed("calibration", self._calibration.state())

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self._loss.load(part("loss", state))
        self._shift.load(part("shift", state))
        self._calibration.load(part("calibration", state))
        self._moved = tuple(Affected(**each) for each in json.loads(str(state["moved"][0])))
        self._seen, last = state["counts"].tolist()
        alert_id, level = state["last"].tolist()
        self._last = None if last < 0 else (last, alert_id, level)
