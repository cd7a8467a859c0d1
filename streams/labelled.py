"""Reading `labelled`: steps of the learner's size, cut by `learners.cuts`, and the steps of the ledger once more."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from kafka import TopicPartition

from infra.clock import ticks_ms
from infra.kafka import Record, make_consumer
from infra.metrics import Metrics
from learners.batch import Batch
from learners.cuts import Cutter, RowsGone, Step
from learners.entries import OneStep, Position
from streams.wire import Damaged, decode_labelled

log = logging.getLogger(__name__)

POLL_MS = 100
OPEN_POLL_MS = 10  # while rows wait for the end of a transaction
PATIENCE_MS = 1_000  # of polling for a partition that has records to come: longer than a transaction takes
MOST_WAITING = 256  # records of a partition that are kept while another one's are awaited


class LabelledLog(Protocol):
    """The log of labelled rows. Five methods: what reading by position takes, and what is still there to read.

    `KafkaLog` is the real one; `ListLog` has it in memory.
    """

    def start(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on."""

    def poll(self, timeout_ms: int, skip: Collection[int]) -> Sequence[Record]:
        """The next records, each partition's in order, of partitions not in `skip`; waits for the first of them."""

    def behind(self) -> dict[int, int]:
        """The partitions that are known to have records which `poll` has not given, or of which nothing is known.

        With each, how many records are known.
        """

    def oldest(self) -> dict[int, int]:
        """The oldest offset that each partition still has."""

    def close(self) -> None:
        """Stop reading."""


class KafkaLog:
    """All partitions of a topic, assigned by hand.

    A partition that is to be skipped is given up for as long. kafka-python 3.0 could pause it, but keeps what it has
    fetched of a paused one in a place which it does not look at again while another one's records come.
    """

    def __init__(self, kafka: str, topic: str, partitions: int) -> None:
        self._places = {p: TopicPartition(topic, p) for p in range(partitions)}
        self._consumer = make_consumer(kafka, max_poll_records=64)
        self._assigned: set[int] = set()
        self._next: dict[int, int] = {}
        self._ends: dict[int, int | None] = {}

    def start(self, offsets: Mapping[int, int]) -> None:
        """See LabelledLog."""
        self._next = {p: offsets[p] for p in self._places}
        self._ends = dict.fromkeys(self._places)
        self._assigned = set()
        self._assign(set(self._places))

    def _assign(self, wanted: set[int]) -> None:
        self._consumer.assign([self._places[p] for p in sorted(wanted)])
        for p in wanted - self._assigned:
            self._consumer.seek(self._places[p], self._next[p])
        self._assigned = wanted

    def poll(self, timeout_ms: int, skip: Collection[int]) -> Sequence[Record]:
        """See LabelledLog."""
        wanted = self._places.keys() - set(skip)
        if not wanted:
            return []
        if wanted != self._assigned:
            self._assign(wanted)
        polled = self._consumer.poll(timeout_ms=timeout_ms)
        for p in self._assigned:
            self._next[p] = self._consumer.position(self._places[p])
            end = self._consumer.highwater(self._places[p])
            self._ends[p] = self._ends[p] if end is None else end
        return [record for records in polled.values() for record in records]

    def behind(self) -> dict[int, int]:
        """See LabelledLog. What an open transaction has written counts as still to come."""
        left = {p: 0 if end is None else end - self._next[p] for p, end in self._ends.items()}
        return {p: count for p, count in left.items() if count > 0 or self._ends[p] is None}

    def oldest(self) -> dict[int, int]:
        """See LabelledLog."""
        offsets = self._consumer.beginning_offsets(list(self._places.values()))
        return {p: int(offsets[place]) for p, place in self._places.items()}

    def close(self) -> None:
        """See LabelledLog."""
        self._consumer.close()


