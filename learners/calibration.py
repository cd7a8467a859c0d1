"""Drift in calibration: whether the scores of what was served still are as often right as they say.

Blocks of labelled examples give the statistic of Hosmer and Lemeshow (1980), over groups of equally many examples by
score, and that of all together; how strange these are among the blocks before is evidence (`learners.evidence`). A
model that was never calibrated is no drift: only what is worse than usual counts.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch
from learners.drift import Alert, DriftConfig
from learners.evidence import RankEvidence
from learners.packing import part, prefixed
from learners.shift import SHARE

GROUPS = 5  # by score, equally many examples each
BLOCKS = 8  # of the window in which the error must be large enough to count
HABIT = 32  # windows that say what is usual
SMALLEST_HABIT = 8  # no alarm before this many
WORTH = (
    0.15  # expected calibration error, as a part of the mean score or of the mean label, whichever is larger
)
LONG_AGO = -(2**62)

Floats = NDArray[np.float64]


class CalibrationDetector:
    """Watches the scores that were served beside their labels, in blocks of a quarter of `drift.window`.

    An alarm needs evidence against half of the budget of false alarms (the other half is that of inputs and scores),
    and an error in the newest `BLOCKS` blocks above `WORTH` + 1.5 times the 90 % quantile of what it was. After it,
    what comes is the new normal, and so it is after a swap: how far scores are off as a rule is the model's own. As in
    `LossDetector`, what was served before an alarm or a swap and is labelled later is no news, and left out.
    """

    def __init__(self, config: DriftConfig) -> None:
        self._config, self._block = config, max(GROUPS, config.window // 4)
        self._rest = np.zeros((0, 4))  # score, label, event time, time at which the label was known
        self._rest_ids: NDArray[np.str_] = np.zeros(0, np.str_)
        self._evidence = RankEvidence(2)
        self._sums: deque[Floats] = deque(
            maxlen=BLOCKS
        )  # of the newest blocks: [groups, (n, scores, labels)]
        self._starts: deque[tuple[str, int]] = deque(maxlen=BLOCKS)  # id and time of their first examples
        self._habit: deque[float] = deque(maxlen=HABIT + 1)
        self._counted = self._seen = self._quiet_until = 0
        self._quiet_ms = self._served_ms = LONG_AGO

    def update(self, batch: Batch, scores: NDArray[np.floating[Any]], version: str) -> list[Alert]:
        """Feed a batch and the scores [n] that were served for it. `version` is the live model's, for the alert."""
        new = (batch.event_ms > self._quiet_ms) & np.isfinite(scores)
        columns = (np.asarray(scores, np.float64), batch.label, batch.event_ms, batch.known_ms)
        rows = np.concatenate([self._rest, np.stack(columns, axis=1)[new]])
        ids = np.concatenate([self._rest_ids, np.array(batch.event_ids, np.str_)[new]])
        alerts: list[Alert] = []
        full = len(rows) // self._block * self._block
        for start in range(0, full, self._block):
            self._served_ms = int(np.median(rows[start : start + self._block, 3]))
            alerts += self._full_block(rows[start : start + self._block], str(ids[start]), version)
        self._rest, self._rest_ids = rows[full:], ids[full:]
        return alerts

    def swapped(self) -> None:
        """Another model is served from now on: what is labelled of the one before is no news."""
        self._quiet_ms = self._served_ms
        self._rest, self._rest_ids = self._rest[:0], self._rest_ids[:0]
        self._restart()

    def _restart(self) -> None:
        """Nothing is usual yet."""
        self._evidence = RankEvidence(2)
        for past in (self._sums, self._starts, self._habit):
            past.clear()

    def _full_block(self, rows: Floats, first_id: str, version: str) -> list[Alert]:
        self._seen += len(rows)
        self._counted += 1
        sums, statistics = _grouped(rows[:, 0], rows[:, 1])
        self._sums.append(sums)
        self._starts.append((first_id, int(rows[0, 2])))
        self._evidence.update(statistics)
        if len(self._sums) < BLOCKS:
            return []
        window = np.sum(self._sums, axis=0)
        error = _error(window)
        alerts = self._judge(window, error, int(rows[-1, 2]), version)
        if alerts:
            self._restart()
        elif self._counted % BLOCKS == 0:
            self._habit.append(error)
        return alerts

    def _judge(self, window: Floats, error: float, event_ms: int, version: str) -> list[Alert]:
        if len(self._habit) <= SMALLEST_HABIT or self._seen < self._quiet_until:
            return []
        evidence = self._evidence.values
        limit = SHARE * self._config.false_alarms_per / self._block * len(evidence)
        threshold = WORTH + 1.5 * float(np.quantile(list(self._habit)[:-1], 0.9))
        if evidence.max() < limit or error <= threshold:
            return []
        self._quiet_until, self._quiet_ms = self._seen + self._config.cooldown, self._served_ms
        since = min(self._evidence.since(int(evidence.argmax())), len(self._starts))
        since_id, since_ms = self._starts[-since]
        count, scores, labels = window.sum(axis=0).tolist()
        groups = [[float(value) for value in group] for group in window]
        means = f"{scores / count:.4f} on average, {labels / count:.4f} of the labels are 1"
        return [
            Alert(
                alert_id=f"calibration-{self._seen}",
                detector="calibration",
                level="score",
                subject="calibration",
                strength=error,
                threshold=threshold,
                since_event_id=since_id,
                since_ms=since_ms,
                event_ms=event_ms,
                version=version,
                message=f"the scores are off: {means}",
                severity=min(1.0, round(error, 4)),
                details={
                    "block": self._block,
                    "evidence": evidence.tolist(),
                    "evidence_needed": limit,
                    "groups_n_scores_labels": groups,
                },
            )
        ]

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detector goes on exactly as here."""
        return {
            "rest": self._rest,
            "rest_ids": self._rest_ids,
            "sums": np.array(self._sums, np.float64).reshape(-1, GROUPS, 3),
            "start_ids": np.array([each for each, _ in self._starts], np.str_),
            "start_times": np.array([ms for _, ms in self._starts], np.int64),
            "habit": np.array(self._habit, np.float64),
            "counts": np.array([self._counted, self._seen, self._quiet_until], np.int64),
            "until": np.array([self._quiet_ms, self._served_ms], np.int64),
        } | prefixed("evidence", self._evidence.state())

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`, for the same settings."""
        self._rest, self._rest_ids = state["rest"], state["rest_ids"]
        self._sums = deque(state["sums"], maxlen=BLOCKS)
        starts = zip(state["start_ids"].tolist(), state["start_times"].tolist(), strict=True)
        self._starts = deque(starts, maxlen=BLOCKS)
        self._habit = deque(state["habit"].tolist(), maxlen=HABIT + 1)
        self._counted, self._seen, self._quiet_until = state["counts"].tolist()
        self._quiet_ms, self._served_ms = state["until"].tolist()
        self._evidence.load(part("evidence", state))


def _grouped(scores: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Sums [groups, (n, scores, labels)], and the two statistics: of all groups, and of all examples together."""
    order = np.argsort(scores, kind="stable")
    cut = np.arange(GROUPS) * len(order) // GROUPS
    columns = np.stack([np.ones(len(order)), scores[order], labels[order], (scores * (1.0 - scores))[order]])
    sums = np.add.reduceat(columns, cut, axis=1).T
    noise = np.maximum(sums[:, 3], 1e-6)
    groups = float(((sums[:, 2] - sums[:, 1]) ** 2 / noise).sum())
    together = float((sums[:, 2].sum() - sums[:, 1].sum()) ** 2 / noise.sum())
    return sums[:, :3], np.array([groups, together])


def _error(window: Floats) -> float:
    """Expected calibration error of sums [groups, (n, scores, labels)], as a part of the mean score or label."""
    _, scores, labels = window.sum(axis=0)
    return float(np.abs(window[:, 1] - window[:, 2]).sum() / max(scores, labels, 1e-12))
