"""`driftline models diff`: two models side by side: origin, settings, how they do, and what they look at."""

import json
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from infra.blobs import Blobs
from infra.errors import UserError
from infra.settings import Settings
from streams.look import JsonOption, KafkaOption, TaskOption, lineages, models, newest
from streams.running import connected
from streams.task import Task, load_task

RECORDS = 200  # newest labelled records that are looked at ...
ROWS = 4_000  # ... and rows of them
TOP = 12  # columns that are printed

_console = Console(highlight=False, soft_wrap=True)
Side = dict[str, Any]


@models.command("diff")
def models_diff(
    first: Annotated[str, typer.Argument(help="A lineage (L1) or a stored version (L1.41).")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    as_json: JsonOption = False,
) -> None:
    """Compare two models: origin, settings, metrics, size, and which columns each rests on."""
    found = compare(load_task(task), connected(kafka), first, second)
    if as_json:
        print(json.dumps(found))
        return
    for name, (left, right) in found["facts"].items():
        mark = " " if left == right else "*"
        _console.print(f"{mark} {name:<20}  {_plain(left):<28}  {_plain(right)}", markup=False)
    for name, (left, right) in found["config"].items():
        _console.print(f"* {name:<20}  {_plain(left):<28}  {_plain(right)}", markup=False)
    if found["importance"]:
        lost = "squared error gained" if found["kind"] == "regression" else "nats lost"
        _console.print(f"{lost} when a column is shuffled, on {found['rows']:,} recent labelled events:")
    for name, (left, right) in list(found["importance"].items())[:TOP]:
        _console.print(f"  {name:<20}  {left:<+28.4f}  {right:+.4f}", markup=False)


def compare(task: Task, settings: Settings, first: str, second: str) -> dict[str, Any]:
    """Facts, differing settings and importances, each a pair by name; the columns whose importance moved most first.

    UserError for a model that there never was.
    """
    born = {row["lineage"]: row for row in lineages(task, settings)}
    sides = [_side(task, settings, name, born) for name in (first, second)]
    left, right = (side["facts"] for side in sides)
    configs = [side["config"] for side in sides]
    importance, rows = _importance(task, settings, [side["head"] for side in sides])
    return {
        "facts": {name: [left.get(name), right.get(name)] for name in left | right},
        "config": {
            name: [configs[0].get(name), configs[1].get(name)]
            for name in configs[0] | configs[1]
            if configs[0].get(name) != configs[1].get(name)
        },
        "importance": importance,
        "rows": rows,
        "kind": task.kind,
    }


def _side(task: Task, settings: Settings, name: str, born: dict[str, Side]) -> Side:
    """One model: facts, settings, and the stored model if there is one."""
    from streams.heads import Heads
    from streams.topics import Topics

    lineage = name.partition(".")[0]
    if lineage not in born:
        raise UserError(f"there is no lineage {lineage!r}", f"lineages are {', '.join(born) or 'none yet'}")
    heads = Heads(Blobs(settings.blobs), task.name)
    head, kept = heads.get(), list(heads.kept())
    if head and name in (head.meta["version"], head.meta["lineage"]):
        pass
    elif fitting := [version for version in kept if name in (version, version.partition(".")[0])]:
        head = heads.kept_model(fitting[-1])
    else:
        head = None
    if head is None and "." in name:
        raise UserError(f"{name} is not stored", f"stored are {', '.join(kept) or 'none'}")
    birth = born[lineage]
    values = newest(settings.kafka, Topics.of(task).metrics, 5_000, follow=False)
    metrics: Side = {}
    for row in map(json.loads, values):
        if row["lineage"] == lineage and row["arm"] in ("champion", "challenger", "continuous"):
            metrics = row
    facts: Side = {
        "model": name,
        "parent": birth["parent"] or "new",
        "why": birth["why"],
        "learned_from": birth["event_time"],
        "learned_until": head.meta["event_ms"] if head else metrics.get("event_time"),
        "stored": head.meta["version"] if head else None,
        "bytes": len(head.payload) if head else None,
        "family": birth["config"]["family"],
        "seed": birth["seed"],
        "schema": birth["schema"][:8],
    }
    facts |= {measure: metrics.get(measure) for measure in ("n", *task.schema.target.metrics)}
    return {"facts": facts, "config": birth["config"], "head": head}


def _importance(task: Task, settings: Settings, heads: list[Any]) -> tuple[dict[str, list[float]], int]:
    """Importances of both stored models on the newest labelled rows; nothing where a model or the rows are missing."""
    from learners.batch import Batch
    from learners.importance import importances
    from learners.slot import BadUpdate, Slot
    from streams.topics import Topics
    from streams.wire import decode_labelled

    values = list(newest(settings.kafka, Topics.of(task).labelled, RECORDS, follow=False))
    if not values or None in heads:
        return {}, 0
    rows = Batch.concat([decode_labelled(value, task.rows_hash).batch() for value in values])
    rows = rows.slice(max(0, len(rows) - ROWS), len(rows))
    names = (*task.schema.numbers, *task.schema.categories)
    found = []
    for head in heads:
        slot = Slot(task.schema, task.model, task.seed)
        try:
            slot.load_full(head.meta, head.payload)
        except BadUpdate as error:
            raise UserError(
                f"{head.meta['version']} cannot be used: {error}", "compare versions of this task file"
            ) from error
        found.append(importances(slot.model, rows, names, np.random.default_rng(0)))
    moved = sorted(names, key=lambda name: -abs(found[1][name] - found[0][name]))
    return {name: [found[0][name], found[1][name]] for name in moved}, len(rows)


def _plain(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
