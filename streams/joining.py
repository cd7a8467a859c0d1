"""The state of one partition of the join: examples that wait for a label, and labels that came before their example.

Pure: no Kafka, no clock, no files. The partition's log holds examples and labels in one order, so a replay of the log
makes every decision again exactly as it was made.

An example is decided once. Where the task gives a missing label a value, that is when the watermark passes the
example's window: by the first label for its id, or else by that value. Deciding the labelled ones sooner would show the
learner positives before the negatives of the same minute. Where a missing label drops the example, the first label
decides it at once.

The watermark is the lowest of the newest event times of the source partitions, so a partition that lags behind does
not have its examples closed early; one that was silent for `IDLE_AFTER` records is left out. An event time ahead of
Kafka's own clock counts as that clock, so a producer whose clock is wrong closes nobody's window.

A label without its example is kept until every event that Kafka got before it, and for a window and the allowed
lateness after it, has passed: by Kafka's clock, since a join that catches up reads labels long before examples.
"""

import hashlib
import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams import wire
from streams.rows import ROW_ARRAYS
from streams.task import Task
from streams.wire import Damaged, Labelled, Rows

log = logging.getLogger(__name__)
IDLE_AFTER = 1000
_BEGINNING = -(2**62)
_FORMAT = 2  # of a snapshot: one that was written otherwise must not be loaded


@dataclass
class JoinCounts:
    """What happened to examples and labels, since the partition was taken over.

    `repeated` examples came with the id of one that still waited; `orphans` are labels without an example; `damaged`
    records could not be read.
    """

    joined: int = 0
    defaulted: int = 0
    dropped: int = 0
    repeated: int = 0
    orphans: int = 0
    damaged: int = 0


@dataclass(slots=True)
class _Source:
    """A partition of the events topic, as far as its examples have come."""

    event_ms: int = _BEGINNING  # newest event time
    received_ms: int = _BEGINNING  # newest time of Kafka's clock
    heard: int = 0  # number of the record that last spoke of it

    def heard_of(self, event_ms: int, received_ms: int, record: int) -> None:
        self.event_ms, self.received_ms = max(self.event_ms, event_ms), max(self.received_ms, received_ms)
        self.heard = record


@dataclass(frozen=True, slots=True)
class _Early:
    label: float
    known_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class _Decided:
    slot: int
    label: float
    known_ms: int
    default: bool


