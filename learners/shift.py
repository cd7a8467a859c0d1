"""Drift in what goes in and what comes out: PSI of every column and of the score, against the recent past."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, Schema
from learners.drift import Alert, DriftConfig
from learners.psi import Reference, psi, psi_noise, shares

REFERENCE = 8  # windows that make a reference
SMALLEST_REFERENCE = 4  # windows that will do after the start or an alert
REFRESH = 4  # the reference is made anew from the newest windows after this many
HABIT = 32  # windows whose PSI says what is usual for a column
SMALLEST_HABIT = 8  # no alarm before this many
COLD_START = SMALLEST_REFERENCE + SMALLEST_HABIT  # windows that a column must have had values in
LESSON = 2  # alarms after which a column that alarms again and again must move further than before
FADE = 0.5 ** (1 / 500)  # a lesson is worth half after 500 windows


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of the watched columns: numbers and score float32 [n, N + 1], categories int64 [n, C], and
    whose.
    """

    numbers: NDArray[np.float32]
    categories: NDArray[np.int64]
    ids: NDArray[np.str_]
    times: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def known(self) -> NDArray[np.bool_]:
        """Which columns [N + 1 + C] have any value here that is not missing."""
        return np.concatenate([~np.isnan(self.numbers).all(axis=0), (self.categories != 0).any(axis=0)])

    def slice(self, start: int, stop: int) -> "Rows":
        """Rows start to stop, as a copy: a view would keep all of the batch alive."""
        part = np.s_[start:stop]
        return Rows(
            self.numbers[part].copy(),
            self.categories[part].copy(),
            self.ids[part].copy(),
            self.times[part].copy(),
        )

    @classmethod
    def concat(cls, parts: Sequence["Rows"]) -> "Rows":
        """All rows in order; at least one part."""
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.categories for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.times for part in parts]),
        )


