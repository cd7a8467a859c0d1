"""The state of one entity type in one partition: fold rows in, get feature rows out, snapshot and restore.

State is a hash table from entity key to row and one record a row (`layout`). Nothing is dropped by itself:
`expire` forgets entities, and its caller decides when, at a point that a replay meets again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore import recent, sketch, windows
from featurestore.layout import LAST_EVENT, LAST_LABEL, Layout
from featurestore.snapshot import CorruptSnapshot
from featurestore.spec import View

_CHUNK = 65_536  # rows a kernel call: bounds what is reserved for keys that may all be new
_SMALLEST_TABLE = 1024


class EntityState:
    """The windows of all entities of one view.

    The same rows in the same order give bit-equal features and equal snapshots, however they are batched.
    Events and labels may be folded in any order relative to each other: the state that results is the same.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._layout = Layout.of(view)
        self._values, self._sketches = view.values, _sketches(view)
        self._size = 0
        self._keys = np.empty(0, np.int64)
        self._cells = np.empty((0, len(self._layout.blank)), np.float64)
        self._table = np.full(_SMALLEST_TABLE, -1, np.int32)

    def __len__(self) -> int:
        """How many entities are known."""
        return self._size

    @property
    def bytes_per_entity(self) -> int:
        """Bytes of a record and its key, without the share of the hash table (8 to 16 bytes)."""
        return self._layout.blank.nbytes + 8

    def update(
        self,
        keys: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        values: Mapping[str, NDArray[np.float64]],
        add: NDArray[np.bool_] | None = None,
        hashed: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> NDArray[np.float32]:
        """The feature rows f32[n, F] of n events, each read before that event itself is added.

        keys i64[n], times_ms i64[n], values: f64[n] for each of `view.values`; numbers that are not finite
        are not added. hashed: i64[n] for each of `view.hashed`, a hash of the category; 0 is a missing one and
        not added. Rows where `add` is False are read and not added (all are added without it). Rows are taken
        in order, so a row sees the rows before it in the same batch. Raises KeyError when a column is missing.
        """
        count = len(keys)
        keys = _column(keys, count, np.int64)
        times_ms = _column(times_ms, count, np.int64)
        add = np.ones(count, np.bool_) if add is None else _column(add, count, np.bool_)
        # One spare row: a kernel given an array without rows would be compiled for nothing else.
        matrix = np.zeros((max(1, len(self._values)), count), np.float64)
        for row, name in enumerate(self._values):
            matrix[row] = _column(values[name], count, np.float64)
        bits = self._bits(count, matrix, hashed or {})
        out = np.empty((count, len(self.view.features)), np.float32)
        at = self._layout
        for start in range(0, count, _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = self._find(keys[part], add[part])
            columns = (rows, times_ms[part], np.ascontiguousarray(matrix[:, part]), add[part], out[part])
            windows.fold_events(
                *(self._cells, at.blank, at.rings, at.ops, at.features, at.tiles, at.event_rings), *columns
            )
            if bits is not None:
                sketch.fold_sketches(
                    *(self._cells, self._cells.view(np.int64), at.sketches, at.tiles),
                    *(rows, times_ms[part], np.ascontiguousarray(bits[:, part]), add[part], out[part]),
                )
            if at.decays.size or at.lasts.size:
                recent.fold_recent(self._cells, at.blank, at.decays, at.halves, at.lasts, *columns)
        return out

    def _bits(
        self, count: int, values: NDArray[np.float64], hashed: Mapping[str, NDArray[np.int64]]
    ) -> NDArray[np.int64] | None:
        """The bit that each row sets in each sketch: i64[S, n], or None where nothing is sketched."""
        rows = []
        for name, at in self._sketches:
            if at is None:
                rows.append(sketch.bits_of_hashes(_column(hashed[name], count, np.int64)))
            else:
                rows.append(sketch.bits_of_numbers(values[at]))
        return np.array(rows) if rows else None

    def add_labels(
        self,
        keys: NDArray[np.int64],
        known_ms: NDArray[np.int64],
        labels: NDArray[np.float64],
        back: NDArray[np.bool_] | None = None,
    ) -> None:
        """Adds labels f64[n] of entities i64[n] that became known at i64[n] ms; NaN is not added.

        Those with `back` bool[n] are taken back: they were added just so, earlier.
        """
        if not self.view.needs_labels:
            return
        count = len(keys)
        keys = _column(keys, count, np.int64)
        known_ms = _column(known_ms, count, np.int64)
        labels = _column(labels, count, np.float64).reshape(1, count)
        back = np.zeros(count, np.bool_) if back is None else _column(back, count, np.bool_)
        at = self._layout
        for start in range(0, count, _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = self._find(keys[part], np.ones(len(keys[part]), np.bool_))
            windows.fold_labels(
                *(self._cells, at.blank, at.rings, at.ops, at.tiles, at.event_rings),
                *(rows, known_ms[part], np.ascontiguousarray(labels[:, part]), back[part]),
            )

    def expire(self, before_ms: int) -> int:
        """Forgets entities whose last event and last known label are both before `before_ms`; says how many.

        With `before_ms` no later than the newest event time less `view.longest_ms`, no window of a row that
        comes in time order changes; `time_since_last`, decayed means and last values become unknown. A replay
        must expire at the same point.
        """
        cells = self._cells[: self._size]
        stay = np.maximum(cells[:, LAST_EVENT], cells[:, LAST_LABEL]) >= before_ms
        gone = self._size - int(np.count_nonzero(stay))
        if gone:
            self._fill(self._keys[: self._size][stay], cells[stay])
        return gone

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of all there is, entities in the order of their keys: equal states give equal arrays."""
        order = np.argsort(self._keys[: self._size])
        return {
            "view": np.frombuffer(self.view.fingerprint.encode(), np.uint8).copy(),
            "keys": self._keys[order],
            "cells": self._cells[order],
        }

    @classmethod
    def restore(cls, view: View, arrays: Mapping[str, NDArray[Any]]) -> "EntityState":
        """A state that goes on exactly as the one that was snapshotted.

        Raises CorruptSnapshot when arrays are missing, do not fit each other, or belong to another view.
        """
        state = cls(view)
        try:
            of, keys, cells = arrays["view"].tobytes(), arrays["keys"], arrays["cells"]
        except KeyError as missing:
            raise CorruptSnapshot(f"the snapshot lacks the array {missing}") from None
        if of != view.fingerprint.encode():
            raise CorruptSnapshot(
                f"the snapshot was made for another definition of the features of {view.entity}"
            )
        if keys.dtype != np.int64 or keys.ndim != 1 or len(np.unique(keys)) != len(keys):
            raise CorruptSnapshot("the keys of the snapshot are not a list of different numbers")
        if cells.dtype != np.float64 or cells.shape != (len(keys), len(state._layout.blank)):
            raise CorruptSnapshot(f"the records of the snapshot have the shape {cells.shape}")
        state._fill(keys, cells)
        return state

    def _fill(self, keys: NDArray[np.int64], cells: NDArray[np.float64]) -> None:
        self._keys = keys.copy()
        self._cells = np.array(cells, np.float64, order="C")
        self._size = len(keys)
        self._rehash(self._size)

    def _rehash(self, entities: int) -> None:
        """Builds the hash table anew, with room for `entities` at a load of at most a half."""
        size = _SMALLEST_TABLE
        while size < 2 * entities:
            size *= 2
        self._table = np.full(size, -1, np.int32)
        rows = np.empty(self._size, np.int64)
        keys = self._keys[: self._size].copy()
        windows.find(self._table, self._keys, 0, keys, np.ones(self._size, np.bool_), rows)

    def _find(self, keys: NDArray[np.int64], add: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The row of each key, -1 if unknown; keys to add get a blank record."""
        most = self._size + len(keys)
        if most > len(self._keys):
            self._keys = _grown(self._keys, self._size, most)
        if 2 * most > len(self._table):
            self._rehash(most)
        rows = np.empty(len(keys), np.int64)
        size = windows.find(self._table, self._keys, self._size, keys, add, rows)
        if size > len(self._cells):
            self._cells = _grown(self._cells, self._size, size)
        self._cells[self._size : size] = self._layout.blank
        self._size = size
        return rows


def _sketches(view: View) -> list[tuple[str, int | None]]:
    """What `distinct` counts: names, with their place among the values; None for a category."""
    return [(name, None if name in view.hashed else view.values.index(name)) for name in view.sketched]


def _grown(array: NDArray[Any], used: int, needed: int) -> NDArray[Any]:
    """A larger array with the same first `used` rows; larger by half, so that growth is cheap on average."""
    larger = np.empty((max(needed, len(array) + len(array) // 2), *array.shape[1:]), array.dtype)
    larger[:used] = array[:used]
    return larger


def _column(values: NDArray[Any], count: int, dtype: Any) -> NDArray[Any]:
    """The column as the one array type that the kernels are compiled for; ValueError for its length."""
    column = np.ascontiguousarray(values, dtype)
    if column.shape != (count,):
        raise ValueError(f"a column of {count} rows is needed, not the shape {column.shape}")
    return column
