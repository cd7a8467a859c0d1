"""One packed row an entity in SQLite: the file behind our online store, with no Feast in it.

The serving workers write here without importing Feast; `online` is Feast's way to the same tables. A table
belongs to one view with one list of columns: it is named after them, so that a changed view never reads old
rows by new names.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WAIT_S = 30.0  # for another process that writes
_ASKED_AT_ONCE = 500  # keys a SELECT: below every build's limit on parameters


def table_name(project: str, view: str, columns: Sequence[str]) -> str:
    """The table of a view; another list of columns is another table."""
    digest = hashlib.blake2b(json.dumps(list(columns)).encode(), digest_size=6).hexdigest()
    return f"{project}|{view}|{digest}"


def newest_rows(keys: NDArray[np.int64], times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the newest row of each key is, keys ascending; of equal times the last row counts."""
    order = np.lexsort((times_ms, keys))  # stable, so equal times stay in order
    last = np.ones(len(order), np.bool_)
    last[:-1] = keys[order][1:] != keys[order][:-1]
    return order[last]


class PackedTables:
    """Tables of (key, event time, float32 row) in one SQLite file.

    Safe with several processes that write: a row replaces a stored one unless that one is newer in event
    time, and that comparison is part of the write. Safe with several threads: they take turns.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._made: set[str] = set()

    def write(
        self,
        table: str,
        keys: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> None:
        """Stores rows f32[n, F] of entities i64[n] at event times i64[n]; makes a missing table."""
        at = newest_rows(keys, times_ms)
        width = rows.shape[1] * 4
        packed = np.ascontiguousarray(rows[at], "<f4").tobytes()
        cells = [packed[start : start + width] for start in range(0, width * len(at), width)]
        with self._lock:
            try:
                self._insert(table, zip(keys[at].tolist(), times_ms[at].tolist(), cells, strict=True))
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                # Another process dropped it, which `feast apply` and `feast teardown` do.
                self._made.discard(table)
                self._insert(table, zip(keys[at].tolist(), times_ms[at].tolist(), cells, strict=True))

    def read(self, table: str, keys: Sequence[int]) -> dict[int, tuple[int, NDArray[np.float32]]]:
        """For each key that is known: event time in ms, and its row f32[F]."""
        found: dict[int, tuple[int, NDArray[np.float32]]] = {}
        with self._lock:
            connection = self._connect()
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                some = list(keys[start : start + _ASKED_AT_ONCE])
                marks = ",".join("?" * len(some))
                query = f"SELECT key, event_ms, row FROM {_quoted(table)} WHERE key IN ({marks})"
                try:
                    for key, event_ms, row in connection.execute(query, some):
                        found[key] = event_ms, np.frombuffer(row, "<f4")
                except sqlite3.OperationalError as error:
                    if "no such table" not in str(error):
                        raise
        return found

    def make(self, table: str) -> None:
        """Makes the table if it is missing."""
        with self._lock:
            self._make(table)

    def drop_view(self, project: str, view: str, keep: str | None = None) -> None:
        """Drops the tables of a view, all but `keep`."""
        with self._lock:
            connection = self._connect()
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in names:
                if name.rpartition("|")[0] == f"{project}|{view}" and name != keep:
                    connection.execute(f"DROP TABLE IF EXISTS {_quoted(name)}")
                    self._made.discard(name)

    def close(self) -> None:
        """Closes the file; it opens again when it is needed."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _insert(self, table: str, rows: Iterable[tuple[int, int, bytes]]) -> None:
        self._make(table)
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(
                f"INSERT INTO {_quoted(table)} VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET event_ms = excluded.event_ms, row = excluded.row WHERE excluded.event_ms >= event_ms",
                rows,
            )
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _make(self, table: str) -> None:
        connection = self._connect()
        if table not in self._made:
            columns = "key INTEGER PRIMARY KEY, event_ms INTEGER, row BLOB"
            connection.execute(f"CREATE TABLE IF NOT EXISTS {_quoted(table)} ({columns})")
            self._made.add(table)

    def _connect(self) -> sqlite3.Connection:
        # A connection must not cross a fork.
        if self._connection is None or self._process != os.getpid():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
            self._process = os.getpid()
            self._made = set()
            _use_wal(self._connection)
        return self._connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers and a writer side by side. NORMAL loses the last commits at a power cut, which the stream
    rewrites.
    """
    give_up = time.monotonic() + _WAIT_S
    while True:
        try:
            # SQLite does not wait for the lock here, however long the timeout.
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = NORMAL")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
