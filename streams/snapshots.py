"""Snapshots of a partition's state in a blob store: state and position in one object, written in one step.

A snapshot's name holds the input offsets that it includes, so the newest usable one is found by listing. The object is
checksummed; a half-written or damaged one is skipped and the one before it is used.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.state import CorruptSnapshot, load_state, save_state
from infra.blobs import BlobMissing, Blobs

log = logging.getLogger(__name__)
_KEEP = 3
_FINGERPRINT = "fingerprint"
_NAME = re.compile(r"\d{20}(?:-\d{20})*\.state")


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
        """The newest usable snapshot at or below the committed offsets: (its offsets, its arrays).

        The caller owns the partition. A snapshot above what is committed then belongs to another life of the topic
        (it was deleted and made anew); it is removed, or it would be taken for ours once we have come so far.
        """
        for offsets, path in reversed(self._found()):
            if len(offsets) != len(committed):
                continue
            if any(o > c for o, c in zip(offsets, committed, strict=True)):
                log.warning("snapshot %s is ahead of what is committed; it is removed", path)
                self.blobs.delete(path)
                continue
            arrays = self._load(path)
            if arrays is not None:
                return offsets, arrays
        return None

    def _load(self, path: str) -> dict[str, NDArray[Any]] | None:
        try:
            arrays = load_state(self.blobs.get(path))
        except (CorruptSnapshot, BlobMissing, OSError) as error:
            log.warning("snapshot %s cannot be used (%s); trying the one before it", path, error)
            return None
        mark = arrays.pop(_FINGERPRINT, np.zeros(0, np.uint8)).tobytes()
        if mark == self.fingerprint.encode():
            return arrays
        log.warning("snapshot %s was made for another version of the task file; it is not used", path)
        return None

    def _path(self, offsets: Sequence[int]) -> str:
        return f"{self.prefix}/{'-'.join(f'{offset:020d}' for offset in offsets)}.state"

    def _found(self) -> list[tuple[list[int], str]]:
        """(offsets, path) in ascending order."""
        found = []
        for path in self.blobs.list(self.prefix + "/"):
            name = path.rsplit("/", 1)[-1]
            if _NAME.fullmatch(name):
                found.append(([int(part) for part in name.removesuffix(".state").split("-")], path))
        return sorted(found)