class JoinPartition:
    """Folds the examples log of one partition into labelled rows."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._wait = task.label.missing is not None  # for the whole window, whatever comes
        self._pool = _Pool(task)
        self._slots: dict[str, int] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._early: dict[str, _Early] = {}
        self._sources: dict[int, _Source] = {}  # by source partition
        self._records = 0
        self.counts = JoinCounts()

    def __len__(self) -> int:
        """How many examples wait."""
        return len(self._slots)

    @property
    def early(self) -> int:
        """How many labels wait: for their example, or for the end of its window."""
        return len(self._early)

    @property
    def fingerprint(self) -> str:
        """Changes with everything that gives a snapshot its meaning; another one must not be restored."""
        task = self._task
        label = (task.label.delay_ms, task.label.window_ms, task.label.missing)
        text = repr((_FORMAT, task.rows_hash, label, task.serving.allowed_lateness_ms))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fold(self, records: Sequence[Any]) -> Labelled | None:
        """Fold records of the log, in offset order; the rows that they decided, or None."""
        parts = []
        for record in records:
            self._records += 1
            try:
                decided = self._labels(record) if _kind(record) == wire.LABELS else self._examples(record)
            except Damaged as error:
                # Someone else wrote here, or the task was changed: the join goes on without it.
                log.error("%s[%s]@%s: %s", record.topic, record.partition, record.offset, error)
                self.counts.damaged += 1
                decided = []
            decided += self._close()
            if decided:
                parts.append(self._pool.take(decided))
                self._pool.free([d.slot for d in decided])
        return Labelled.concat(parts) if parts else None

    @property
    def watermark_ms(self) -> int:
        """Event time up to which every source partition that is not idle has come."""
        return min((source.event_ms for source in self._live()), default=_BEGINNING)

    def _received_ms(self) -> int:
        """The same for Kafka's clock: every event that Kafka got before it has come."""
        return min((source.received_ms for source in self._live()), default=_BEGINNING)

    def _live(self) -> list[_Source]:
        return [source for source in self._sources.values() if self._records - source.heard <= IDLE_AFTER]

    def _examples(self, record: Any) -> list[_Decided]:
        rows, served, versions = wire.decode_examples(record.value, self._task.rows_hash)
        for partition in np.unique(rows.partition).tolist():
            own = rows.partition == partition
            received = rows.received_ms[own]
            self._sources.setdefault(partition, _Source()).heard_of(
                int(np.minimum(rows.event_ms[own], received).max()), int(received.max()), self._records
            )
        slots = self._pool.put(rows, served, versions)
        decided = []
        for event_id, slot, event_ms in zip(rows.ids, slots, rows.event_ms.tolist(), strict=True):
            early = None if self._wait else self._early.pop(event_id, None)
            if event_id in self._slots:  # predicted again after a failure: the first one counts
                self.counts.repeated += 1
                self._pool.free([slot])
            elif early is not None:
                decided.append(self._decide(slot, event_ms, early.label, early.known_ms))
            else:
                self._slots[event_id] = slot
                heapq.heappush(self._deadlines, (event_ms + self._task.label.window_ms, event_id))
        return decided

    def _labels(self, record: Any) -> list[_Decided]:
        labels = wire.decode_labels(record.value)
        decided = []
        expires = record.timestamp + self._task.label.window_ms + self._task.serving.allowed_lateness_ms
        for event_id, label, known in zip(
            labels.ids, labels.label.tolist(), labels.known_ms.tolist(), strict=True
        ):
            slot = None if self._wait else self._slots.pop(event_id, None)
            if slot is not None:
                decided.append(self._decide(slot, self._pool.event_ms(slot), label, known))
            else:
                self._early.setdefault(event_id, _Early(label, known, expires))
        return decided

    def _decide(self, slot: int, event_ms: int, label: float, known_ms: int) -> _Decided:
        self.counts.joined += 1
        known = event_ms + self._task.label.delay_ms if known_ms < 0 else max(known_ms, event_ms)
        return _Decided(slot, label, known, False)

    def _close(self) -> list[_Decided]:
        """Decide examples whose window the watermark has passed; forget early labels that nothing came for."""
        watermark, missing, decided = self.watermark_ms, self._task.label.missing, []
        while self._deadlines and self._deadlines[0][0] <= watermark:
            deadline, event_id = heapq.heappop(self._deadlines)
            slot = self._slots.get(event_id)
            if slot is None or self._pool.event_ms(slot) + self._task.label.window_ms != deadline:
                continue  # its label came (and, perhaps, another example of that id afterwards)
            del self._slots[event_id]
            early = self._early.pop(event_id, None)
            if early is not None:
                decided.append(self._decide(slot, self._pool.event_ms(slot), early.label, early.known_ms))
            elif missing is None:
                self.counts.dropped += 1
                self._pool.free([slot])
            else:
                self.counts.defaulted += 1
                decided.append(_Decided(slot, missing, deadline, True))
        if self._records % IDLE_AFTER == 0:
            self._forget()
        return decided

    def _forget(self) -> None:
        """Drop labels that no example can come for any more."""
        now = self._received_ms()
        old = [event_id for event_id, early in self._early.items() if early.expires_ms < now]
        gone = [event_id for event_id in old if event_id not in self._slots]
        for event_id in gone:
            del self._early[event_id]
        self.counts.orphans += len(gone)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that the log made so far."""
        ids = list(self._slots)
        arrays = self._pool.export([self._slots[i] for i in ids])
        early = list(self._early.items())
        sources = [[p, s.event_ms, s.received_ms, s.heard] for p, s in sorted(self._sources.items())]
        return {
            **arrays,
            **_texts("ids", ids),
            **_texts("early_ids", [event_id for event_id, _ in early]),
            "early": np.array([[e.known_ms, e.expires_ms] for _, e in early], np.int64).reshape(-1, 2),
            "early_label": np.array([e.label for _, e in early], np.float64),
            "sources": np.array(sources, np.int64).reshape(-1, 4),
            "records": np.array([self._records], np.int64),
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to a snapshot of the same `fingerprint`."""
        ids = _untexts("ids", arrays)
        self._pool = _Pool(self._task)
        slots = self._pool.load(ids, arrays)
        self._slots = dict(zip(ids, slots, strict=True))
        window = self._task.label.window_ms
        deadlines = (arrays["event_ms"] + window).tolist()
        self._deadlines = list(zip(deadlines, ids, strict=True))
        heapq.heapify(self._deadlines)
        early = zip(
            _untexts("early_ids", arrays),
            arrays["early_label"].tolist(),
            arrays["early"].tolist(),
            strict=True,
        )
        self._early = {i: _Early(label, known, expires) for i, label, (known, expires) in early}
        self._sources = {partition: _Source(*rest) for partition, *rest in arrays["sources"].tolist()}
        self._records = int(arrays["records"][0])


