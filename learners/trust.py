"""How far labels are trusted: a cap on what one entity may teach, and entities that no model learns from.

Whoever can send events with labels can teach the model something wrong. Two bounds, both off by default:

- The *cap*. Of any `window` labelled examples in a row, at most `cap` of one entity are learned; the rest are scored
  and measured like all others. What an entity can change is bounded, whatever it sends.
- The *holdout*. A share of the entities, by a hash of their pseudonym, teaches nobody anything. A challenger must be
  better than the champion on them too (`learners.challenger`): one that won because it learned what poisoned labels
  say is no better where nobody taught it. It is only as clean as these entities are.

What is admitted is a function of the examples before, so that the same stream gives the same models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch
from learners.packing import Arrays


@dataclass(frozen=True, slots=True)
class TrustConfig:
    """The `[trust]` section of a task file. An entity is that of the event's key.

    Raises ValueError, naming the field, for a value that cannot work.
    """

    cap: int = 0  # examples of one entity that are learned, of `window` in a row; 0: no cap
    window: int = 5_000  # labelled examples
    holdout: float = 0.0  # share of the entities that no model learns from
    holdout_alpha: float = 0.1  # a challenger that is no better on them passes with at most this probability

    def __post_init__(self) -> None:
        wrong = {
            "cap must be from 0 to window": not 0 <= self.cap <= self.window,
            "window must be from 1 to 32768": not 1 <= self.window <= 32_768,
            "holdout must be from 0 to 0.5": not 0.0 <= self.holdout <= 0.5,
            "holdout_alpha must be above 0 and below 1": not 0.0 < self.holdout_alpha < 1.0,
        }
        for reason, holds in wrong.items():
            if holds:
                raise ValueError(reason)


FULL_TRUST = TrustConfig()


class Trust:
    """Decides which examples are learned. Entity 0 stands for none: it has no cap and is never held out."""

    def __init__(self, config: TrustConfig) -> None:
        self._config = config
        self._newest = np.zeros(config.window if config.cap else 0, np.int64)  # entities learned from, a ring
        self._seen = 0
        self._learned: dict[int, int] = {}  # how often each is in the ring

    def held(self, batch: Batch) -> NDArray[np.bool_]:
        """Which examples [n] are of entities that nobody learns from."""
        return held_out(batch.entity, self._config.holdout)

    def admitted(self, batch: Batch) -> Batch:
        """The examples that may be learned, in their order. Call it once for each batch, in the order of the stream."""
        config = self._config
        if not config.cap and not config.holdout:
            return batch
        kept = ~self.held(batch)
        if config.cap:
            self._cap(batch.entity, kept)
        return batch if kept.all() else batch.take(kept)

    def _cap(self, entities: NDArray[np.int64], kept: NDArray[np.bool_]) -> None:
        learned, ring = self._learned, self._newest
        at, most = self._seen % len(ring), self._config.cap
        for row, entity in enumerate(entities.tolist()):
            if old := int(ring[at]):
                learned[old] -= 1
                if not learned[old]:
                    del learned[old]
            ring[at] = 0
            if entity and kept[row]:
                if learned.get(entity, 0) < most:
                    ring[at] = entity
                    learned[entity] = learned.get(entity, 0) + 1
                else:
                    kept[row] = False
            at = (at + 1) % len(ring)
        self._seen += len(entities)

    def state(self) -> Arrays:
        """Everything, as arrays; `load` is the inverse."""
        return {"newest": self._newest, "seen": np.array([self._seen], np.int64)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`, for the same settings. With another window or cap, the count begins anew."""
        if len(state["newest"]) != len(self._newest):
            return
        self._newest, self._seen = state["newest"].copy(), int(state["seen"][0])
        entities, counts = np.unique(self._newest[self._newest != 0], return_counts=True)
        self._learned = dict(zip(entities.tolist(), counts.tolist(), strict=True))


def held_out(entities: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which entities [n] belong to the `share` that is held out: a function of the pseudonym, the same for ever."""
    with np.errstate(over="ignore"):
        bits = entities.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    held: NDArray[np.bool_] = ((bits >> np.uint64(11)) * 2.0**-53 < share) & (entities != 0)
    return held
