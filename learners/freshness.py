"""Which served scores were staler than they had to be: late refreshes, told from late labels.

The loss of what was served rises when the world changes. It also rises when a model serves for long without what its
learner has learned: a young one is worse within minutes. That is no drift, and nothing to start challengers for. A
model as fresh as could be would have learned every label that was known when the event was scored. Its score is not
there, but two that are near it: the served one, which is behind it by the time for which labels had been known that its
version did not learn, and the champion's when the label comes, which is ahead of it by the time that the label took.
The nearer one counts.

So where labels take a week, what was served counts, which no model could have done better. Where refreshes are
further apart than labels are from their events, the champion's counts.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, lineage_number, refresh_number

LONG_AGO = -(2**62)  # before any event time
MOST = 1_024  # versions that are remembered, the newest
PARTS = 16  # of the time that a label takes: versions nearer to each other count as the older one


class Freshness:
    """What the live lineage's versions had learned, by the times at which labels became known.

    A score of another lineage, or by a version that is not remembered, counts as it is.
    """

    def __init__(self) -> None:
        self._lineage = 0
        self._known_ms = LONG_AGO  # labels that were known until then are learned
        # Versions: the number of the refresh, and `_known_ms` when it was made.
        self._made: list[tuple[int, int]] = []

    def fresh(self, batch: Batch, version: str) -> Batch:
        """The next batch, without those served scores that the champion's own are to stand for: they are NaN.

        `version` is the champion's newest; it has learned from batches before this one only.
        """
        delay = batch.known_ms - batch.event_ms
        self._note(version, int(np.median(delay)))
        self._known_ms = max(self._known_ms, int(np.median(batch.known_ms)))  # not one wrong clock decides
        numbers, known_ms = np.array(self._made, np.int64).reshape(-1, 2).T
        place = np.searchsorted(numbers, batch.refresh, side="right") - 1
        told = (batch.lineage == self._lineage) & (place >= 0)
        stale = np.flatnonzero(told)
        stale = stale[batch.event_ms[stale] - known_ms[place[stale]] > delay[stale]]
        if not len(stale):
            return batch
        served = batch.served.copy()
        served[stale] = np.nan
        return replace(batch, served=served)

    def _note(self, version: str, delay_ms: int) -> None:
        """Remember the newest version, if it is new and of another time than the one before."""
        lineage, refresh = lineage_number(version), refresh_number(version)
        if lineage != self._lineage:
            self._lineage, self._made = lineage, []
        number, known_ms = self._made[-1] if self._made else (0, LONG_AGO)
        if refresh > number and self._known_ms > known_ms + delay_ms // PARTS:
            self._made = [*self._made[1 - MOST :], (refresh, self._known_ms)]

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything; `load` is the inverse."""
        return {
            "counts": np.array([self._lineage, self._known_ms], np.int64),
            "made": np.array(self._made, np.int64).reshape(-1, 2),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self._lineage, self._known_ms = state["counts"].tolist()
        self._made = [(refresh, known_ms) for refresh, known_ms in state["made"].tolist()]
