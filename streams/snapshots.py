"""Snapshots of a partition's state in a blob store: state and position in one object, written in one step.

A snapshot's name holds the input offsets that it includes, so the newest usable one is found by listing. The object is
checksummed; a half-written or damaged one is skipped and the one before it is used.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.state import CorruptSnapshot, load_state, save_state
from infra.blobs import Blobs

log = logging.getLogger(__name__)
_KEEP = 3
_FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of one partition of one step, under `prefix`; `fingerprint` says for which meaning of the state."""

    blobs: Blobs
    prefix: str
    fingerprint: str

    def put(self, offsets: Sequence[int], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store a snapshot that includes everything below `offsets` (one an input, in a fixed order)."""
        mark = np.frombuffer(self.fingerprint.encode(), np.uint8)
        self.blobs.put(self._path(offsets), save_state({**arrays, _FINGERPRINT: mark}))
        for _, path in self._found()[:-_KEEP]:
            self.blobs.delete(path)

    def newest(self, committed: Sequence[int]) -> tuple[list[int], dict[str, NDArray[Any]]] | None:
        """The newest usable snapshot at or below the committed offsets: (its offsets, its arrays)."""
        for offsets, path in reversed(self._found()):
            if len(offsets) != len(committed) or any(o > c for o, c in zip(offsets, committed, strict=True)):
                continue
            try:
                arrays = load_state(self.blobs.get(path))
            except CorruptSnapshot as error:
                log.warning("snapshot %s is damaged (%s); using the one before it", path, error)
                continue
            mark = arrays.pop(_FINGERPRINT, np.zeros(0, np.uint8)).tobytes().decode()
            if mark == self.fingerprint:
                return offsets, arrays
            log.warning("snapshot %s belongs to another definition of the features; it is not used", path)
        return None

    def _path(self, offsets: Sequence[int]) -> str:
        return f"{self.prefix}/{'-'.join(f'{offset:020d}' for offset in offsets)}.state"

    def _found(self) -> list[tuple[list[int], str]]:
        """(offsets, path) in ascending order."""
        found = []
        for path in self.blobs.list(self.prefix + "/"):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".state"):
                found.append(([int(part) for part in name.removesuffix(".state").split("-")], path))
        return sorted(found)
