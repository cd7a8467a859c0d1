"""What an arena measures: every arm's scores of a step into its window, and rows of metrics out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, Schema
from learners.challenger import Challenger, Now
from learners.prequential import MetricRow, Prequential, id_hashes, metric_row
from learners.segments import Segmented
from learners.trainer import Trainer

TRIAL = "trial"  # the window of the champion on the examples that challengers were tested on
Arm = tuple[str, str, str]  # its part, its lineage, and the name of its window


@dataclass(frozen=True)
class Seen:
    """A step as all arms saw it before they learned from it: scores [n] and losses [n] by arm, losses [n] of
    what was served, and its segments.
    """

    batch: Batch
    scores: Mapping[str, NDArray[np.float32]]
    losses: Mapping[str, NDArray[np.float64]]
    served: NDArray[np.float64]
    about: Segmented


def arms_of(
    champion: str, continuous: str, frozen: Trainer | None, challengers: Sequence[Challenger]
) -> list[Arm]:
    """The arms that have rows; `champion` and `continuous` are lineages, "" where there is none."""
    arms = [("served", "", "served"), ("champion", champion, "champion")]
    arms += [("continuous", continuous, continuous)] if continuous else []
    arms += [("frozen", frozen.lineage, "frozen")] if frozen else []
    return arms + [("challenger", challenger.lineage, challenger.lineage) for challenger in challengers]


class Measure:
    """The windows of all arms, by lineage and as "served", "champion", "frozen" and "trial"; and segments."""

    def __init__(self, schema: Schema, window: int, segments: Sequence[str]) -> None:
        self._columns = [schema.categories.index(name) for name in segments]
        self._target = schema.target
        self.windows = Prequential(window, segments, schema.target)

    def corrected(self, batch: Batch) -> Batch:
        """The rows that are here for the first time; the others have changed the label of theirs."""
        again = batch.corrects
        if not again.any():
            return batch
        corrections = batch.take(again)
        self.windows.correct(corrections.event_ids, corrections.label)
        return batch.take(~again)

    def add(
        self, batch: Batch, scores: Mapping[str, NDArray[np.float32]], champion: str, *, trial: bool
    ) -> None:
        """The scores [n] that every arm gave a step before it learned from it, and those that were served.

        `trial`: challengers are among the arms.
        """
        about = np.column_stack((id_hashes(batch.event_ids), batch.categories[:, self._columns]))
        for arm, score in (*scores.items(), ("champion", scores[champion])):
            self.windows.update(arm, batch.label, score, about)
        if trial:
            self.windows.update(TRIAL, batch.label, scores[champion], about)
        known = self._target.known(batch.served)
        self.windows.update("served", batch.label[known], batch.served[known], about[known])

    def segmented(self, batch: Batch, share: float) -> Segmented:
        """The segments of a step, and those with at least `share` of what the champion saw of late."""
        return Segmented(batch.categories[:, self._columns], tuple(self.windows.large("champion", share)))

    def rows(self, arms: Sequence[Arm], now: Now) -> list[MetricRow]:
        """A row for each arm, then for each arm and segment: the champion's frequent values, so that all compare."""
        times, windows = (now.event_ms, now.created_ms), self.windows
        values = {key: windows.row(key) for key in {key for _, _, key in arms}}
        whole = [metric_row(arm, lineage, values[key], *times) for arm, lineage, key in arms]
        return whole + [
            metric_row(arm, lineage, windows.segment_row(key, *segment), *times, segment)
            for arm, lineage, key in arms
            for segment in windows.values("champion")
        ]
