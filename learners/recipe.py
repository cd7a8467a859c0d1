"""All that decides what an arena becomes, besides its examples. The ledger keeps it, to make any arena again."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from infra.errors import UserError
from learners.arena import Arena
from learners.batch import ModelConfig, Schema
from learners.budget import USUAL_ARENA, ArenaConfig
from learners.drift import DriftConfig
from learners.rollback import USUAL, GuardConfig
from learners.space import LATER, TuningConfig, changed
from learners.trainer import pick_device
from learners.trust import FULL_TRUST, TrustConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """The settings of an arena, as the task file and the command line give them."""

    schema: Schema
    champion: ModelConfig
    challenger: ModelConfig
    drift: DriftConfig
    seed: int
    freeze_at_ms: int | None = None
    guard: GuardConfig = USUAL
    segments: tuple[str, ...] = ()
    others: tuple[ModelConfig, ...] = ()  # further challengers
    beside: ArenaConfig = USUAL_ARENA
    tuning: TuningConfig | None = None
    device: str = "cpu"  # a type of device: the same step has other bits on another one
    trust: TrustConfig = FULL_TRUST

    def arena(self, former: Arena | None = None) -> Arena:
        """An arena that has learned nothing, or that takes over all that `former` knows (ValueError if it cannot).

        Where the device is not to be had, it is on the CPU.
        """
        arena = Arena(
            self.schema,
            self.champion,
            self.challenger,
            self.drift,
            seed=self.seed,
            freeze_at_ms=self.freeze_at_ms,
            guard=self.guard,
            segments=self.segments,
            served=True,  # `streams.watching` looks at inputs and scores
            others=self.others,
            beside=self.beside,
            tuning=self.tuning,
            device=self.device if self.device == pick_device("auto").type else "cpu",
            trust=self.trust,
        )
        if former is not None:
            arena.load(*former.state())
            _relearn(arena, former)
        return arena

    @property
    def hash(self) -> str:
        """The same for equal recipes only."""
        return hashlib.blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` is its inverse."""
        return {
            "schema": self.schema.to_dict(),
            "champion": self.champion.to_dict(),
            "challenger": self.challenger.to_dict(),
            "drift": msgspec.to_builtins(self.drift),
            "seed": self.seed,
            "freeze_at_ms": self.freeze_at_ms,
            "guard": msgspec.to_builtins(self.guard),
            "segments": list(self.segments),
            "others": [config.to_dict() for config in self.others],
            "beside": msgspec.to_builtins(self.beside),
            "tuning": msgspec.to_builtins(self.tuning),
            "device": self.device,
            "trust": msgspec.to_builtins(self.trust),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError for one that this version of Driftline does not understand."""
        try:
            return cls(
                Schema.from_dict(raw["schema"]),
                ModelConfig.from_dict(raw["champion"]),
                ModelConfig.from_dict(raw["challenger"]),
                msgspec.convert(raw["drift"], DriftConfig),
                raw["seed"],
                raw["freeze_at_ms"],
                msgspec.convert(raw["guard"], GuardConfig),
                tuple(raw["segments"]),
                tuple(ModelConfig.from_dict(each) for each in raw["others"]),
                msgspec.convert(raw["beside"], ArenaConfig),
                msgspec.convert(raw["tuning"], TuningConfig | None),
                str(raw["device"]),
                msgspec.convert(raw["trust"], TrustConfig),
            )
        except (KeyError, TypeError, UserError, msgspec.ValidationError) as error:
            raise ValueError(f"the settings are of another version of Driftline ({error!r})") from error


def _relearn(arena: Arena, former: Arena) -> None:
    """Where the settings of the first champion differ from those before in how a model learns (`space.LATER`), the
    champion that is there, whichever it is, goes on with the new ones.
    """
    was, wanted, champion = former.settings[0], arena.settings[0], arena.champion
    how = {name: getattr(wanted, name) for name in LATER if getattr(wanted, name) != getattr(was, name)}
    if not how:
        return
    try:
        config = changed(champion.config, how)
    except UserError as error:
        log.warning("%s learns as before: %s", champion.lineage, error)
        return
    arena.champion = champion.relearning(config)
    arena.trials.entrants.configs[champion.lineage] = config
