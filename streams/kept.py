"""What a learner keeps: its checkpoints and its ledger, and for how long.

The newest checkpoints are for a crash. Of the older ones the first of every few hours stays, as long as the labelled
topic still has the rows after it: from there, the ledger and the topic, any later version can be made again. So what
`driftline models verify` needs goes when the topic's retention takes the rows, and not before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.blobs import Blobs
from infra.settings import Settings
from learners import checkpoint
from learners.entries import Position
from learners.recipe import Recipe
from learners.trainer import pick_device
from streams.task import Task

ANCHOR_EVERY_MS = 6 * 3_600_000
_NEWEST = 3


def recipe_of(task: Task, freeze_at_ms: int | None = None) -> Recipe:
    """What a task file says about the arena, and the device that there is."""
    return Recipe(
        task.schema,
        task.model,
        task.challenger,
        task.drift,
        task.seed,
        freeze_at_ms,
        task.guard,
        task.segments,
        task.others,
        task.arena,
        task.tuning,
        pick_device("auto").type,
        task.trust,
    )


@dataclass(frozen=True)
class Kept:
    """Where the learner of one task keeps things: `store` for what is done, `ledger_path` for the newest entries."""

    store: Blobs
    checkpoints: str
    ledger: str
    ledger_path: Path

    @classmethod
    def of(cls, settings: Settings, task: str) -> "Kept":
        """The places that settings say."""
        path = settings.data / "ledger" / f"{task}.jsonl"
        return cls(Blobs(settings.blobs), f"learner/{task}", f"ledger/{task}", path)


def positions_of(meta: Mapping[str, Any]) -> dict[int, Position]:
    """The positions in a checkpoint's meta."""
    return {int(p): (offset, row) for p, (offset, row) in meta["positions"].items()}


def replayable(positions: Mapping[int, Position], oldest: Mapping[int, int]) -> bool:
    """Whether the topic still has all rows from these positions on."""
    return all(offset >= oldest.get(p, 0) for p, (offset, _) in positions.items())


def anchors(metas: Mapping[int, Mapping[str, Any]], oldest: Mapping[int, int]) -> list[int]:
    """The checkpoints to keep for their age: the first of each span of time from which one can still replay."""
    firsts: dict[int, int] = {}
    for step in sorted(metas):
        if replayable(positions_of(metas[step]), oldest):
            firsts.setdefault(metas[step]["created_ms"] // ANCHOR_EVERY_MS, step)
    return list(firsts.values())


def tidy(kept: Kept, oldest: Mapping[int, int]) -> int:
    """Delete the checkpoints that are not worth keeping; the number of the ledger's entry that can go with them."""
    metas = checkpoint.metas(kept.store, kept.checkpoints)
    checkpoint.prune(kept.store, kept.checkpoints, _NEWEST, anchors(metas, oldest))
    needed = []
    for meta in checkpoint.metas(kept.store, kept.checkpoints).values():
        begun = meta["begun"]
        from_there = replayable(positions_of(begun), oldest)
        needed.append(min(meta["ledger"]["n"], begun["n"] - 1) if from_there else meta["ledger"]["n"])
    return min(needed, default=0)
