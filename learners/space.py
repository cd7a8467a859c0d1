"""What is tuned: the settings that a population may have, and how they are drawn.

No torch here: a task file's `[tuning]` is read by every role.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from infra.errors import UserError
from learners.batch import ModelConfig

Choices = list[Any] | dict[str, float]
"""The values that a setting may have, or {"min": a, "max": b}."""

LEARNING = (
    "optimiser", "learning_rate", "batch_size", "smallest_batch", "weight_decay", "clip_norm", "momentum", "nesterov",
    "l1", "l2", "schedule", "schedule_steps", "schedule_factor", "warmup_steps",
)  # fmt: skip
"""The settings that say how a model learns, and not what it is."""

HOW = (
    *LEARNING,
    "loss",
    "positive_weight",
    "focal_gamma",
    "replay",
    "replay_rows",
    "replay_keep",
    "ewc",
    "renew",
)
"""Settings that a copy of a model can change; with any other in the space, all members begin untrained."""

LATER = (*HOW, "shards", "precision")
"""Settings of `[model]` that a champion takes up which learns already."""


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """The `[tuning]` section of a task file. Raises ValueError, naming the field, for a value that cannot work.

    `space` maps settings of a `ModelConfig` to what they may be.
    """

    population: int = 8
    rungs: int = 3
    events: int = 1_000  # that members learn in the first rung
    budget: float = 0.2  # share of the learner's work
    space: dict[str, Choices] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = {
            "population must be from 2 to 64": not 2 <= self.population <= 64,
            "rungs must be from 1 to 6": not 1 <= self.rungs <= 6,
            "events must be at least 100": self.events < 100,
            "budget must be above 0 and below 1": not 0.0 < self.budget < 1.0,
        }
        for reason, holds in wrong.items():
            if holds:
                raise ValueError(reason)

    @property
    def copies(self) -> bool:
        """Whether members can begin as copies of the champion: they differ in how they learn, not in what they are."""
        return all(name in HOW for name in self.space)

    def corners(self) -> Iterator[dict[str, Any]]:
        """All combinations of choices, with both ends of ranges."""
        values = [list(each.values()) if isinstance(each, dict) else each for each in self.space.values()]
        for combination in product(*values):
            yield dict(zip(self.space, combination, strict=True))

    def kinds(self, base: ModelConfig) -> Iterator[ModelConfig]:
        """One of each kind of settings that may have code of its own to compile."""
        made: dict[tuple[str, str, int], ModelConfig] = {}
        for corner in self.corners():
            config = changed(base, corner)
            made.setdefault((config.family, config.optimiser, config.batch_size), config)
        yield from made.values()

    def draw(self, base: ModelConfig, seed: int, generation: int) -> list[ModelConfig]:
        """The settings of a population: those of `base` first, then a Latin hypercube; no two alike, all valid."""
        random = np.random.default_rng((seed, generation))
        n = self.population - 1
        columns = {
            name: [_at(each, name, base, u) for u in (random.permutation(n) + random.random(n)) / n]
            for name, each in self.space.items()
        }
        found = [base]
        for row in range(n):
            try:
                config = changed(base, {name: column[row] for name, column in columns.items()})
            except (
                UserError
            ):  # what goes with the first champion's settings need not go with those of today's
                continue
            if config not in found:
                found.append(config)
        return found


def changed(base: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """The settings with others laid over them. UserError where they do not go together."""
    return ModelConfig.from_dict(base.to_dict() | dict(values))


def _at(choices: Choices, name: str, base: ModelConfig, u: float) -> Any:
    """The value at `u` in [0, 1): of choices one, of a range by its logarithm where it begins above 0."""
    if isinstance(choices, list):
        return choices[int(u * len(choices))]
    low, high = choices["min"], choices["max"]
    value = math.exp(math.log(low) + u * math.log(high / low)) if low > 0 else low + u * (high - low)
    value = min(max(value, low), high)
    return round(value) if isinstance(getattr(base, name), int) else float(f"{value:.6g}")
