"""The state of one partition of the join: what becomes of each example and of each label.

Pure: no Kafka, no clock. The partition's log holds examples and labels in one order, so a replay of the log makes every
decision again exactly as it was made.

An example is decided once. Where the task gives a missing label a value, that is when its window closes: by the first
label for its id, or else by that value. Deciding the labelled ones sooner would show the learner positives before the
negatives of the same minute. Where a missing label drops the example, the first label decides it at once. When a window
closes, `gate.Gate` says: no sooner than every label has come that Kafka had by then.

What was decided is remembered for `label.late_for` more. A label that comes in that time after the missing value was
taken, and says otherwise, is a correction (`label.late`): the row once more, with that label, known when it came. The
first label of an event counts; a further one that agrees is a duplicate, one that does not a contradiction.

A label without its example is kept until every event that Kafka got before it, and for a window and the allowed
lateness after it, has passed: by Kafka's clock, since a join that catches up reads labels long before examples. Then it
is an orphan.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams import wire
from streams.gate import Gate
from streams.task import Task
from streams.waiting import DECIDED, EARLY, WAITING, Entry, Waiting
from streams.wire import Damaged, Feedback, Labelled

log = logging.getLogger(__name__)
_FORMAT = 3  # of a snapshot: one that was written otherwise must not be loaded
_MEMORY = 0.9995  # the share of late labels is that among about the last 2,000
_PRIOR = 20.0  # labels in time that are taken to have been there before the first one


@dataclass
class JoinCounts:
    """What happened to examples and labels, since the partition was taken over.

    Examples: `joined` with a label in time, `defaulted` to the missing value, `dropped` without a label; `repeated`
    ones came with the id of one that was there. Labels: `corrected` a default, came too `late` to change anything,
    `duplicates` and `contradictions` of a first one, `orphans` without an example. `damaged` records could not be
    read.
    """

    joined: int = 0
    defaulted: int = 0
    dropped: int = 0
    repeated: int = 0
    corrected: int = 0
    late: int = 0
    duplicates: int = 0
    contradictions: int = 0
    orphans: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A label that is set aside: an "orphan", or a "contradiction". Its place is that in the labels topic."""

    reason: str
    event_id: str
    label: float
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Decided:
    slot: int
    label: float
    known_ms: int
    default: bool = False
    late_share: float = 0.0
    corrects: bool = False
    kept: bool = False  # its row stays, for a correction


