"""What a task file says about its kind: the metric, what labels are, and which other keys go with it."""

import math

import numpy as np

from learners.batch import ModelConfig
from learners.fits import misfit
from learners.target import LARGEST_VALUE
from streams.task import Task
from streams.task_toml import REQUIRED, Table, listed, nearest, shown

METRICS = {"binary": ("auc", "average_precision"), "regression": ("rmse", "mae", "r2")}
"""What a report may lead with; the first is the usual one."""


def parse_metric(table: Table, kind: str) -> str:
    """The metric of a task of this kind."""
    metrics, given = METRICS[kind], table.data.get("metric")
    of = next((other for other, names in METRICS.items() if given in names and given not in metrics), None)
    if of is not None:
        said = f"task.metric {shown(given)} is one of {of} tasks, and this is a {kind} task"
        table.fail("metric", said, f"use {listed(metrics)}, or write kind = {shown(of)}")
    metric: str = table.choice("metric", metrics, metrics[0])
    return metric


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


def parse_missing(table: Table, kind: str, low: float | None, high: float | None) -> float | None:
    """The label that an event gets without one; None for no label."""
    choices = {"binary": "0, 1", "regression": "a number"}[kind]
    missing = table.data.get("missing", REQUIRED)
    if missing is REQUIRED:
        meant = {
            "binary": 'missing = 0 (no label means "no"), missing = 1',
            "regression": "missing = 0 (no label means 0)",
        }
        fix = f'add {meant[kind]}, or missing = "drop" (learn nothing from it)'
        table.fail(None, "label.missing is missing", fix)
    if missing == "drop":
        if "late" in table.data:
            said = 'label.late has no effect with missing = "drop": nothing was taken that a late label could correct'
            table.fail("late", said, f"remove this line; it is for missing {choices.replace(', ', ' or ')}")
        return None
    if isinstance(missing, bool) or not isinstance(missing, int | float) or not _is_label(missing, kind):
        hint = nearest(missing, ("drop",)) if isinstance(missing, str) else ""
        table.fail("missing", f"label.missing is {shown(missing)}", f'{hint}use {choices} or "drop"')
    for bound, beyond in ((low, missing < (low or 0)), (high, missing > (high or 0))):
        if bound is not None and beyond:
            said = f"label.missing is {missing:g}, which label.min and label.max refuse as a label"
            table.fail("missing", said, 'use a number within these bounds or "drop"')
    return float(np.float32(missing))  # as a label travels: what is equal here is equal there


def _is_label(value: float, kind: str) -> bool:
    return value in (0, 1) if kind == "binary" else math.isfinite(value) and abs(value) <= LARGEST_VALUE


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
