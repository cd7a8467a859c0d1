"""The serving side of a model: scores rows, and takes refreshes and swaps between two batches.

Promise: `score` and `apply` are called from one thread, so an update is atomic between two `score` calls;
each update is verified completely before the first weight changes, so a bad one leaves the slot bit-equal to
what it was.

Two kinds of update travel, each as `meta` (JSON) and `payload` (safetensors, never pickle):
  refresh  the rows and layers that changed; only follows exactly the version before it, within one lineage
  swap     a whole model: another lineage, or the same one for those who missed a refresh
"""

import copy
import hashlib
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save as tensors_to_bytes

from infra.errors import UserError
from learners import weights
from learners.admission import (
    USUAL,
    Admission,
    BadUpdate,
    Meta,
    check_meta,
    check_payload,
    check_scores,
    check_weights,
    golden_scores,
    signature,
)  # fmt: skip
from learners.batch import ModelConfig, Schema
from learners.models import EventModel, build_model
from learners.trainer import Trainer, pick_device
from learners.views import Payload
from learners.weights import Update

__all__ = [
    "BadUpdate",
    "Meta",
    "MissedRefresh",
    "Ready",
    "Slot",
    "encode_full",
    "encode_refresh",
    "trainer_of",
]


class MissedRefresh(Exception):
    """The update cannot follow what the slot holds: one before it was missed, or it belongs to a newer
    lineage whose swap was missed. The slot goes on with what it has; the remedy is `load_full` of the newest
    whole model.
    """


def encode_refresh(
    trainer: Trainer, *, event_ms: int, created_ms: int, key: bytes = b"", canary: float = 0.0
) -> tuple[Meta, bytes]:
    """The trainer's next refresh (advances its version).

    `event_ms` is the event time of the newest event learned from, `created_ms` the wall time now; `key` signs.
    `canary` is the share of the entities that it serves, where it does not serve all.
    """
    return _encode(trainer, trainer.delta(), event_ms, created_ms, key, canary)


def encode_full(
    trainer: Trainer, *, event_ms: int, created_ms: int, key: bytes = b"", canary: float = 0.0
) -> tuple[Meta, bytes]:
    """The trainer's whole model. Right after `encode_refresh` it has that version (a whole model to start
    from, to be kept anywhere); otherwise it may be a new version of its own, and must be sent to every slot.
    """
    return _encode(trainer, trainer.full(), event_ms, created_ms, key, canary)


def _encode(
    trainer: Trainer, update: Update, event_ms: int, created_ms: int, key: bytes, canary: float
) -> tuple[Meta, bytes]:
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
        meta |= {"golden": golden_scores(trainer.model, trainer.schema, update.tensors)}
    if canary:
        meta |= {"canary": canary}
    if key:
        meta |= {"signature": signature(meta, key)}
    return meta, payload


def trainer_of(schema: Schema, meta: Meta, payload: Payload, lineage: str, device: str = "auto") -> Trainer:
    """A new lineage that goes on from a whole model, with fresh optimiser memory. Raises BadUpdate."""
    ready = Slot(schema, ModelConfig.from_dict(meta["config"]), meta["seed"], device).prepare(meta, payload)
    trainer = Trainer(schema, ready.model.config, meta["seed"], lineage, device)
    tensors = check_payload(meta, payload, schema, b"")
    weights.write(trainer.model, tensors)
    trainer.touched[tensors[weights.INDEX].to(trainer.device)] = True
    trainer.chain = weights.next_chain(f"{meta['chain']}>{lineage}", {})
    return trainer


@dataclass(frozen=True)
class Ready:
    """A model that passed every check of its update, to be taken."""

    meta: Meta
    model: EventModel


