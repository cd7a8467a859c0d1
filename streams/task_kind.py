"""What a task file says about its kind: the metric, what labels are, and which other keys go with it."""

import numpy as np

from learners.batch import ModelConfig
from learners.fits import misfit
from learners.target import Target
from streams.task import Task
from streams.task_toml import Table, listed, nearest, shown

METRICS = {
    "binary": ("auc", "average_precision"),
    "multiclass": ("accuracy", "macro_f1", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
"""What a report may lead with; the first is the usual one."""

MOST_CLASSES = 1_000


def parse_metric(table: Table, kind: str) -> str:
    """The metric of a task of this kind."""
    metrics, given = METRICS[kind], table.data.get("metric")
    of = next((other for other, names in METRICS.items() if given in names and given not in metrics), None)
    if of is not None:
        said = f"task.metric {shown(given)} is one of {of} tasks, and this is a {kind} task"
        table.fail("metric", said, f"use {listed(metrics)}, or write kind = {shown(of)}")
    metric: str = table.choice("metric", metrics, metrics[0])
    return metric


def parse_classes(table: Table, kind: str) -> tuple[str, ...]:
    """The names of the classes of a multi-class task; none of others."""
    if kind != "multiclass":
        if "classes" in table.data:
            fix = 'remove it, or write kind = "multiclass"'
            table.fail("classes", f"task.classes has no meaning in a {kind} task", fix)
        return ()
    if "classes" not in table.data:
        table.fail(None, "task.classes is missing", 'add for example classes = ["red", "green", "blue"]')
    classes = table.strings("classes", (), '["red", "green", "blue"]')
    if not 2 <= len(classes) <= MOST_CLASSES:
        said = f"task.classes has {len(classes)} names"
        table.fail("classes", said, f"give 2 to {MOST_CLASSES} of them")
    for name in classes:
        if classes.count(name) > 1 or name == "drop":
            said = f"task.classes has {shown(name)} {'twice' if name != 'drop' else 'among them'}"
            table.fail("classes", said, 'each class has a name of its own, which is not "drop"')
    return classes


def parse_weights(table: Table, key: str) -> tuple[float, ...]:
    """A list of numbers above 0."""
    value = table.data[key]
    if not isinstance(value, list) or not all(type(each) in (int, float) for each in value):
        said = f"{table.name(key)} must be a list of numbers, not {shown(value)}"
        table.fail(key, said, f"for example {key} = [1.0, 5.0, 2.5]")
    return tuple(float(each) for each in value)


def parse_bounds(table: Table, kind: str) -> tuple[float | None, float | None]:
    """Smallest and largest label, None where there is no bound."""
    for key in ("min", "max"):
        if key in table.data and kind != "regression":
            said = f"label.{key} has no meaning in a {kind} task"
            table.fail(key, said, 'remove it, or write kind = "regression" under [task]')
    low, high = table.number("min", None, example="0"), table.number("max", None, example="100")
    if low is not None and high is not None and low > high:
        table.fail("max", f"label.max = {high:g} is below min = {low:g}", "swap the two")
    return low, high


def parse_missing(table: Table, target: Target, low: float | None, high: float | None) -> float | None:
    """The label that an event gets without one, of several classes the number of one; None for no label."""
    what, example = _MISSING[target.kind]
    if "missing" not in table.data:
        fix = f'add {example}, or missing = "drop" (learn nothing from it)'
        table.fail(None, "label.missing is missing", fix)
    missing = table.data["missing"]
    if missing == "drop":
        if "late" in table.data:
            said = 'label.late has no effect with missing = "drop": nothing was taken that a late label could correct'
            table.fail("late", said, f"remove this line; it is for missing {what.replace(', ', ' or ')}")
        return None
    if target.classes and missing in target.classes:
        return float(target.classes.index(missing))
    if type(missing) not in (int, float) or target.classes or not target.usable(np.array(missing)):
        names = [*target.classes, "drop"]
        hint = nearest(missing, names) if isinstance(missing, str) else ""
        table.fail("missing", f"label.missing is {shown(missing)}", f'{hint}use {what} or "drop"')
    for bound, beyond in ((low, missing < (low or 0)), (high, missing > (high or 0))):
        if bound is not None and beyond:
            said = f"label.missing is {missing:g}, which label.min and label.max refuse as a label"
            table.fail("missing", said, 'use a number within these bounds or "drop"')
    return float(np.float32(missing))  # as a label travels: what is equal here is equal there


_MISSING = {
    "binary": ("0, 1", 'missing = 0 (no label means "no"), missing = 1'),
    "multiclass": ("one of task.classes", "missing = one of task.classes"),
    "regression": ("a number", "missing = 0 (no label means 0)"),
}


def check_settings(table: Table, config: ModelConfig, task: Task) -> None:
    """A model has no settings that mean nothing for this kind of task."""
    if wrong := misfit(config, task.schema.target):
        key, said, fix = wrong
        table.fail(key if key in table.data else None, f"{table.name()}: {said}", fix)


def check_guard(table: Table, task: Task) -> None:
    """Nor has the guard."""
    if "max_bias" in table.data and task.kind != "binary":
        said = (
            f"guard.max_bias has no effect in a {task.kind} task: a bias is part of the error that is watched"
        )
        table.fail("max_bias", said, "remove this line")


def check_rates(root: Table, task: Task) -> None:
    """A share of ones, or a mean, has no meaning where labels are names."""
    for index, table in enumerate(root.data.get("features", [])):
        if task.classes and "label_rate" in table:
            fix = "remove it; it is for binary and regression tasks"
            path = ("features", index, "label_rate")
            root.source.fail(path, "features.label_rate has no meaning in a multiclass task", fix)