class JoinPartition:
    """Folds the examples log of one partition into labelled rows.

    `refused` are labels that the newest fold set aside, in order.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        label = task.label
        self._wait = label.missing is not None  # for the whole window, whatever comes
        self._corrects = self._wait and label.late == "correct"
        self._values = task.schema.target.is_value
        self._expires_ms = label.window_ms + task.serving.allowed_lateness_ms + 1
        self._gate = Gate()
        self._store = Waiting(task, label.in_memory)
        self._prompt, self._late = (
            _PRIOR,
            0.0,
        )  # labels other than the missing value: in time, late; both fade
        self.counts = JoinCounts()
        self.refused: list[Refused] = []

    def __len__(self) -> int:
        """How many examples wait."""
        return self._store.count(WAITING)

    @property
    def early(self) -> int:
        """How many labels wait for their example."""
        return self._store.count(EARLY)

    @property
    def remembered(self) -> int:
        """Ids in memory and on disk: of what waits, and of what was decided not long ago."""
        return len(self._store.entries) + self._store.spilled

    @property
    def spilled(self) -> int:
        """How many of them are on disk."""
        return self._store.spilled

    @property
    def watermark_ms(self) -> int:
        """Event time up to which every source partition that is not idle has come."""
        return self._gate.watermark_ms

    @property
    def behind_ms(self) -> int:
        """Milliseconds of Kafka's time for which windows have been held open for labels still on their way."""
        return self._gate.behind_ms

    @property
    def fingerprint(self) -> str:
        """Changes with everything that gives a snapshot its meaning; another one must not be restored."""
        label = self._task.label
        meaning = (label.delay_ms, label.window_ms, label.missing, label.late, label.late_for_ms)
        text = repr((_FORMAT, self._task.rows_hash, meaning, self._task.serving.allowed_lateness_ms))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fold(self, records: Sequence[Any]) -> Labelled | None:
        """Fold records of the log, in offset order; the rows that they decided, or None."""
        self.refused, parts = [], []
        for record in records:
            try:
                decided = self._labels(record) if _kind(record) == wire.LABELS else self._examples(record)
            except Damaged as error:
                # Someone else wrote here, or the task was changed: the join goes on without it.
                log.error("%s[%s]@%s: %s", record.topic, record.partition, record.offset, error)
                self.counts.damaged += 1
                decided = []
            decided += self._close()
            if decided:  # before other rows come back from disk: some of these have let go of their slots
                parts.append(self._rows(decided))
            self._forget()
            self._store.settle()
        return Labelled.concat(parts) if parts else None

    def _examples(self, record: Any) -> list[_Decided]:
        rows, served, versions = wire.decode_examples(record.value, self._task.rows_hash)
        self._gate.heard(rows.partition, rows.event_ms, rows.received_ms)
        store, window = self._store, self._task.label.window_ms
        store.recall(rows.ids)
        slots = store.pool.put(rows, served, versions)
        decided = []
        for event_id, slot, event_ms in zip(rows.ids, slots, rows.event_ms.tolist(), strict=True):
            due = event_ms + window
            entry = store.entries.get(event_id)
            if entry is not None and (
                entry.state == WAITING or (entry.state == DECIDED and entry.due == self._remember(due))
            ):  # predicted again after a failure: the first one counts
                self.counts.repeated += 1
                store.pool.free([slot])
                continue
            if entry is None or entry.state == DECIDED:  # of an older event with that id
                if entry is not None:
                    store.forget(event_id)
                entry = Entry(WAITING, due, slot)
            entry.state, entry.due, entry.slot = WAITING, due, slot
            if entry.labelled and not self._wait:
                decided.append(self._decide(event_id, entry))
            else:
                store.set(event_id, entry)
        return decided

    def _labels(self, record: Any) -> list[_Decided]:
        labels = wire.decode_labels(record.value)
        try:
            self._gate.passed(len(labels), record.headers)
        except ValueError as error:
            raise Damaged(f"its mark cannot be read: {error}") from None
        store, decided = self._store, []
        store.recall(labels.ids)
        columns = (labels.label, labels.known_ms, labels.partition, labels.offset)
        for event_id, label, known, partition, offset in zip(
            labels.ids, *(column.tolist() for column in columns), strict=True
        ):
            entry = store.entries.get(event_id)
            if entry is None:
                due = record.timestamp + self._expires_ms
                store.set(event_id, Entry(EARLY, due, -1, label, known, partition, offset))
            elif entry.labelled:
                self._again(entry, Refused("contradiction", event_id, label, partition, offset))
            else:
                entry.label, entry.known_ms, entry.partition, entry.offset = label, known, partition, offset
                if entry.state == DECIDED:
                    decided += self._correct(entry)
                elif not self._wait:
                    decided.append(self._decide(event_id, entry))
        return decided

    def _again(self, entry: Entry, label: Refused) -> None:
        """One more label for an event that has one: the first counts."""
        if label.label == entry.label:
            self.counts.duplicates += 1
        else:
            self.counts.contradictions += 1
            self.refused.append(label)

    def _correct(self, entry: Entry) -> list[_Decided]:
        """A label for an example that was decided without one."""
        slot, entry.slot = entry.slot, -1
        if slot < 0 or entry.label == self._task.label.missing:
            self.counts.late += 1
            self._store.pool.free([slot] if slot >= 0 else [])
            return []
        self.counts.corrected += 1
        self._late += 1.0
        # It was unknown until now, whatever its record says: now is where events have come to.
        window_end = self._store.pool.event_ms(slot) + self._task.label.window_ms
        known = max(self._known(slot, entry), self._gate.watermark_ms, window_end)
        return [_Decided(slot, entry.label, known, corrects=True)]

    def _decide(self, event_id: str, entry: Entry) -> _Decided:
        """By the label that came."""
        self.counts.joined += 1
        if entry.label != self._task.label.missing:
            self._prompt, self._late = self._prompt * _MEMORY + 1.0, self._late * _MEMORY
        slot, known = entry.slot, self._known(entry.slot, entry)
        self._remembered(event_id, entry, kept=False)
        return _Decided(slot, entry.label, known)

    def _known(self, slot: int, entry: Entry) -> int:
        event_ms = self._store.pool.event_ms(slot)
        return event_ms + self._task.label.delay_ms if entry.known_ms < 0 else max(entry.known_ms, event_ms)

    def _remember(self, window_end: int) -> int:
        return window_end + self._task.label.late_for_ms

    def _remembered(self, event_id: str, entry: Entry, *, kept: bool) -> None:
        entry.state, entry.due = DECIDED, self._remember(entry.due)
        if not kept:
            entry.slot = -1
        self._store.set(event_id, entry)

    def _close(self) -> list[_Decided]:
        """Decide the examples whose window may close."""
        missing, decided = self._task.label.missing, []
        for event_id, entry in self._store.due(WAITING, self._gate.closing_ms):
            slot, window_end = entry.slot, entry.due
            if entry.labelled and entry.known_ms <= window_end:
                decided.append(self._decide(event_id, entry))
                continue
            self._remembered(event_id, entry, kept=self._corrects and not self._store.pool.hidden(slot))
            if missing is None or self._store.pool.hidden(slot):
                self.counts.dropped += 1
                self._store.pool.free([slot])
            else:
                self.counts.defaulted += 1
                # A value has no probability of being another one: defaults count fully (`learners.late`).
                share = 0.0 if self._values else self._late / (self._prompt + self._late)
                decided.append(_Decided(slot, missing, window_end, True, share, kept=self._corrects))
                if entry.labelled:  # it came before we closed the window, and says that this was too late
                    decided += self._correct(entry)
        return decided

    def _forget(self) -> None:
        """Forget what was decided long ago, and labels that no example can come for any more."""
        for event_id, _ in self._store.due(DECIDED, self._gate.closing_ms):
            self._store.forget(event_id)
        for event_id, entry in self._store.due(EARLY, self._gate.received_ms):
            self.counts.orphans += 1
            self.refused.append(Refused("orphan", event_id, entry.label, entry.partition, entry.offset))
            self._store.forget(event_id)

    def _rows(self, decided: Sequence[_Decided]) -> Labelled:
        rows, served, versions = self._store.pool.rows([d.slot for d in decided])
        self._store.pool.free([d.slot for d in decided if not d.kept])
        return Labelled(
            rows,
            served,
            versions,
            np.array([d.label for d in decided], np.float32),
            np.array([d.known_ms for d in decided], np.int64),
            np.array([d.default for d in decided], np.bool_),
            np.array([d.late_share for d in decided], np.float32),
            np.array([d.corrects for d in decided], np.bool_),
        )

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that the log made so far."""
        gate = {f"gate.{name}": array for name, array in self._gate.snapshot().items()}
        return {**self._store.snapshot(), **gate, "late": np.array([self._prompt, self._late], np.float64)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to a snapshot of the same `fingerprint`."""
        self._store.restore(arrays)
        self._gate.restore(
            {name.removeprefix("gate."): array for name, array in arrays.items() if name.startswith("gate.")}
        )
        self._prompt, self._late = arrays["late"].tolist()


def feedback_of(task: Task, labelled: Labelled, index: int) -> Feedback:
    """The labels of rows on their way to the label rates of entity `index`.

    Of a correction, the missing value that was taken when the window ended is taken back.
    """
    keys, label = labelled.rows.keys[:, index], labelled.label.astype(np.float64)
    back = labelled.corrects
    taken = np.full(int(back.sum()), task.label.missing or 0.0)
    return Feedback(
        np.concatenate([keys[back], keys]),
        np.concatenate([labelled.rows.event_ms[back] + task.label.window_ms, labelled.known_ms]),
        np.concatenate([taken, label]),
        np.concatenate([np.ones(len(taken), np.bool_), np.zeros(len(label), np.bool_)]),
    )


def _kind(record: Any) -> bytes:
    return next((value for name, value in record.headers if name == wire.KIND), wire.EXAMPLES)