class ListLog:
    """Partitions in memory: for tests and benchmarks. `at_once` records are given at a time."""

    def __init__(self, partitions: Mapping[int, Sequence[Record]], at_once: int = 64) -> None:
        self._partitions, self._at_once = partitions, at_once
        self._next = dict.fromkeys(partitions, 0)

    def start(self, offsets: Mapping[int, int]) -> None:
        """See LabelledLog."""
        for p, records in self._partitions.items():
            self._next[p] = sum(record.offset < offsets[p] for record in records)

    def poll(self, timeout_ms: int, skip: Collection[int]) -> Sequence[Record]:
        """See LabelledLog. It never waits."""
        for p in sorted(self.behind().keys() - set(skip)):
            begin = self._next[p]
            self._next[p] = min(begin + self._at_once, len(self._partitions[p]))
            return self._partitions[p][begin : self._next[p]]
        return []

    def behind(self) -> dict[int, int]:
        """See LabelledLog."""
        left = {p: len(records) - self._next[p] for p, records in self._partitions.items()}
        return {p: count for p, count in left.items() if count}

    def oldest(self) -> dict[int, int]:
        """See LabelledLog."""
        return {p: records[0].offset if records else 0 for p, records in self._partitions.items()}

    def close(self) -> None:
        """See LabelledLog."""


class LabelledReader:
    """Steps of `size` rows from a log whose rows have the schema `rows_hash`. Call `start` first."""

    def __init__(self, source: LabelledLog, size: int, rows_hash: str, metrics: Metrics) -> None:
        self._log, self._size, self._rows_hash, self._metrics = source, size, rows_hash, metrics
        self._cutter = Cutter(size, {})
        self._full = False
        self._awaited_ms: dict[int, int] = {}

    @property
    def positions(self) -> dict[int, Position]:
        """Where each partition goes on after the steps that were handed out."""
        return dict(self._cutter.positions)

    @property
    def behind(self) -> int:
        """Records that are in the log, as far as is known, and not yet in a step that was handed out."""
        return sum(self._log.behind().values()) + sum(map(self._cutter.waiting, self._cutter.positions))

    def start(self, positions: Mapping[int, Position]) -> None:
        """Read on from these positions, whatever was read before."""
        self._cutter, self._full, self._awaited_ms = Cutter(self._size, positions), False, {}
        self._log.start({p: offset for p, (offset, _) in positions.items()})

    def steps(self, most: int) -> list[Step]:
        """The next steps, at most `most`: waits a moment if none is there."""
        wait = 0 if self._full else POLL_MS if not self._cutter.open_rows else OPEN_POLL_MS
        began = ticks_ms()
        self._poll(wait, most_waiting=MOST_WAITING)
        awaited = self._awaited(min(ticks_ms() - began, wait))
        made = self._cutter.steps(awaited, most, flush=True)
        self._full = len(made) == most
        return made

    def again(self, step: OneStep) -> Batch:
        """The rows of a step of the ledger, which must be the next one. Raises RowsGone when they cannot be had."""
        while (batch := self._cutter.again(step.runs, step.rows)) is None:
            behind = self._log.behind()
            if not self._poll(POLL_MS) and not behind.keys() & {run.partition for run in step.runs}:
                raise RowsGone(f"the log ends before step {step.number}")
        return batch

    def _poll(self, timeout_ms: int, most_waiting: int | None = None) -> int:
        """Take records into the cutter; how many."""
        waiting = {p: self._cutter.waiting(p) for p in self._cutter.positions}
        skip = {p for p, count in waiting.items() if most_waiting is not None and count >= most_waiting}
        records = self._log.poll(timeout_ms, skip)
        for record in records:
            self._cutter.add(record.partition, record.offset, record.timestamp, self._decoded(record))
        return len(records)

    def _awaited(self, polled_ms: int) -> set[int]:
        """Partitions whose next records are worth waiting for, after one more poll that took so long.

        One whose writer hangs in the middle of a transaction is not: after a while the others go on without it. Only
        time in polls counts, so that a slow machine does not cut a backlog otherwise than a fast one.
        """
        behind = self._log.behind()
        empty = {p for p in behind if not self._cutter.waiting(p)}
        self._awaited_ms = {p: self._awaited_ms.get(p, 0) + polled_ms for p in empty}
        return {p for p in behind if self._awaited_ms.get(p, 0) < PATIENCE_MS}

    def _decoded(self, record: Record) -> Batch | None:
        """The record's rows; None for rows that cannot be learned from: the first is logged, all are counted."""
        try:
            return decode_labelled(record.value, self._rows_hash).batch()
        except Damaged as error:
            if "damaged_total" not in self._metrics.snapshot():
                at = f"{record.topic}[{record.partition}]@{record.offset}"
                log.warning("%s is left out: %s (further ones are only counted)", at, error)
            self._metrics.count("damaged_total")
            return None
