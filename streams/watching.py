"""Watching what is served, before its labels are known: inputs and scores of the examples topic.

Labels may come a week after their events; an input that is missing or in other units since today is in the examples of
today. The learner reads them too, beside the labelled rows, and lets `learners.shift` look at each once, in the order
of the times of their records. What it notices is written into the training ledger before it is told, with the place in
the topic that it was noticed at, so that a learner that is started again neither forgets it nor notices it twice.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.kafka import Record
from infra.metrics import Metrics
from learners.batch import Batch
from learners.drift import Alert
from learners.packing import pack, unpack
from learners.shift import ShiftDetector
from streams.labelled import LabelledLog
from streams.task import Task
from streams.wire import EXAMPLES, KIND, Damaged, decode_examples

log = logging.getLogger(__name__)

STATE = "served.npz"
MOST_ROWS = 16_384  # of a turn, or some more: learning waits for its end
MOST_WAITING = 256  # records of a partition that are kept while another one's are awaited


class ServedWatch:
    """Reads a task's examples and says when inputs or scores moved. First `load` a state if there is one, then `start`.

    `positions` is the offset at which each partition goes on. `learned` says from how many examples a version had
    learned.
    """

    def __init__(
        self, task: Task, source: LabelledLog, metrics: Metrics, learned: Callable[[str], int]
    ) -> None:
        self._task, self._log, self._metrics, self._learned = task, source, metrics, learned
        self._made_for = f"{task.schema_hash} {task.drift}"
        self._detector = ShiftDetector(task.schema, task.drift)
        self._lineage = ""
        self._waiting: dict[int, deque[Record]] = {}
        self._behind: dict[int, int] = {}
        self.positions: dict[int, int] = {}
        self.event_ms = 0
        self._looked = 0  # rows, since the start

    def start(self) -> None:
        """Read on at `positions`; a partition without one, or whose place is gone, at its oldest record."""
        oldest = self._log.oldest()
        self.positions = {p: max(first, self.positions.get(p, 0)) for p, first in oldest.items()}
        self._waiting = {p: deque() for p in self.positions}
        self._behind = dict.fromkeys(self.positions, 0)
        self._log.start(self.positions)

    def turn(self) -> Alert | None:
        """Look at what is there, without waiting, up to the first alarm; about as many rows as a round learns."""
        until = self._looked + MOST_ROWS
        while self._looked < until:
            if (record := self._next()) is None:
                if not self._poll():
                    return None
            elif alert := self._look(record):
                return alert
        return None

    def _poll(self) -> int:
        """Take the records that have come; how many."""
        skip = {p for p, records in self._waiting.items() if len(records) >= MOST_WAITING}
        records = self._log.poll(0, skip)
        for record in records:
            self._waiting[record.partition].append(record)
        self._behind = self._log.behind()
        return len(records)

    def _next(self) -> Record | None:
        """The oldest record; None where that cannot be known yet."""
        if any(not self._waiting[p] for p in self._behind):
            return None
        heads = [(records[0].timestamp, p) for p, records in self._waiting.items() if records]
        if not heads:
            return None
        record = self._waiting[min(heads)[1]].popleft()
        self.positions[record.partition] = record.offset + 1
        return record

    def _look(self, record: Record) -> Alert | None:
        if dict(record.headers).get(KIND) != EXAMPLES:
            return None
        try:
            rows, served, versions = decode_examples(record.value, self._task.rows_hash)
        except Damaged:
            self._metrics.count("damaged_total")
            return None
        self._looked += len(rows)
        of_live = np.flatnonzero(rows.arm <= 0)  # not what a canary served beside the champion
        if not len(of_live):
            return None
        version = versions[of_live[-1]]
        if len(of_live) < len(rows):
            rows, served = rows.take(of_live), served[of_live]
        lineage = version.partition(".")[0]  # a record is of one version, but for a canary's rows
        if lineage != self._lineage:
            if self._lineage:
                self._detector.swapped()
            self._lineage = lineage
        unknown = np.zeros(len(rows), np.float32)
        batch = Batch(rows.ids, rows.event_ms, rows.event_ms, rows.numbers, rows.categories, served, unknown)
        self.event_ms = max(self.event_ms, int(rows.event_ms.max()))
        one = self._task.schema.target.one(served)
        found = self._detector.update(batch, one, version, self._learned(version))
        return found[0] if found else None

    def psi(self) -> dict[str, float]:
        """PSI of each watched column in the newest window (see `ShiftDetector.psi`)."""
        return self._detector.psi()

    def alarmed(self, positions: Mapping[int, int], seen: int) -> None:
        """An alarm of the ledger, after `seen` rows: go on behind it, as after any alarm."""
        self.positions = dict(positions)
        self._detector.alarmed(seen)

    @property
    def behind(self) -> int:
        """Records that are in the log, as far as is known, and were not looked at."""
        return sum(self._behind.values()) + sum(map(len, self._waiting.values()))

    @property
    def seen(self) -> int:
        """Rows that were looked at in whole blocks."""
        return self._detector.seen

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Everything: files, and a record ready for JSON."""
        record = {
            "made_for": self._made_for,
            "lineage": self._lineage,
            "positions": self.positions,
            "event_ms": self.event_ms,
        }
        return {STATE: pack(self._detector.state())}, record

    def load(self, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """The inverse of `state`. With other features or settings only the place is taken over."""
        self.positions = {int(p): int(offset) for p, offset in record["positions"].items()}
        if record["made_for"] == self._made_for:
            arrays: dict[str, NDArray[Any]] = unpack(files[STATE])
            self._detector.load(arrays)
            self._lineage, self.event_ms = record["lineage"], record["event_ms"]
