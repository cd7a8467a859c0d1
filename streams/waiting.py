"""What the join remembers of each event id: in memory, and beyond a limit on disk.

An `Entry` waits for something: an example for its label, a label for its example, or one that was decided for the time
when it may be forgotten. Rows of examples lie in slots of growing arrays: waiting costs no Python object a column.

Where more entries wait than memory may hold, those that came last go to a temporary SQLite database, and come back when
something happens to them: what is decided, and in which order, does not depend on where an entry lay. The database is
nobody's truth, as a snapshot has all of it: it lies in SQLite's folder for temporary files (`SQLITE_TMPDIR`, `TMPDIR`,
/var/tmp), grows with what waits, and is gone when the process is.
"""

import heapq
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.rows import ROW_ARRAYS, Rows
from streams.task import Task

WAITING, EARLY, DECIDED = range(3)
NO_LABEL = math.nan
_CACHE_KIB = 8192  # of the database, in memory
_MOST_IDS = 500  # in one question to it
_COLUMNS = "id, state, due, label, known, partition, place, version, row"


@dataclass(slots=True)
class Entry:
    """What is known of one event id.

    `due` is when its state ends: WAITING, event time of the end of its window; EARLY, Kafka's time when no example can
    come for it any more; DECIDED, event time when it may be forgotten. `slot` is the place of its row, -1 without one.
    `label` is NaN while none has come; `known_ms` goes with it (-1: its record does not say), and so does its place in
    the labels topic, `partition` and `offset`.
    """

    state: int
    due: int
    slot: int = -1
    label: float = NO_LABEL
    known_ms: int = -1
    partition: int = -1
    offset: int = -1

    @property
    def labelled(self) -> bool:
        """Whether a label has come."""
        return not math.isnan(self.label)


class Pool:
    """Rows in slots of growing arrays: the arrays of `Rows`, and what was served."""

    def __init__(self, task: Task) -> None:
        empty, self._schema = Rows.empty(task), task.rows_hash
        self.arrays: dict[str, NDArray[Any]] = {name: getattr(empty, name) for name in ROW_ARRAYS}
        self.arrays["served"] = task.schema.target.unknown(0)
        self._ids: list[str] = []
        self._versions: list[str] = []
        self._free: list[int] = []

    def put(self, rows: Rows, served: NDArray[np.float32], versions: Sequence[str]) -> list[int]:
        """Keep rows [n]; their slots."""
        slots = self._take_slots(len(rows))
        for name in ROW_ARRAYS:
            self.arrays[name][slots] = getattr(rows, name)
        self.arrays["served"][slots] = served
        for slot, event_id, version in zip(slots, rows.ids, versions, strict=True):
            self._ids[slot], self._versions[slot] = event_id, version
        return slots

    def _take_slots(self, n: int) -> list[int]:
        if len(self._free) < n:
            self._grow(max(n, len(self._ids), 1024))
        return [self._free.pop() for _ in range(n)]

    def _grow(self, more: int) -> None:
        size = len(self._ids)
        for name, array in self.arrays.items():
            self.arrays[name] = np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])
        self._ids += [""] * more
        self._versions += [""] * more
        self._free += range(size + more - 1, size - 1, -1)

    def event_ms(self, slot: int) -> int:
        """Event time of a row."""
        return int(self.arrays["event_ms"][slot])

    def hidden(self, slot: int) -> bool:
        """Whether a decision hides the label of a row: that none came says nothing."""
        return bool(self.arrays["propensity"][slot] < 1.0 and not self.arrays["explored"][slot])

    def rows(self, slots: Sequence[int]) -> tuple[Rows, NDArray[np.float32], list[str]]:
        """Copies of rows, with the scores and versions that were served."""
        at = list(slots)
        arrays = {name: self.arrays[name][at] for name in ROW_ARRAYS}
        rows = Rows([self._ids[slot] for slot in at], **arrays, schema=self._schema)
        return rows, self.arrays["served"][at], [self._versions[slot] for slot in at]

    def free(self, slots: Iterable[int]) -> None:
        """Let rows go."""
        self._free += slots

    def pack(self, slots: list[int]) -> tuple[NDArray[np.uint8], list[str]]:
        """Rows as bytes [n, width], and their versions; `unpack` is the inverse."""
        parts = [_as_bytes(array[slots]) for array in self.arrays.values()]
        return np.concatenate(parts, axis=1), [self._versions[slot] for slot in slots]

    def unpack(self, ids: Sequence[str], data: NDArray[np.uint8], versions: Sequence[str]) -> list[int]:
        """Keep rows that `pack` made; their slots."""
        slots, start = self._take_slots(len(ids)), 0
        for array in self.arrays.values():
            width = int(np.prod(array.shape[1:], dtype=int)) * array.itemsize
            part = np.ascontiguousarray(data[:, start : start + width])
            array[slots] = part.view(array.dtype).reshape(len(ids), *array.shape[1:])
            start += width
        for slot, event_id, version in zip(slots, ids, versions, strict=True):
            self._ids[slot], self._versions[slot] = event_id, version
        return slots