class _Pool:
    """Rows in slots of growing arrays, so that waiting for a label costs no Python object a column."""

    def __init__(self, task: Task) -> None:
        empty, self._schema = Rows.empty(task), task.rows_hash
        self._arrays = {name: getattr(empty, name) for name in ROW_ARRAYS}
        self._arrays["served"] = np.zeros(0, np.float32)
        self._ids: list[str] = []
        self._versions: list[str] = []
        self._free: list[int] = []

    def put(self, rows: Rows, served: NDArray[np.float32], versions: Sequence[str]) -> list[int]:
        n = len(rows)
        if len(self._free) < n:
            self._grow(max(n, len(self._ids), 1024))
        slots = [self._free.pop() for _ in range(n)]
        for name in ROW_ARRAYS:
            self._arrays[name][slots] = getattr(rows, name)
        self._arrays["served"][slots] = served
        for slot, event_id, version in zip(slots, rows.ids, versions, strict=True):
            self._ids[slot], self._versions[slot] = event_id, version
        return slots

    def _grow(self, more: int) -> None:
        size = len(self._ids)
        for name, array in self._arrays.items():
            self._arrays[name] = np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])
        self._ids += [""] * more
        self._versions += [""] * more
        self._free += range(size + more - 1, size - 1, -1)

    def event_ms(self, slot: int) -> int:
        return int(self._arrays["event_ms"][slot])

    def take(self, decided: Sequence[_Decided]) -> Labelled:
        slots = [d.slot for d in decided]
        rows = Rows(
            [self._ids[s] for s in slots],
            **{name: self._arrays[name][slots] for name in ROW_ARRAYS},
            schema=self._schema,
        )
        return Labelled(
            rows,
            self._arrays["served"][slots],
            [self._versions[s] for s in slots],
            np.array([d.label for d in decided], np.float32),
            np.array([d.known_ms for d in decided], np.int64),
            np.array([d.default for d in decided], np.bool_),
            np.ones(len(decided), np.float32),
            np.zeros(len(decided), np.bool_),
        )

    def free(self, slots: Sequence[int]) -> None:
        self._free += slots

    def export(self, slots: Sequence[int]) -> dict[str, NDArray[Any]]:
        arrays = {name: array[list(slots)] for name, array in self._arrays.items()}
        return arrays | _texts("versions", [self._versions[s] for s in slots])

    def load(self, ids: list[str], arrays: dict[str, NDArray[Any]]) -> list[int]:
        rows = Rows(ids, **{name: arrays[name] for name in ROW_ARRAYS}, schema=self._schema)
        return self.put(rows, arrays["served"], _untexts("versions", arrays))


def _kind(record: Any) -> bytes:
    return next((value for name, value in record.headers if name == wire.KIND), wire.EXAMPLES)


def _texts(name: str, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    data = [text.encode() for text in texts]
    return {
        f"{name}.bytes": np.frombuffer(b"".join(data), np.uint8),
        f"{name}.ends": np.cumsum([len(d) for d in data], dtype=np.int64),
    }


def _untexts(name: str, arrays: dict[str, NDArray[Any]]) -> list[str]:
    data, ends = arrays[f"{name}.bytes"].tobytes(), arrays[f"{name}.ends"].tolist()
    return (
        [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
    )
