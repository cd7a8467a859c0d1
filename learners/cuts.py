"""Where one step ends and the next begins: a function of the log, not of how its records happened to arrive.

Rows of all partitions are merged by the time of their record (then by partition) and cut at every `size` rows. So a
backlog is cut alike however often it is read, and partitions that are behind are worked off side by side in time. Only
at the live end, where a step would have to wait for rows that are not there yet, the caller says when to cut what
there is; the ledger remembers it.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from learners.batch import Batch
from learners.entries import Position, Run


class RowsGone(Exception):
    """Rows that the ledger names are not in the log any more; the message says which."""


@dataclass(frozen=True)
class Step:
    """The rows of one step, and where they stand."""

    batch: Batch
    runs: tuple[Run, ...]


@dataclass
class _Record:
    """One record of the log. `batch` is None when it cannot be learned from."""

    offset: int
    time_ms: int
    batch: Batch | None

    @property
    def rows(self) -> int:
        return 0 if self.batch is None else len(self.batch)


class Cutter:
    """Takes records of each partition in their order, and gives steps.

    `positions` is where each partition goes on after the steps given so far. A record that is there from a position's
    offset on is to be added again, whole, by whoever starts at that position.
    """

    def __init__(self, size: int, positions: Mapping[int, Position]) -> None:
        self.positions = dict(positions)
        self._size = size
        self._waiting: dict[int, deque[_Record]] = {partition: deque() for partition in positions}
        self._seen = {partition: offset - 1 for partition, (offset, _) in positions.items()}
        self._reached = dict(positions)  # with the rows of the open step
        self._open: list[Batch] = []
        self._runs: list[Run] = []
        self._rows = 0

    def add(self, partition: int, offset: int, time_ms: int, batch: Batch | None) -> None:
        """The partition's next record."""
        self._waiting[partition].append(_Record(offset, time_ms, batch))
        self._seen[partition] = offset

    @property
    def open_rows(self) -> int:
        """How many rows wait for the rest of their step."""
        return self._rows

    def waiting(self, partition: int) -> int:
        """How many records of the partition no step has taken whole."""
        return len(self._waiting[partition])

    def steps(self, behind: Collection[int], most: int, *, flush: bool) -> list[Step]:
        """At most `most` steps of the rows that are there.

        Partitions `behind` have records that are still to come: what is merged never passes them. With `flush`, when
        none is behind, the rows that are left make a step of less than `size`.
        """
        made: list[Step] = []
        while len(made) < most and (partition := self._next(behind)) is not None:
            self._take(partition, self._size - self._rows)
            if self._rows == self._size:
                made.append(self._close())
        if flush and self._rows and len(made) < most and not behind:
            made.append(self._close())
        if not self._rows:
            self.positions = dict(self._reached)  # also past records without rows
        return made

    def again(self, runs: Sequence[Run], rows: int) -> Batch | None:
        """The rows of a step that the ledger names, None while some are still to come. Raises RowsGone."""
        if any(self._seen[run.partition] < run.next_offset - (run.next_row == 0) for run in runs):
            return None
        for run in runs:
            p = run.partition
            while self._reached[p] < run.start and self._waiting[p] and not self._waiting[p][0].rows:
                self._take(p, 0)
            if self._reached[p] != run.start:
                raise RowsGone(f"partition {p} goes on at {self._reached[p]}, and not at {run.start}")
            while self._waiting[p] and (self._waiting[p][0].offset, 0) < run.end > self._reached[p]:
                record = self._waiting[p][0]
                last = run.next_row if record.offset == run.next_offset else record.rows
                self._take(p, last - self._done(p, record))
            self._reached[p] = run.end
        if self._rows != rows:
            raise RowsGone(f"of {rows} rows of a step {self._rows} are left")
        return self._close().batch

    def _next(self, behind: Collection[int]) -> int | None:
        """The partition whose first record is the oldest; None where that cannot be known yet."""
        if any(not self._waiting[partition] for partition in behind):
            return None
        heads = [(queue[0].time_ms, partition) for partition, queue in self._waiting.items() if queue]
        return min(heads)[1] if heads else None

    def _done(self, partition: int, record: _Record) -> int:
        """How many rows of the record are taken already."""
        offset, row = self._reached[partition]
        return row if offset == record.offset else 0

    def _take(self, partition: int, most: int) -> None:
        """Move up to `most` rows of the partition's first record into the open step."""
        record, before = self._waiting[partition][0], self._reached[partition]
        done = self._done(partition, record)
        taken = min(most, record.rows - done)
        if done + taken == record.rows:
            self._waiting[partition].popleft()
            self._reached[partition] = (record.offset + 1, 0)
        else:
            self._reached[partition] = (record.offset, done + taken)
        if record.batch is not None and taken:
            self._open.append(record.batch.slice(done, done + taken))
            self._rows += taken
            if self._runs and self._runs[-1].partition == partition:
                before = self._runs.pop().start
            self._runs.append(Run(partition, *before, *self._reached[partition]))

    def _close(self) -> Step:
        """The open step, which is done now."""
        step = Step(Batch.concat(self._open), tuple(self._runs))
        self._open, self._runs, self._rows = [], [], 0
        self.positions = dict(self._reached)
        return step
