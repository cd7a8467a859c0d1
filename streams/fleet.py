"""What the serve workers say of the models that they run, and who of them is behind.

Every worker sends a report about once a second, and at once when it took or refused a whole model.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.admission import BadUpdate
from learners.rollback import Scored
from learners.target import BINARY, Target

LIMIT_MS = 2_000  # by then every worker has a swap
FORGET_MS = 5_000  # a worker that says nothing for so long is not waited for: it is gone


class Refusal(msgspec.Struct, frozen=True):
    """A model that a worker did not take: the check that it failed (`learners.admission`), and why."""

    version: str
    step: str
    reason: str


class Report(msgspec.Struct, frozen=True):
    """What one worker serves, what it refused and what it scored since its last report."""

    task: str
    worker: str
    version: str
    created_at: int
    refused: tuple[Refusal, ...] = ()
    canary: bool = False  # it is about the canary, and not about what serves all others
    scored: Scored = Scored()


class ReportWriter:
    """Collects what one worker has to say until its next report. `budget_ms` is for scoring 64 rows."""

    def __init__(self, task: str, worker: str, budget_ms: float, target: Target = BINARY) -> None:
        self._task, self._worker, self._budget_ms, self._target = task, worker, budget_ms, target
        self._clear()

    def _clear(self) -> None:
        self._refusals: list[Refusal] = []
        self._lineage, self._scored = "", Scored()

    def scored(self, version: str, scores: NDArray[np.float32], took_ms: float) -> None:
        """Note a batch of scores [n] by `version`, and how long they took. A swap begins a new count."""
        lineage = version.partition(".")[0]
        if lineage != self._lineage:
            self._lineage, self._scored = lineage, Scored()
        self._scored = self._scored.plus(scores, took_ms, self._budget_ms, self._target)

    def refused(self, version: str, error: BadUpdate) -> None:
        """Note a model that was not taken."""
        self._refusals.append(Refusal(version, error.step, str(error)))

    def take(self, version: str, now_ms: int, *, canary: bool = False) -> bytes:
        """The report as JSON, of a worker that serves `version` now; the next one begins here."""
        scored = self._scored if version.partition(".")[0] == self._lineage else Scored()
        report = Report(self._task, self._worker, version, now_ms, tuple(self._refusals), canary, scored)
        self._clear()
        return msgspec.json.encode(report)


@dataclass(frozen=True)
class Straggler:
    """A worker that does not have the version that the swap to `wanted` brought `late_ms` ago."""

    worker: str
    wanted: str
    has: str
    late_ms: int


class Fleet:
    """Follows the reports of all workers of a task; pure, the clock goes in.

    A swap is waited for by every worker that reported within `FORGET_MS` before it or since. Whoever has not
    said within `LIMIT_MS` that it serves that version's lineage, at that refresh or a later one, is a straggler,
    and is named once for each swap.
    """

    def __init__(self) -> None:
        self._heard: dict[str, Report] = {}
        self._wanted = ""
        self._since_ms = 0
        self._named: set[str] = set()
        self.complete_ms: int | None = None  # how long the newest swap took to reach everyone

    def swapped(self, version: str, now_ms: int) -> None:
        """A swap to `version` was published now."""
        self._wanted, self._since_ms, self.complete_ms = version, now_ms, None
        self._named.clear()

    def hear(self, report: Report) -> None:
        """Note what a worker said."""
        self._heard[report.worker] = report

    def late(self, now_ms: int) -> list[Straggler]:
        """The stragglers that were not named before."""
        self._heard = {w: r for w, r in self._heard.items() if r.created_at >= now_ms - FORGET_MS}
        if not self._wanted or self.complete_ms is not None:
            return []
        behind = [report for report in self._heard.values() if not _has(report.version, self._wanted)]
        if not behind and self._heard:
            arrived = [r.created_at for r in self._heard.values()]
            self.complete_ms = max(0, max(arrived) - self._since_ms)
        if now_ms - self._since_ms < LIMIT_MS:
            return []
        new = [report for report in behind if report.worker not in self._named]
        self._named.update(report.worker for report in new)
        waited = now_ms - self._since_ms
        return [Straggler(report.worker, self._wanted, report.version, waited) for report in new]


def _has(version: str, wanted: str) -> bool:
    (lineage, _, refresh), (its, _, least) = version.partition("."), wanted.partition(".")
    return lineage == its and int(refresh) >= int(least)
