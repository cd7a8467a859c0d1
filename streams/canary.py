"""The canary of a serving worker: a second model beside the live one, for a share of the entities."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.canary import arm_code, chosen
from learners.slot import Slot
from streams.fleet import ReportWriter

ARMS = ("champion", "canary")
"""What a prediction calls the two arms."""


def arms(keys: NDArray[np.int64], lineage: str, share: float) -> NDArray[np.int32]:
    """The arm int32 [n] of each entity `keys` [n] while this lineage is the canary, as `arm_code` says."""
    code = arm_code(lineage)
    return np.where(chosen(keys, lineage, share), code, -code).astype(np.int32)


@dataclass(frozen=True)
class Answer:
    """Scores float32 [n], the versions [n] that made them, and for each the arm of a canary, int32 [n].

    The arm is as `learners.canary.arm_code` says.
    """

    scores: NDArray[np.float32]
    versions: list[str]
    arm: NDArray[np.int32]


@dataclass(frozen=True)
class Canary:
    """Its slot, its share of the entities, and what is reported of it."""

    slot: Slot
    share: float
    report: ReportWriter

    def score(
        self, numbers: NDArray[np.float32], categories: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], str]:
        """Scores float32 [n] of rows, and the version that made them."""
        start = time.perf_counter()
        scores, version = self.slot.score(numbers, categories)
        self.report.scored(version, scores, (time.perf_counter() - start) * 1000.0)
        return scores, version

    def arms(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The arm of each entity [n]."""
        return arms(keys, self.slot.lineage, self.share)
