"""Snapshots of a partition's state in a blob store: state and position in one object, written in one step.

A snapshot's name holds the input offsets that it includes, so the newest usable one is found by listing. The object is
checksummed; a half-written or damaged one is skipped and the one before it is used.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.snapshot import CorruptSnapshot, load_state, save_state
from infra.blobs import BlobMissing, Blobs
from infra.clock import ticks_ms
from infra.metrics import Metrics
from streams.transaction import Outputs

Arrays = Mapping[str, NDArray[Any]]

log = logging.getLogger(__name__)
_KEEP = 3
_MOST_SHARE = 20  # a snapshot is copied in the loop that works: that may take the twentieth part of the time
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


class SnapshotWriter:
    """Stores the snapshots of one partition every `every_ms`, behind its commits, without stopping the stream."""

    def __init__(self, snapshots: Snapshots, every_ms: int, executor: Executor, metrics: Metrics) -> None:
        self._snapshots, self._every_ms, self._executor, self._metrics = (
            snapshots,
            every_ms,
            executor,
            metrics,
        )
        self._due_ms = ticks_ms() + every_ms
        self._saving: asyncio.Future[None] | None = None

    def take(self, offsets: Sequence[int], copy: Callable[[], Arrays], outputs: Outputs) -> None:
        """If it is time for one: copy the state, which includes everything below `offsets`, to store it once `outputs`
        are committed.
        """
        began = ticks_ms()
        if began < self._due_ms or (self._saving is not None and not self._saving.done()):
            return
        arrays, ended = copy(), ticks_ms()
        self._due_ms = ended + max(self._every_ms, _MOST_SHARE * (ended - began))
        outputs.after.append(partial(self._begin, list(offsets), arrays))

    def _begin(self, offsets: Sequence[int], arrays: Arrays) -> None:
        self._saving = asyncio.get_running_loop().run_in_executor(self._executor, self.save, offsets, arrays)

    def save(self, offsets: Sequence[int], arrays: Arrays) -> None:
        """Store a snapshot now. A full disk must not stop the stream: the log still has everything, only recovery
        takes longer. It is logged and counted.
        """
        try:
            self._snapshots.put(offsets, arrays)
            self._metrics.count("snapshots_total")
        except OSError as error:
            log.error(
                "cannot store a snapshot of %s: %s; free some space in %s",
                self._snapshots.prefix,
                error,
                self._snapshots.blobs.url,
            )
            self._metrics.count("snapshots_failed_total")
