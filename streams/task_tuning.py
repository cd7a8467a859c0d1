"""`[tuning]` of a task file: what a population of settings may be, checked together with `[model]`."""

import math
from collections.abc import Callable
from typing import Any

from infra.errors import UserError
from learners.batch import GRADIENT_FAMILIES, ModelConfig
from learners.space import Choices, TuningConfig, changed
from streams.task import Task
from streams.task_kind import check_settings
from streams.task_model import USED_WITH, check_blocks
from streams.task_size import LARGEST_MODEL, whole_model_bytes
from streams.task_toml import Table, listed, shown

TUNING = ("population", "rungs", "events", "budget", "space")
SPACE = tuple(
    name
    for name in ModelConfig.__dataclass_fields__
    if name not in ("tower", "recent_labels", "table", "admit_after", "expire_after")
)
MOST_CORNERS = 4_096
_USED_WITH = USED_WITH | dict.fromkeys(
    ("learning_rate", "optimiser", "weight_decay", "clip_norm"), ("family", GRADIENT_FAMILIES)
)

Setting = Callable[[Table, str, Any], Any]
"""Reads one key of a table, given its default, as `[model]` would."""


def parse_tuning(root: Table, task: Task, setting: Setting) -> TuningConfig | None:
    """The table, or None without one. Raises UserError."""
    if "tuning" not in root.data:
        return None
    table = root.table("tuning", TUNING)
    space = _space(table, task.model, setting)
    budget = table.number("budget", 0.2, 0.001, 0.999, example="0.2")
    if budget > task.arena.budget:
        said = f"tuning.budget {budget:g} is above arena.budget {task.arena.budget:g}"
        table.fail("budget", said, "write a smaller one: the population is one of those beside the champion")
    config = TuningConfig(
        table.integer("population", 8, 2, 64),
        table.integer("rungs", 3, 1, 6),
        table.integer("events", 1_000, 100, 1_000_000),
        budget,
        space,
    )
    _check_corners(table.table("space"), config, task)
    return config


def _space(table: Table, model: ModelConfig, setting: Setting) -> dict[str, Choices]:
    given = table.table("space", SPACE)
    if not given.data:
        if model.family not in GRADIENT_FAMILIES:
            said = f"tuning.space is missing, and the family {model.family} has no learning rate to tune"
            table.fail(None, said, 'add for example [tuning.space] with family = ["knn", "mlp"]')
        rate = model.learning_rate
        return {"learning_rate": {"min": rate / 10, "max": min(10 * rate, 10.0)}}
    space = {key: _choices(given, key, model, setting) for key in given.data}
    for key in space:
        if key in _USED_WITH:
            other, values = _USED_WITH[key]
            options = space.get(other, [getattr(model, other)])
            if not any(option in values for option in options):
                said = f"{given.name(key)} has no effect with {other} = {listed([shown(o) for o in options])}"
                given.fail(key, said, f"remove this line; it is for {other} {listed(values)}")
    return space


def _choices(space: Table, key: str, model: ModelConfig, setting: Setting) -> Choices:
    value, usual = space.data[key], getattr(model, key)

    def one(each: Any) -> Any:
        read = setting(Table(space.source, space.path, {key: each}), key, usual)
        return list(read) if isinstance(read, tuple) else read

    if isinstance(value, dict):
        if set(value) != {"min", "max"} or isinstance(usual, bool) or not isinstance(usual, int | float):
            fix = f"list its values, for example {key} = {_example(usual)}"
            if isinstance(usual, int | float) and not isinstance(usual, bool):
                fix = f"write {key} = {{ min = 1, max = 2 }} with both ends"
            space.fail(key, f"{space.name(key)} is no range", fix)
        low, high = one(value["min"]), one(value["max"])
        if not low < high:
            space.fail(key, f"{space.name(key)} has min {low} and max {high}", "min must be below max")
        return {"min": low, "max": high}
    if not isinstance(value, list) or len(value) < 2:
        said = f"{space.name(key)} must list at least two values, or be {{ min = ..., max = ... }}"
        space.fail(key, said, f"for example {key} = {_example(usual)}; a single value belongs in [model]")
    choices = [one(each) for each in value]
    for place, choice in enumerate(choices):
        if choice in choices[:place]:
            space.fail(key, f"{space.name(key)} lists {shown(choice)} twice", "name each value once")
    return choices


def _example(usual: Any) -> str:
    return "[[64, 32], [32]]" if isinstance(usual, tuple) else f"[{shown(usual)}, ...]"


def _check_corners(space: Table, config: TuningConfig, task: Task) -> None:
    """Every combination of the ends of ranges and of choices is one that a `[model]` could have."""
    corners = math.prod(len(each) for each in config.space.values())
    if corners > MOST_CORNERS:
        said = f"{space.name()} has {corners} combinations, more than {MOST_CORNERS}"
        space.fail(None, said, "list fewer values, or write ranges")
    for corner in config.corners():
        together = ", ".join(f"{name} = {shown(value)}" for name, value in corner.items())
        try:
            made = changed(task.model, corner)
        except UserError as error:
            space.fail(None, f"{space.name()}: {error.message}, in {together}", error.fix)
        for wrong, fix in _problems(made, task).items():
            space.fail(None, f"{space.name()}: {wrong}, in {together}", fix)
        check_blocks(space, made, task)
        check_settings(space, made, task)


def _problems(made: ModelConfig, task: Task) -> dict[str, str]:
    most = task.model.batch_size
    found = {}
    if made.family == "two_tower" and not made.tower:
        found["two_tower needs its columns"] = "try it as a [[challenger]]"
    if made.batch_size > most:
        found[f"batch_size is above model.batch_size {most}"] = f"write at most {most}: steps are that long"
    if made.smallest_batch > made.batch_size:
        found["smallest_batch is above batch_size"] = "write a smaller one"
    if made.optimiser == "ftrl" and (made.schedule, made.warmup_steps) != ("constant", 0):
        found["ftrl follows no schedule"] = "leave ftrl or the schedule out"
    if whole_model_bytes(made, task.schema) > LARGEST_MODEL:
        found["a whole model would be too large"] = "write smaller sizes"
    return found