class Slot:
    """Holds the live model. A new slot is what `Trainer(schema, config, seed, "L1")` starts as.

    `created_ms` is when the newest applied update was made (0 before the first): its age is the staleness.
    """

    def __init__(
        self,
        schema: Schema,
        config: ModelConfig,
        seed: int,
        device: str = "auto",
        admission: Admission = USUAL,
    ) -> None:
        self.schema, self.admission = schema, admission
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

    def apply(self, meta: Meta, payload: Payload) -> bool:
        """Takes an update; True if it was applied, False if the slot holds it already, or a newer one.

        A refresh of another lineage is old if it was created before the slot's own update (a log that is read
        from its start has many), and otherwise a sign of a missed swap. A swap to another lineage is always
        taken: the log's order decides. Raises BadUpdate or MissedRefresh with the slot unchanged.
        """
        check_meta(meta)
        if meta["kind"] == "swap":
            if self.holds(meta):
                return False
            self.load_full(meta, payload)
            return True
        if not self._follows(meta):
            return False
        tensors = check_payload(meta, payload, self.schema, self.admission.key)
        check_weights(meta, self.model, tensors)
        weights.write(self.model, tensors)
        self._become(meta)
        return True

    def refreshed(self, meta: Meta, payload: Payload) -> Ready | None:
        """A copy of the model with a refresh in it, for `take`; None where `apply` would not apply it.

        For a large one, whose checking and writing would hold up scoring: as with `prepare`, another thread may do it.
        Raises as `apply` does.
        """
        check_meta(meta)
        if not self._follows(meta):
            return None
        tensors = check_payload(meta, payload, self.schema, self.admission.key)
        table = self.model.table
        fresh = copy.deepcopy(self.model, {id(table): table.clone()})  # its own copy would hold Python's lock
        check_weights(meta, fresh, tensors)
        weights.write(fresh, tensors)
        return Ready(meta, fresh)

    def _follows(self, meta: Meta) -> bool:
        """Whether a refresh is the next one, False for an old one. Raises MissedRefresh."""
        same = meta["lineage"] == self.lineage
        if self.holds(meta) or (not same and meta["created_ms"] < self.created_ms):
            return False
        if not same or meta["previous"] != self.refresh or meta["follows"] != self.chain:
            raise MissedRefresh(f"{meta['version']} does not follow {self.version}, which this slot holds")
        return True

    def holds(self, meta: Meta) -> bool:
        """Whether the slot holds the update or a newer one of its lineage."""
        return bool(meta["lineage"] == self.lineage and meta["refresh"] <= self.refresh)

    def load_full(self, meta: Meta, payload: Payload) -> None:
        """Takes a whole model whatever the slot holds; raises BadUpdate with the slot unchanged."""
        self.take(self.prepare(meta, payload))

    def prepare(self, meta: Meta, payload: Payload, pause_s: float = 0.0) -> Ready:
        """Builds, checks and warms up a whole model, beside the one that serves: the long part of a swap.

        Changes nothing here, so another thread may do it while this slot scores. Between its parts it pauses, so that
        no batch waits for all of it. Raises BadUpdate.
        """
        check_meta(meta)
        if meta["kind"] != "swap":
            raise BadUpdate("meta", f"{meta['version']} is a {meta['kind']}, not a whole model")
        tensors = check_payload(meta, payload, self.schema, self.admission.key)
        time.sleep(pause_s)
        try:
            config, seed = ModelConfig.from_dict(meta["config"]), int(meta["seed"])
            fresh = build_model(self.schema, config, seed, self.device)
        except (KeyError, TypeError, ValueError, OverflowError, MemoryError, UserError) as error:
            reason = f"the settings of {meta['version']} do not make a model: {error}"
            raise BadUpdate("weights", reason) from error
        time.sleep(pause_s)
        check_weights(meta, fresh, tensors)
        weights.write(fresh, tensors)
        time.sleep(pause_s)
        check_scores(meta, fresh, self.schema, self.model, self.admission)
        return Ready(meta, fresh)

    def take(self, ready: Ready) -> None:
        """Serves the prepared model from now on: one reference changes, between two `score` calls."""
        self.model = ready.model
        self._become(ready.meta)

    def beside(self, ready: Ready) -> "Slot":
        """Another slot like this one, which serves the prepared model; this one goes on as it is."""
        other = copy.copy(self)
        other.take(ready)
        return other

    def _become(self, meta: Meta) -> None:
        self.lineage, self.refresh, self.chain = meta["lineage"], meta["refresh"], meta["chain"]
        self.event_ms, self.created_ms = meta["event_ms"], meta["created_ms"]
