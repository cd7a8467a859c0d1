"""A learner whose ranks come and go, with tables that are spread over them: for `tests/unit/test_parallel.py`."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from infra.clock import now_ms
from infra.kafka import Record
from infra.settings import Settings
from learners.batch import Batch
from learners.drift import Alert
from learners.entries import Run, Warned
from learners.parallel import ranks
from streams.follow import follow
from streams.learn import Learner
from streams.outlet import ListOutlet, Meta
from streams.task import Task
from streams.task_parse import parse_task
from tests import learner_log as logs

ROWS = 3_000
TURN, FIRST, SECOND = (
    0.3,
    700,
    2_700,
)  # the share of rows before the drift, and rows after which the ranks change
WARNED = 20  # the step after which what is served is said to have moved
ALERT = Alert("w", "psi", "input", "x", 1.0, 0.5, "e-1", 600_000, 700_000, "L1.1", "x moved")


@cache
def task() -> Task:
    """The small task of the learner's tests, spread over ranks."""
    text = logs.small_task("spread").text
    text = text.replace("batch_size = 64", "batch_size = 64\nshards = 2\nspread_table = true", 1)
    return parse_task(text, "spread.toml", Path("spread.toml"))


def log(rows: int) -> dict[int, list[Record]]:
    """The records of `labelled` that begin before so many rows."""
    whole = logs.records(task(), logs.labelled(task(), ROWS, turn=TURN))
    return {p: [record for record in found if record.timestamp < rows] for p, found in whole.items()}


def lived(data: Path, rows: int, outlet: ListOutlet) -> Learner:
    """The life of a learner, of which this process is rank 0, until it has read so many rows."""
    learner = logs.learner(task(), data, log(rows), outlet, at_once=3)
    training, learn = learner.training, learner.training.learn

    def learn_and_warn(batch: Batch, runs: Sequence[Run]) -> None:
        learn(batch, runs)
        if training.step == WARNED:  # as `Learner._look` does
            learner._ledger.append(Warned(WARNED, ALERT, {}, 0), now_ms())
            training.warned(ALERT)

    if rows == SECOND:
        setattr(training, "learn", learn_and_warn)  # noqa: B010
    learner.run()
    return learner


def alone(folder: Path) -> ListOutlet:
    """Its first life: one rank."""
    outlet = ListOutlet()
    lived(folder / "data", FIRST, outlet)
    return outlet


def together(folder: Path, outlet: ListOutlet) -> dict[str, Any]:
    """Its second life: by all ranks. What it is then, as this rank has it, and the updates that rank 0 sent."""
    data, updates = folder / "data", list[tuple[Meta, bytes]]()
    if ranks().rank == 0:
        learner = lived(data, SECOND, outlet)
        arena, updates = learner.training.arena, outlet.updates
    else:
        settings = Settings(kafka="none:1", data=data, partitions=logs.PARTITIONS)
        arena = follow(task(), settings, ranks())
    spread = [arm.model.table.shape[0] - len(getattr(arm.model.table, "part")) for arm in arms(arena)]  # noqa: B009
    found = {"digest": logs.digest(arena), "elsewhere": spread, "updates": updates}
    return found | {"version": arena.champion.version, "chain": arena.champion.chain}


def arms(arena: Any) -> list[Any]:
    """All that learns in an arena."""
    return [arena.champion, *(each.trainer for each in arena.challengers)]
