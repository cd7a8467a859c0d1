"""Whole models of a task in the blob store: the newest, that a serving worker starts from, and those to go back to.

The record (`head.json`, `kept/*.json`) is written last and names the model's file, so a reader finds a complete
model or none.
"""

import json
from dataclasses import dataclass
from typing import Any

from infra.blobs import BlobMissing, Blobs

_KEEP = 3
KEPT = 20  # models to go back to


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
        self._prune(path, _KEEP - 1)
        return path

    def put_canary(self, head: Head) -> None:
        """Store the whole model of a canary, for workers that start."""
        path = f"{self._prefix}/canary/{head.meta['created_ms']:015d}-{head.meta['version']}.safetensors"
        self._blobs.put(path, head.payload)
        record = {"meta": head.meta, "path": path, "offset": head.offset}
        self._blobs.put(f"{self._prefix}/canary.json", json.dumps(record).encode())
        self._prune(path, _KEEP - 1)

    def drop_canary(self) -> None:
        """There is no canary any more."""
        if self._blobs.list(f"{self._prefix}/canary.json"):
            self._blobs.delete(f"{self._prefix}/canary.json")

    def canary(self) -> Head | None:
        """The canary, or None where there is none."""
        return self._read("canary.json")

    def keep(self, head: Head) -> None:
        """Store a model to go back to, under its version."""
        name = f"{self._prefix}/kept/{head.meta['created_ms']:015d}-{head.meta['version']}"
        self._blobs.put(f"{name}.safetensors", head.payload)
        self._blobs.put(f"{name}.json", json.dumps({"meta": head.meta, "offset": head.offset}).encode())
        self._prune(f"{name}.", 2 * (KEPT - 1))

    def kept(self) -> dict[str, str]:
        """Version → blob of the models that one can go back to, oldest first."""
        blobs = [b for b in self._blobs.list(f"{self._prefix}/kept/") if b.endswith(".json")]
        return {blob.rpartition("-")[2].removesuffix(".json"): blob for blob in blobs}

    def kept_model(self, version: str) -> Head:
        """A model that was kept. KeyError for one that was not."""
        blob = self.kept()[version]
        record = json.loads(self._blobs.get(blob))
        payload = self._blobs.get(f"{blob.removesuffix('.json')}.safetensors")
        return Head(record["meta"], payload, record["offset"])

    def any(self) -> bool:
        """Whether the learner has published a first model."""
        path = f"{self._prefix}/head.json"
        return path in self._blobs.list(path)

    def get(self) -> Head | None:
        """The newest head, or None before the first."""
        return self._read("head.json")

    def _prune(self, written: str, others: int) -> None:
        """Of the blobs beside what was just written, which is the newest whatever the clock said, keep so many."""
        names = [n for n in self._blobs.list(written.rpartition("/")[0] + "/") if not n.startswith(written)]
        for old in names[:-others]:
            self._blobs.delete(old)

    def _read(self, name: str) -> Head | None:
        try:
            record = json.loads(self._blobs.get(f"{self._prefix}/{name}"))
            return Head(record["meta"], self._blobs.get(record["path"]), record["offset"])
        except BlobMissing:
            return None
