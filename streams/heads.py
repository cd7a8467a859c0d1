"""The newest whole model of a task in the blob store: what a serving worker starts from, and where to read on.

`head.json` is written last and names the model's file, so a reader finds a complete model or the one before it.
"""

import json
from dataclasses import dataclass
from typing import Any

from infra.blobs import BlobMissing, Blobs

_KEEP = 3


@dataclass(frozen=True)
class Head:
    """A whole model as `learners.slot` wants it, and the offset of model-updates from which refreshes follow it."""

    meta: dict[str, Any]
    payload: bytes
    offset: int


class Heads:
    """The heads of one task."""

    def __init__(self, blobs: Blobs, task: str) -> None:
        self._blobs, self._prefix = blobs, f"models/{task}"

    def put(self, head: Head) -> str:
        """Store a head; the path of the model's file."""
        meta = head.meta
        path = f"{self._prefix}/whole/{meta['created_ms']:015d}-{meta['version']}.safetensors"
        self._blobs.put(path, head.payload)
        record = json.dumps({"meta": meta, "path": path, "offset": head.offset}, indent=1)
        self._blobs.put(f"{self._prefix}/head.json", record.encode())
        for old in self._blobs.list(f"{self._prefix}/whole/")[:-_KEEP]:
            self._blobs.delete(old)
        return path

    def any(self) -> bool:
        """Whether the learner has published a first model."""
        path = f"{self._prefix}/head.json"
        return path in self._blobs.list(path)

    def get(self) -> Head | None:
        """The newest head, or None before the first."""
        try:
            record = json.loads(self._blobs.get(f"{self._prefix}/head.json"))
            return Head(record["meta"], self._blobs.get(record["path"]), record["offset"])
        except BlobMissing:
            return None
