"""The serving side of a model: scores rows, and takes refreshes and swaps between two batches.

Promise: `score` and `apply` are called from one thread, so an update is atomic between two `score` calls;
each update is verified completely before the first weight changes, so a bad one leaves the slot bit-equal to
what it was.

Two kinds of update travel, each as `meta` (JSON) and `payload` (safetensors, never pickle):
  refresh  the rows and layers that changed; only follows exactly the version before it, within one lineage
  swap     a whole model: another lineage, or the same one for those who missed a refresh
"""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from infra.errors import UserError
from learners import weights
from learners.batch import ModelConfig, Schema
from learners.models import EventModel, build_model
from learners.trainer import Trainer, pick_device
from learners.weights import Update

Meta = dict[str, Any]


class BadUpdate(Exception):
    """An update that must not be applied: damaged, not finite, or made for another schema or shape."""


class MissedRefresh(Exception):
    """The update cannot follow what the slot holds: one before it was missed, or it belongs to a newer
    lineage whose swap was missed. The slot goes on with what it has; the remedy is `load_full` of the newest
    whole model.
    """


def encode_refresh(trainer: Trainer, *, event_ms: int, created_ms: int) -> tuple[Meta, bytes]:
    """The trainer's next refresh (advances its version).

    `event_ms` is the event time of the newest event learned from, `created_ms` the wall time now.
    """
    return _encode(trainer, trainer.delta(), event_ms, created_ms)


def encode_full(trainer: Trainer, *, event_ms: int, created_ms: int) -> tuple[Meta, bytes]:
    """The trainer's whole model. Right after `encode_refresh` it has that version (a whole model to start
    from, to be kept anywhere); otherwise it may be a new version of its own, and must be sent to every slot.
    """
    return _encode(trainer, trainer.full(), event_ms, created_ms)


def _encode(trainer: Trainer, update: Update, event_ms: int, created_ms: int) -> tuple[Meta, bytes]:
    payload = tensors_to_bytes(update.tensors)
    meta: Meta = {
        "kind": "swap" if update.whole else "refresh",
        "lineage": update.lineage,
        "refresh": update.refresh,
        "previous": update.previous,
        "version": f"{update.lineage}.{update.refresh}",
        "follows": update.follows,
        "chain": update.chain,
        "schema": trainer.schema.hash,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "event_ms": event_ms,
        "created_ms": created_ms,
    }
    if update.whole:
        meta |= {"config": trainer.config.to_dict(), "seed": trainer.seed}
    return meta, payload


class Slot:
    """Holds the live model. A new slot is what `Trainer(schema, config, seed, "L1")` starts as.

    `created_ms` is when the newest applied update was made (0 before the first): its age is the staleness.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int, device: str = "auto") -> None:
        self.schema = schema
        self.device = pick_device(device)
        self.model: EventModel = build_model(schema, config, seed, self.device)
        self.lineage, self.refresh = "L1", 0
        self.chain = weights.first_chain(schema, config, seed, self.lineage)
        self.event_ms = self.created_ms = 0

    @property
    def version(self) -> str:
        """What the next score will be made by, "lineage.refresh"."""
        return f"{self.lineage}.{self.refresh}"

    def score(
        self, numbers: NDArray[np.float32], categories: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], str]:
        """Probabilities float32 [n] of numbers [n, N] and categories [n, C], and what made them."""
        return self.model.predict(numbers, categories), self.version

    def apply(self, meta: Meta, payload: bytes) -> bool:
        """Takes an update; True if it was applied, False if the slot holds it already, or a newer one.

        A refresh of another lineage is old if it was created before the slot's own update (a log that is read
        from its start has many), and otherwise a sign of a missed swap. A swap to another lineage is always
        taken: the log's order decides. Raises BadUpdate or MissedRefresh with the slot unchanged.
        """
        check_meta(meta)
        same = meta["lineage"] == self.lineage
        if same and meta["refresh"] <= self.refresh:
            return False
        if meta["kind"] == "swap":
            self.load_full(meta, payload)
            return True
        if not same and meta["created_ms"] < self.created_ms:
            return False
        if not same or meta["previous"] != self.refresh or meta["follows"] != self.chain:
            raise MissedRefresh(f"{meta['version']} does not follow {self.version}, which this slot holds")
        weights.write(self.model, self._verified(self.model, meta, payload))
        self._become(meta)
        return True

    def load_full(self, meta: Meta, payload: bytes) -> None:
        """Takes a whole model whatever the slot holds; raises BadUpdate with the slot unchanged."""
        check_meta(meta)
        if meta["kind"] != "swap":
            raise BadUpdate(f"{meta['version']} is a {meta['kind']}, not a whole model")
        try:
            config, seed = ModelConfig.from_dict(meta["config"]), int(meta["seed"])
            fresh = build_model(self.schema, config, seed, self.device)
        except (KeyError, TypeError, ValueError, OverflowError, MemoryError, UserError) as error:
            raise BadUpdate(f"the settings of {meta['version']} do not make a model: {error}") from error
        weights.write(fresh, self._verified(fresh, meta, payload))
        self.model = fresh
        self._become(meta)

    def _verified(self, model: EventModel, meta: Meta, payload: bytes) -> dict[str, Tensor]:
        """The payload's tensors, known to fit `model`; raises BadUpdate otherwise."""
        if meta["schema"] != self.schema.hash:
            raise BadUpdate(f"{meta['version']} was made for other features than this worker computes")
        if hashlib.sha256(payload).hexdigest() != meta["sha256"]:
            raise BadUpdate(f"{meta['version']} is damaged: its {len(payload)} bytes have another SHA-256")
        try:
            tensors = tensors_from_bytes(payload)
        except (SafetensorError, ValueError, KeyError) as error:
            raise BadUpdate(f"{meta['version']} is not readable as safetensors: {error}") from error
        if reason := weights.problem(model, tensors):
            raise BadUpdate(f"{meta['version']}: {reason}")
        return tensors

    def _become(self, meta: Meta) -> None:
        self.lineage, self.refresh, self.chain = meta["lineage"], meta["refresh"], meta["chain"]
        self.event_ms, self.created_ms = meta["event_ms"], meta["created_ms"]


_TEXTS = ("kind", "lineage", "version", "follows", "chain", "schema", "sha256")
_COUNTS = ("refresh", "previous", "event_ms", "created_ms")


def check_meta(meta: Meta) -> None:
    """Raises BadUpdate unless every key that an update needs is there with its type."""
    wrong = [name for name in _TEXTS if not isinstance(meta.get(name), str)]
    wrong += [name for name in _COUNTS if type(meta.get(name)) is not int]
    if wrong:
        raise BadUpdate(f"the update's meta lacks {', '.join(wrong)}: {json.dumps(meta, default=str)[:200]}")
    if meta["kind"] not in ("refresh", "swap") or meta["version"] != f"{meta['lineage']}.{meta['refresh']}":
        raise BadUpdate(f"the update names kind {meta['kind']!r} and version {meta['version']!r}")
