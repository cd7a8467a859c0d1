"""What the serve workers say of the models that they run, and who of them is behind.

Every worker sends a report about once a second, and at once when it took or refused a whole model.
"""

from collections.abc import Mapping
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
    """A worker that does not have the version `wanted`, `late_ms` after what brought it, which is said in words.

    `has` is "" where a canary is wanted and it serves none.
    """

    worker: str
    wanted: str
    has: str
    late_ms: int
    after: str


class _Awaited:
    """A version that all workers are to have since then; "": nothing is waited for."""

    def __init__(self, wanted: str = "", since_ms: int = 0, after: str = "") -> None:
        self._wanted, self._since_ms, self._after = wanted, since_ms, after
        self._named: set[str] = set()
        self.complete_ms: int | None = None  # how long it took to reach everyone

    def late(self, has: Mapping[str, str], newest_ms: int, now_ms: int) -> list[Straggler]:
        """The stragglers that were not named before, of workers with the versions that they have; `newest_ms` is the
        time of the newest report.
        """
        if not self._wanted or self.complete_ms is not None:
            return []
        behind = [worker for worker, version in has.items() if not _has(version, self._wanted)]
        if not behind and has:
            self.complete_ms = max(0, newest_ms - self._since_ms)
        waited = now_ms - self._since_ms
        if waited < LIMIT_MS:
            return []
        new = [worker for worker in behind if worker not in self._named]
        self._named.update(new)
        return [Straggler(worker, self._wanted, has[worker], waited, self._after) for worker in new]


class Fleet:
    """Follows the reports of all workers of a task; pure, the clock goes in.

    A swap, the beginning of a canary and its end are waited for by every worker that reported within `FORGET_MS`
    before it or since. Whoever has not said within `LIMIT_MS` that it serves that version's lineage, at that refresh
    or a later one, is a straggler, and is named once for each. A canary ends with the champion sent whole, so a worker
    that has that has dropped it.
    """

    def __init__(self) -> None:
        self._heard: dict[str, Report] = {}
        self._beside: dict[str, str] = {}  # the newest version that each worker served as the canary
        self._swap, self._canary = _Awaited(), _Awaited()

    def swapped(self, version: str, now_ms: int) -> None:
        """A swap to `version` was published now."""
        self._swap = _Awaited(version, now_ms, f"the swap to {version}")

    def canary_began(self, version: str, now_ms: int) -> None:
        """`version` was published as a canary now."""
        self._beside, self._canary = {}, _Awaited(version, now_ms, f"{version} became a canary")

    def canary_ended(self, champion: str, now_ms: int) -> None:
        """The champion was published whole now, as this version, and ends the canary."""
        self._canary = _Awaited()
        self._swap = _Awaited(champion, now_ms, f"{champion} had ended the canary")

    def hear(self, report: Report) -> None:
        """Note what a worker said."""
        if report.canary:
            self._beside[report.worker] = report.version
        else:
            self._heard[report.worker] = report

    def late(self, now_ms: int) -> list[Straggler]:
        """The stragglers that were not named before."""
        self._heard = {w: r for w, r in self._heard.items() if r.created_at >= now_ms - FORGET_MS}
        newest_ms = max((report.created_at for report in self._heard.values()), default=0)
        has = {worker: report.version for worker, report in self._heard.items()}
        beside = {worker: self._beside.get(worker, "") for worker in has}
        return [*self._swap.late(has, newest_ms, now_ms), *self._canary.late(beside, newest_ms, now_ms)]

    @property
    def complete_ms(self) -> int | None:
        """How long the newest swap took to reach everyone; None before it has."""
        return self._swap.complete_ms


def _has(version: str, wanted: str) -> bool:
    (lineage, _, refresh), (its, _, least) = version.partition("."), wanted.partition(".")
    return lineage == its and int(refresh) >= int(least)
