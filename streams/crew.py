"""The learner under torchrun: rank 0 is the learner, and the others do to their arenas what it does to its own.

Rank 0 alone reads `labelled`, writes the ledger, checkpoints and updates, hears people and workers, and decides when a
step is cut. All that changes an arena goes through one of the commands here, in order, and an arena is a pure function
of them (`learners.arena`). So the ranks hold the same models without exchanging any. They meet inside a step, where
they add their gradients (`learners.parallel`), and wherever rows of a table are read that is spread over them
(`learners.spread`): so what rank 0 publishes or saves is a command too. Every rank must reach the same blob store: a
checkpoint is read by each.

A rank that ends takes the others with it; torchrun starts all of them again, and rank 0 goes on from checkpoint and
ledger as any learner does.
"""

from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from learners.batch import GRADIENT_FAMILIES, Batch
from learners.drift import Alert
from learners.entries import Steered
from learners.parallel import Ranks
from streams.task import Task


@dataclass(frozen=True)
class Load:
    """Become what a checkpoint of this number holds."""

    checkpoint: int


@dataclass(frozen=True)
class Use:
    """Go on with other settings (a recipe's `to_dict`), with an untrained model if `fresh`."""

    recipe: dict[str, Any]
    fresh: bool


@dataclass(frozen=True)
class Learn:
    """Take a step."""

    batch: Batch
    created_ms: int


@dataclass(frozen=True)
class Publish:
    """Make the next update of a lineage, `whole` or a refresh, numbered above `above` if that is given.

    Only rank 0 sends it. But rows of a table that is spread are read by all ranks together.
    """

    lineage: str
    whole: bool
    above: int | None


@dataclass(frozen=True)
class Save:
    """Gather everything that a checkpoint has; rank 0 writes it."""


@dataclass(frozen=True)
class Wait:
    """Nothing: there are no rows, and rank 0 is well."""


Command = Load | Use | Learn | Publish | Save | Wait | Steered | Alert | None
"""`Steered` is the ledger's own entry, `Alert` one on what is served. None: rank 0 has ended as it should, and so do
the others.
"""


def check_ranks(task: Task, ranks: Ranks) -> None:
    """Every rank has a part of every step. Raises UserError."""
    others = [("challenger", config) for config in (task.challenger, *task.others)]
    for table, config in (("model", task.model), *others):
        if config.family in GRADIENT_FAMILIES and config.shards < ranks.count:
            raise UserError(
                f"{ranks.count} ranks cannot share a step of [{table}], whose shards is {config.shards}",
                f"write shards = {ranks.count} under [{table}] of {task.path}, or start {config.shards} with torchrun",
            )