class ShiftDetector:
    """Compares each full window of rows with the windows before it; one shift gives one alert.

    A column alarms when its PSI passes psi_threshold + sampling noise + habit. The noise is the level that
    any of the columns passes by chance with probability `delta` in a window. The habit is twice the 90 %
    quantile of the column's PSI in the last `HABIT` windows: a column that follows the time of day or still
    fills up after a cold start moves in every window, and only a move that is large for it is news. The
    reference follows the stream (it is made of the newest `REFERENCE` windows every `REFRESH` windows), so
    slow growth is never a shift; a slow drift that hurts is left to the loss detector. An alert empties the
    reference, since what comes next is the new normal.

    No alarm is possible in the first `COLD_START` = 12 windows, nor in the `SMALLEST_REFERENCE` windows after
    an alert. The same holds for a column that gets its first values later, such as a rate of labels, which
    nobody knows in the first days: that it begins is no shift. A shift large enough to show is seen when the
    first window that lies wholly after its onset is full: at most two windows of examples after the onset.
    """

    def __init__(self, schema: Schema, config: DriftConfig) -> None:
        self._config = config
        self._numbers = [i for i, name in enumerate(schema.numbers) if name not in config.ignore]
        self._categories = [i for i, name in enumerate(schema.categories) if name not in config.ignore]
        self._columns = [*(schema.numbers[i] for i in self._numbers), "score"]
        self._columns += [schema.categories[i] for i in self._categories]
        self._score_at = len(self._numbers)
        nothing = Rows(
            np.zeros((0, len(self._numbers) + 1), np.float32),
            np.zeros((0, len(self._categories)), np.int64),
            np.zeros(0, np.str_),
            np.zeros(0, np.int64),
        )
        self._pending = nothing  # the window that is not yet full
        self._windows: list[Rows] = []  # the full ones since the reference was emptied, newest last
        self._reference: Reference | None = None
        self._made_of = 0  # windows the reference was made of ...
        self._age = 0  # ... and full windows since
        self._habit: deque[NDArray[np.float64]] = deque(maxlen=HABIT)
        self._score_habit = 0  # windows of the habit that are of the present model's scores
        self._newest = np.zeros(0)  # values of the newest comparison
        self._known = np.zeros(len(self._columns), np.int64)  # windows in which a column had a value
        self._alarms = np.zeros(len(self._columns), np.int64)  # of each column so far ...
        self._largest = np.zeros(len(self._columns))  # ... and the largest PSI among them, faded
        self._seen = 0
        self._quiet_until = 0

    def psi(self) -> dict[str, float]:
        """PSI of each watched column in the newest full window that was compared; empty before the first."""
        return dict(zip(self._columns, self._newest.tolist(), strict=True)) if len(self._newest) else {}

    def update(self, batch: Batch, scores: NDArray[np.floating[Any]], version: str) -> list[Alert]:
        """Feed a batch and its scores [n]. `version` is the live model's, for the alert."""
        score = np.asarray(scores, np.float32)[:, None]
        rows = Rows(
            np.concatenate([batch.numbers[:, self._numbers], score], axis=1),
            batch.categories[:, self._categories],
            np.array(batch.event_ids, np.str_),
            batch.event_ms,
        )
        pending = Rows.concat([self._pending, rows])
        size = self._config.window
        alerts: list[Alert] = []
        full = len(pending) // size * size
        for start in range(0, full, size):
            alerts += self._full_window(pending.slice(start, start + size), version)
        self._pending = pending.slice(full, len(pending))
        return alerts

    def swapped(self) -> None:
        """Another model gives the scores from now on: what was normal, and what is usual, begins anew."""
        self._rebase()
        self._score_habit = 0

    def _rebase(self) -> None:
        """Forget what was normal."""
        self._windows, self._reference = [], None
        self._made_of = self._age = 0

    def _full_window(self, window: Rows, version: str) -> list[Alert]:
        """Compare, maybe alert, then let the window become part of the past."""
        self._seen += len(window)
        self._largest *= FADE
        if self._reference is not None:
            codes = self._reference.codes(window.numbers, window.categories)
            seen = [shares(code, bins.count) for code, bins in zip(codes, self._reference.bins, strict=True)]
            values = np.array(
                [psi(now, then) for now, then in zip(seen, self._reference.shares, strict=True)]
            )
            self._newest = values
            alerts = self._judge(self._reference, window, values, seen, version)
            if alerts:
                self._known += window.known()
                self._rebase()  # this window may be half of each regime, so it is neither's reference
                return alerts
            self._habit.append(values)
            self._score_habit += 1
        self._known += window.known()
        self._remember(window)
        return []

    def _remember(self, window: Rows) -> None:
        """Keep the window, and make the reference anew when it is time."""
        self._windows = [*self._windows, window][-(REFERENCE + REFRESH) :]
        self._age += 1
        enough = len(self._windows) >= SMALLEST_REFERENCE
        if enough and (self._reference is None or self._age >= REFRESH):
            self._made_of, self._age = min(len(self._windows), REFERENCE), 0
            self._make_reference()

    def _make_reference(self) -> None:
        """From the `made_of` windows that end `age` windows ago, so that `load` can make the same one."""
        if self._made_of:
            end = len(self._windows) - self._age
            rows = Rows.concat(self._windows[end - self._made_of : end])
            self._reference = Reference(rows.numbers, rows.categories)

    def _thresholds(self, reference: Reference) -> NDArray[np.float64]:
        """What each column must pass now [columns]."""
        chance = self._config.delta / len(self._columns)
        size = self._config.window
        noise = [psi_noise(bins.count, size, reference.rows, chance) for bins in reference.bins]
        habit = 2.0 * np.quantile(np.array(self._habit), 0.9, axis=0)
        lesson = np.where(self._alarms >= LESSON, 1.5 * self._largest, 0.0)
        thresholds: NDArray[np.float64] = self._config.psi_threshold + np.array(noise) + habit + lesson
        thresholds[self._known < COLD_START] = np.inf
        if self._score_habit < SMALLEST_HABIT:
            thresholds[self._score_at] = np.inf
        return thresholds

    def _judge(
        self,
        reference: Reference,
        window: Rows,
        values: NDArray[np.float64],
        seen: Sequence[NDArray[np.float64]],
        version: str,
    ) -> list[Alert]:
        """At most one alert: the column that passes its threshold by most; the others are named in the
        message.
        """
        if len(self._habit) < SMALLEST_HABIT or self._seen < self._quiet_until:
            return []
        thresholds = self._thresholds(reference)
        order = np.argsort(-values / thresholds, kind="stable")
        passed = [int(column) for column in order if values[column] > thresholds[column]]
        if not passed:
            return []
        self._quiet_until = self._seen + self._config.cooldown
        self._alarms[passed] += 1
        self._largest[passed] = np.maximum(self._largest[passed], values[passed])
        column = passed[0]
        subject = self._columns[column]
        since_id, since_ms = self._onset(
            reference, window, column, np.log(seen[column] / reference.shares[column])
        )
        others = ", ".join(self._columns[other] for other in passed[1:6])
        message = f"{subject} moved: PSI {values[column]:.2f} against a threshold of {thresholds[column]:.2f}"
        message += f"; also {others}" if others else ""
        level: Literal["input", "score"] = "score" if column == self._score_at else "input"
        return [
            Alert(
                alert_id=f"psi-{self._seen}",
                detector="psi",
                level=level,
                subject=subject,
                strength=float(values[column]),
                threshold=float(thresholds[column]),
                since_event_id=since_id,
                since_ms=since_ms,
                event_ms=int(window.times[-1]),
                version=version,
                message=message,
            )
        ]

    def _onset(
        self, reference: Reference, window: Rows, column: int, evidence: NDArray[np.float64]
    ) -> tuple[str, int]:
        """The most likely first row of the new regime, in the window before or this one.

        `evidence` [bins] is the log ratio of the new share of each bin to the old one; the row from which its
        sum to the end is largest is the maximum-likelihood change point.
        """
        rows = Rows.concat([*self._windows[-1:], window])
        codes = reference.codes(rows.numbers, rows.categories)[column]
        start = int(np.argmax(np.cumsum(evidence[codes][::-1])[::-1]))
        return str(rows.ids[start]), int(rows.times[start])

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detector goes on exactly as here."""
        rows = Rows.concat([*self._windows, self._pending])
        columns = len(self._columns)
        return {
            "numbers": rows.numbers,
            "categories": rows.categories,
            "ids": rows.ids,
            "times": rows.times,
            "known": self._known.copy(),
            "alarms": self._alarms.copy(),
            "largest": self._largest.copy(),
            "newest": self._newest.copy(),
            "habit": np.array(self._habit, np.float64).reshape(-1, columns),
            "windows": np.array([len(self._windows), self._made_of, self._age], np.int64),
            "counts": np.array([self._seen, self._quiet_until, self._score_habit], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`, for a detector of the same schema and settings."""
        rows = Rows(state["numbers"], state["categories"], state["ids"], state["times"])
        windows, self._made_of, self._age = state["windows"].tolist()
        self._seen, self._quiet_until, self._score_habit = state["counts"].tolist()
        size = self._config.window
        self._windows = [rows.slice(i * size, (i + 1) * size) for i in range(windows)]
        self._pending = rows.slice(windows * size, len(rows))
        self._habit = deque(state["habit"], maxlen=HABIT)
        self._newest, self._known = state["newest"].copy(), state["known"].copy()
        self._alarms, self._largest = state["alarms"].copy(), state["largest"].copy()
        self._reference = None
        self._make_reference()