class Waiting:
    """Entries by event id, and which of them are due.

    Args:
        task: for the columns of a row.
        most: entries in memory, before some go to disk.
    """

    def __init__(self, task: Task, most: int) -> None:
        self.pool = Pool(task)
        self.entries: dict[str, Entry] = {}
        self._task, self._most = task, most
        self._timers: tuple[list[tuple[int, str]], ...] = ([], [], [])
        self._disk: sqlite3.Connection | None = None
        self.spilled = 0  # entries on disk

    def count(self, state: int) -> int:
        """How many entries are in a state."""
        found = sum(entry.state == state for entry in self.entries.values())
        if self.spilled and self._disk is not None:
            found += self._disk.execute("SELECT count(*) FROM entries WHERE state = ?", (state,)).fetchone()[
                0
            ]
        return found

    def set(self, event_id: str, entry: Entry) -> None:
        """Add an entry, or note that state or due of one have changed."""
        self.entries[event_id] = entry
        heapq.heappush(self._timers[entry.state], (entry.due, event_id))

    def forget(self, event_id: str) -> None:
        """Remove an entry and its row."""
        entry = self.entries.pop(event_id)
        if entry.slot >= 0:
            self.pool.free([entry.slot])

    def due(self, state: int, until: int) -> Iterator[tuple[str, Entry]]:
        """Entries in `state` that are due by `until`, by due and id. The caller changes or forgets each."""
        if self.spilled:
            self._recall("state = ? AND due <= ?", (state, until))
        timers = self._timers[state]
        while timers and timers[0][0] <= until:
            due, event_id = heapq.heappop(timers)
            entry = self.entries.get(event_id)
            if entry is not None and (entry.state, entry.due) == (state, due):
                yield event_id, entry

    def recall(self, ids: Sequence[str]) -> None:
        """Bring those of `ids` that lie on disk back into memory."""
        for start in range(0, len(ids) if self.spilled else 0, _MOST_IDS):
            part = ids[start : start + _MOST_IDS]
            self._recall(f"id IN ({','.join('?' * len(part))})", part)

    def settle(self) -> None:
        """Where memory holds too many entries, write those that came last to disk."""
        if len(self.entries) <= self._most:
            return
        keep = self._most * 3 // 4
        gone = list(self.entries)[keep:]
        self._write(gone)
        for event_id in gone:
            self.forget(event_id)
        for state, timers in enumerate(self._timers):
            timers[:] = [
                (due, event_id)
                for due, event_id in timers
                if (entry := self.entries.get(event_id)) and (entry.state, entry.due) == (state, due)
            ]
            heapq.heapify(timers)

    def _write(self, ids: list[str]) -> None:
        entries = [self.entries[event_id] for event_id in ids]
        slots = [entry.slot for entry in entries if entry.slot >= 0]
        data, versions = self.pool.pack(slots)
        packed = iter(zip(versions, data, strict=True))
        records = []
        for event_id, e in zip(ids, entries, strict=True):
            version, row = next(packed) if e.slot >= 0 else ("", None)
            label = e.label if e.labelled else None
            data_of_row = None if row is None else row.tobytes()
            records.append(
                (event_id, e.state, e.due, label, e.known_ms, e.partition, e.offset, version, data_of_row)
            )
        if self._disk is None:
            self._disk = _database()
        self._disk.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", records)
        self.spilled += len(records)

    def _recall(self, which: str, values: Sequence[Any]) -> None:
        assert self._disk is not None
        found = self._disk.execute(f"SELECT {_COLUMNS} FROM entries WHERE {which}", values).fetchall()
        if not found:
            return
        with_row = [record for record in found if record[-1] is not None]
        data = np.frombuffer(b"".join(record[-1] for record in with_row), np.uint8)
        data = data.reshape(len(with_row), -1) if with_row else np.zeros((0, 0), np.uint8)
        ids = [record[0] for record in with_row]
        slots = (
            dict(zip(ids, self.pool.unpack(ids, data, [r[-2] for r in with_row]), strict=True)) if ids else {}
        )
        for event_id, state, due, label, known, partition, offset, _, _ in found:
            label = NO_LABEL if label is None else label
            self.set(event_id, Entry(state, due, slots.get(event_id, -1), label, known, partition, offset))
        self._disk.execute(f"DELETE FROM entries WHERE {which}", values)
        self.spilled -= len(found)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of everything; what lies on disk as SQLite's bytes."""
        ids, entries = list(self.entries), list(self.entries.values())
        slots = [entry.slot for entry in entries if entry.slot >= 0]
        data, versions = self.pool.pack(slots)
        whole = [[e.state, e.due, int(e.slot >= 0), e.known_ms, e.partition, e.offset] for e in entries]
        disk = b"" if self._disk is None or not self.spilled else self._disk.serialize()
        return {
            **texts("ids", ids),
            **texts("versions", versions),
            "rows": data,
            "entries": np.array(whole, np.int64).reshape(-1, 6),
            "labels": np.array([e.label for e in entries], np.float64),
            "disk": np.frombuffer(disk, np.uint8),
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to a snapshot of the same task."""
        self.__init__(self._task, self._most)  # type: ignore[misc]
        ids = untexts("ids", arrays)
        entries = arrays["entries"].tolist()
        with_row = [event_id for event_id, entry in zip(ids, entries, strict=True) if entry[2]]
        slots = iter(self.pool.unpack(with_row, arrays["rows"], untexts("versions", arrays)))
        for event_id, label, entry in zip(ids, arrays["labels"].tolist(), entries, strict=True):
            state, due, has_row, known, partition, offset = entry
            slot = next(slots) if has_row else -1
            self.set(event_id, Entry(state, due, slot, label, known, partition, offset))
        if len(arrays["disk"]):
            self._disk = _database(arrays["disk"].tobytes())
            self.spilled = self._disk.execute("SELECT count(*) FROM entries").fetchone()[0]


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A matrix uint8 [n, bytes a row] of an array [n, ...]."""
    width = int(np.prod(array.shape[1:], dtype=int)) * array.itemsize
    return np.frombuffer(array.tobytes(), np.uint8).reshape(len(array), width)


def _database(data: bytes = b"") -> sqlite3.Connection:
    """A temporary database on disk, empty or a copy of serialised `data`."""
    disk = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    disk.execute("PRAGMA journal_mode = OFF")
    disk.execute("PRAGMA synchronous = OFF")
    disk.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    if data:
        source = sqlite3.connect(":memory:")
        source.deserialize(data)
        source.backup(disk)
        source.close()
    else:
        disk.execute(
            "CREATE TABLE entries (id TEXT PRIMARY KEY, state INTEGER, due INTEGER, label REAL, known INTEGER,"
            " partition INTEGER, place INTEGER, version TEXT, row BLOB) WITHOUT ROWID"
        )
        disk.execute("CREATE INDEX by_due ON entries (state, due)")
    return disk


def texts(name: str, values: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Texts as two arrays; `untexts` is the inverse."""
    data = [value.encode() for value in values]
    return {
        f"{name}.bytes": np.frombuffer(b"".join(data), np.uint8),
        f"{name}.ends": np.cumsum([len(d) for d in data], dtype=np.int64),
    }


def untexts(name: str, arrays: dict[str, NDArray[Any]]) -> list[str]:
    """See `texts`."""
    data, ends = arrays[f"{name}.bytes"].tobytes(), arrays[f"{name}.ends"].tolist()
    starts = [0, *ends[:-1]]
    return [data[start:end].decode() for start, end in zip(starts, ends, strict=True)] if ends else []
