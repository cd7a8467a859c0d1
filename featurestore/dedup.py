"""Which event ids were seen already: two hash sets by event time, so that memory stays bounded."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.layout import Int64s
from featurestore.snapshot import CorruptSnapshot
from featurestore.windows import Bools, kernel, mix

_SMALLEST_TABLE = 1024
_FREE = 0
# The id 0 is kept under another name, since 0 marks a free place.
_ZERO = 0x5DEECE66D


@kernel
def _place(table: Int64s, key: Any) -> Any:
    """Where the key is, or the free place where it belongs; open addressing with linear probing."""
    mask = np.uint64(table.shape[0] - 1)
    place = mix(key) & mask
    while table[place] != _FREE and table[place] != key:
        place = (place + np.uint64(1)) & mask
    return place


@kernel
def _check_and_add(newer: Int64s, older: Int64s, ids: Int64s, to_newer: Bools, first: Bools) -> int:
    """Row by row: is the id in neither set? Then adds it where it belongs. Returns how many went to newer."""
    added = 0
    for i in range(ids.shape[0]):
        key = ids[i] if ids[i] != _FREE else _ZERO
        in_newer, in_older = _place(newer, key), _place(older, key)
        first[i] = newer[in_newer] == _FREE and older[in_older] == _FREE
        if first[i] and to_newer[i]:
            newer[in_newer] = key
            added += 1
        elif first[i]:
            older[in_older] = key
    return added


@kernel
def _insert(table: Int64s, ids: Int64s) -> None:
    for i in range(ids.shape[0]):
        table[_place(table, ids[i])] = ids[i]


class SeenIds:
    """Remembers ids by event time.

    An id with time t is remembered at least until a time of t + horizon_ms or later is seen, and at most
    until one of t + 2 * horizon_ms: where times may run ahead by d, pass a horizon longer by d. An id that
    comes later than that is new again. The answers depend on the order of the rows and not on how they are
    batched. An id takes 16 to 32 bytes.
    """

    def __init__(self, horizon_ms: int) -> None:
        if horizon_ms <= 0:
            raise ValueError("the horizon must be longer than 0 ms")
        self.horizon_ms = horizon_ms
        # Generation g holds the ids of [g, g + 1) * horizon_ms; later comers go to the older of the two.
        self._generation: int | None = None
        self._newer, self._older = _Set(), _Set()

    def __len__(self) -> int:
        """How many ids are remembered."""
        return self._newer.size + self._older.size

    def check_and_add(self, hashes: NDArray[np.int64], times_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True where an id i64[n] is seen for the first time, its time i64[n]; all n are remembered.

        Rows count in order: of two equal ids in one batch the first is True.
        """
        hashes = np.ascontiguousarray(hashes, np.int64)
        times_ms = np.ascontiguousarray(times_ms, np.int64)
        if hashes.ndim != 1 or hashes.shape != times_ms.shape:
            raise ValueError(f"ids and times differ in shape: {hashes.shape} and {times_ms.shape}")
        first = np.empty(len(hashes), np.bool_)
        if not len(hashes):
            return first
        generations = times_ms // self.horizon_ms
        if self._generation is None:
            self._generation = int(generations[0])
        newest = np.maximum(np.maximum.accumulate(generations), self._generation)
        starts = [0, *(np.flatnonzero(np.diff(newest)) + 1).tolist(), len(hashes)]
        for start, end in pairwise(starts):
            self._turn(int(newest[start]))
            part = slice(start, end)
            self._check(hashes[part], generations[part] == newest[start], first[part])
        return first

    def _turn(self, generation: int) -> None:
        steps = generation - (generation if self._generation is None else self._generation)
        if steps == 1:
            self._newer, self._older = _Set(), self._newer
        elif steps > 1:
            self._newer, self._older = _Set(), _Set()
        self._generation = generation

    def _check(self, ids: Int64s, to_newer: Bools, first: Bools) -> None:
        newcomers = int(np.count_nonzero(to_newer))
        self._newer.reserve(newcomers)
        self._older.reserve(len(ids) - newcomers)
        added = _check_and_add(self._newer.table, self._older.table, ids, to_newer, first)
        self._newer.size += added
        self._older.size += int(np.count_nonzero(first)) - added

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of all there is, ids in ascending order: equal states give equal arrays."""
        known = self._generation is not None
        return {
            "clock": np.array([self.horizon_ms, known, self._generation or 0], np.int64),
            "newer": self._newer.ids(),
            "older": self._older.ids(),
        }

    @classmethod
    def restore(cls, horizon_ms: int, arrays: Mapping[str, NDArray[Any]]) -> "SeenIds":
        """Ids that go on exactly as those that were snapshotted.

        Raises CorruptSnapshot when arrays are missing or malformed, or the horizon was another.
        """
        seen = cls(horizon_ms)
        try:
            clock, newer, older = arrays["clock"], arrays["newer"], arrays["older"]
        except KeyError as missing:
            raise CorruptSnapshot(f"the snapshot lacks the array {missing}") from None
        columns = all(array.dtype == np.int64 and array.ndim == 1 for array in (clock, newer, older))
        if not columns or len(clock) != 3:
            raise CorruptSnapshot("the snapshot of the seen ids is malformed")
        if clock[0] != horizon_ms:
            raise CorruptSnapshot(f"the ids were remembered for {clock[0]} ms, not for {horizon_ms} ms")
        seen._generation = int(clock[2]) if clock[1] else None
        seen._newer.insert(newer)
        seen._older.insert(older)
        return seen


class _Set:
    """A growing hash table of ids, at most half full."""

    def __init__(self) -> None:
        self.table = np.zeros(_SMALLEST_TABLE, np.int64)
        self.size = 0

    def ids(self) -> Int64s:
        return np.sort(self.table[self.table != _FREE])

    def reserve(self, newcomers: int) -> None:
        needed = 2 * (self.size + newcomers)
        if needed > len(self.table):
            ids = self.table[self.table != _FREE]
            self.table = np.zeros(1 << (needed - 1).bit_length(), np.int64)
            _insert(self.table, ids)

    def insert(self, ids: Int64s) -> None:
        self.reserve(len(ids))
        _insert(self.table, np.ascontiguousarray(ids))
        self.size += len(ids)
