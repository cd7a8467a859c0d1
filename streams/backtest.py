"""`driftline backtest`: what policies would have served on a file or a simulated stream. No broker, no processes.

The run itself is `backtest_engine`; here are the command's parts before and after it: settings, the bar, the figures.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.disk import usable
from infra.errors import UserError
from infra.settings import load_secret
from learners.target import SMALLER_IS_BETTER
from streams.backtest_engine import Backtest, Lane, Settings
from streams.backtest_policies import POLICIES, Retraining
from streams.backtest_stream import default_within_ms
from streams.canary import ARMS
from streams.privacy import Pseudonymiser
from streams.regret import excess_log_loss
from streams.report.words import NONE
from streams.task import Task
from streams.task_toml import duration_ms

if TYPE_CHECKING:
    from streams.session import Source  # it would load all that a live run needs

DAY_MS = 86_400_000
LEAST_RETRAININGS = 10
OPEN_KEY = b"driftline backtest: no secret..."
"""The key for pseudonyms where there is no data folder with one. Nothing that is hidden with it is kept."""

TITLES = {
    "auc": "AUC", "average_precision": "avg. precision", "log_loss": "log loss", "ece": "ECE", "rmse": "RMSE",
    "mae": "MAE", "r2": "R²", "accuracy": "accuracy", "macro_f1": "macro F1",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the command line says, as texts are written there. "" stands for a default that the stream decides."""

    policies: Sequence[str] = POLICIES
    warmup: float = 0.3
    batch: int = 256
    within: str = ""
    refresh: str = ""
    every: str = ""
    passes: int = 1
    out: Path | None = None
    predictions: Path | None = None


def run_backtest(
    task: Task,
    source: "Source",
    name: str,
    secret: Path,
    options: Options,
    *,
    as_json: bool,
    console: Console,
) -> dict[str, Any]:
    """Run, and leave what was asked for: a table or JSON on `console`, files. Returns the figures.

    `name` says in words what the source is. Raises UserError for options that make no sense and places that cannot be
    written.
    """
    from streams.simulate import Simulation

    settings = make_settings(task, source, options)
    for folder in filter(None, [options.out, options.predictions and options.predictions.absolute().parent]):
        with usable(folder, "name another place"):
            folder.mkdir(
                parents=True, exist_ok=True
            )  # a long run must not end in a folder that cannot be made
    backtest = Backtest(task, pseudonymiser(task, secret), chosen(options.policies), source.events, settings)
    with _bar(source.total) as on_progress:
        backtest.run(source.items(), on_progress)
    truth = source.truth() if isinstance(source, Simulation) else None
    found = figures(backtest, name, options, truth)
    if options.predictions is not None:
        write_predictions(backtest, options.predictions)
    if options.out is not None:
        _write_report(backtest, found, options.out)
    if as_json:
        print(json.dumps(found))
    else:
        _show(backtest, found, options, console)
    return found


def open_source(
    task: Task,
    file: Path | None,
    mapping: Mapping[str, str],
    *,
    simulate: str,
    events: int,
    seed: int,
    drift: Sequence[str],
) -> tuple["Source", str, list[str]]:
    """The file or the simulation to run on, its name, and notes for the user. Raises UserError."""
    from streams.replay import Replay
    from streams.simulate import parse_change
    from streams.simulate import simulate as make

    if (file is None) == (not simulate):
        raise UserError(
            "a backtest needs one stream", "give the path of a file, or --simulate clicks, and not both"
        )
    if file is not None:
        replay = Replay(task, file, mapping)
        return replay, file.name, replay.notes
    made = make(simulate, seed=seed, events=events, changes=[parse_change(text) for text in drift])
    changes = "".join(f", {change}" for change in made.changes)
    return made, f"simulated {simulate}, seed {seed}{changes}", []


def chosen(policies: Sequence[str]) -> list[str]:
    """The policies to run, in the order of `POLICIES`; `a|b` and `a,b` name several. Raises UserError."""
    wanted = [name for text in policies for name in text.replace("|", ",").split(",")]
    for name in wanted:
        if name not in POLICIES:
            raise UserError(f"there is no policy {name!r}", f"policies are {', '.join(POLICIES)}")
    return [name for name in POLICIES if name in wanted] or list(POLICIES)


def make_settings(task: Task, source: "Source", options: Options) -> Settings:
    """The settings of a run; see docs/backtest.md for the defaults. Raises UserError."""
    if not 0.0 <= options.warmup < 1.0:
        raise UserError(f"--warmup is {options.warmup:g}", "give a share of the stream from 0 up to below 1")
    for option, value in (("batch", options.batch), ("passes", options.passes)):
        if value < 1:
            raise UserError(f"--{option} is {value}", "give at least 1")
    labels = source.events if task.label.missing is not None else source.total - source.events
    every = _duration("every", options.every, min(7 * DAY_MS, source.span_ms // LEAST_RETRAININGS))
    return Settings(
        batch=options.batch,
        within_ms=max(1, _duration("within", options.within, default_within_ms(task))),
        warm_after=math.ceil(options.warmup * labels),
        retraining=Retraining(max(1, every), options.passes),
        refresh_ms=_duration("refresh", options.refresh, 0),
        keep_rows=options.predictions is not None,
    )


def _duration(option: str, text: str, default: int) -> int:
    if not text:
        return default
    found = duration_ms(text)
    if found is None:
        raise UserError(
            f"--{option} is {text!r}", 'write a whole number and a unit, such as "10m", "24h" or "7d"'
        )
    return found


def pseudonymiser(task: Task, secret: Path) -> Pseudonymiser:
    """With the key of the data folder, as live, if there is one or a hidden id would leave; else with an open one.

    So a backtest beside a live system gives that system's predictions, and one without leaves nothing behind and is
    the same on every machine.
    """
    if secret.exists() or task.event.id in task.privacy.pseudonymise:
        return Pseudonymiser(load_secret(secret))
    return Pseudonymiser(OPEN_KEY)


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    """A bar on a terminal (standard error, so that output can go elsewhere), nothing otherwise."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("backtest", total=total)
        yield lambda done: bar.update(shown, completed=done)


def figures(
    backtest: Backtest, name: str, options: Options, truth: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """Everything as one flat object, ready for JSON; what is undefined is None. docs/backtest.md has the keys.

    `truth` [events] are the true probabilities, where a simulation knows them.
    """
    at, path, settings = backtest.evaluated(), backtest.path, backtest.settings
    found: dict[str, Any] = {
        "task": backtest.task.name,
        "source": name,
        "metric": backtest.task.metric,
        "events": backtest.events,
        "accepted": backtest.accepted,
        "duplicates": path.duplicates,
        "late": path.late,
        "refused": sum(path.refused.values()),
        "labelled": backtest.labelled,
        "evaluated": len(at),
        "evaluated_positives": backtest.positives(at),
        "evaluated_from_ms": int(backtest.times_ms[at[0]]) if len(at) else None,
        "evaluated_to_ms": int(backtest.times_ms[at[-1]]) if len(at) else None,
        "batch": settings.batch,
        "within_ms": settings.within_ms,
        "refresh_ms": settings.refresh_ms,
        "warmup": options.warmup,
        "every_ms": settings.retraining.every_ms,
        "passes": settings.retraining.passes,
        "shared_seconds": backtest.seconds,
    }
    found |= {f"refused_{reason}": count for reason, count in sorted(path.refused.items())}
    for lane in backtest.lanes:
        found |= {f"{lane.name}_{key}": value for key, value in _of(backtest, lane).items()}
        if truth is not None:
            excess = excess_log_loss(backtest.labels[at], lane.scores[at], truth[at])
            found[f"{lane.name}_excess_log_loss"] = excess
    return {key: _plain(value) for key, value in found.items()}


def _of(backtest: Backtest, lane: Lane) -> dict[str, Any]:
    """A policy's figures. The rates are of that policy run alone: what is shared, and its own time."""
    measured, alone = backtest.metrics(lane), backtest.seconds + lane.seconds
    return {key: measured[key] for key in backtest.task.schema.target.metrics} | {
        "alerts": len(lane.policy.alerts),
        "decisions": len(lane.policy.decisions),
        "swaps": lane.swaps,
        "steps": lane.policy.trainer.steps,
        "seconds": lane.seconds,
        "examples_per_second": backtest.labelled / lane.seconds if lane.seconds else None,
        "events_per_second": backtest.events / alone if alone else None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _show(backtest: Backtest, found: Mapping[str, Any], options: Options, console: Console) -> None:
    console.print(
        f"{found['source']}: {found['events']:,} events, {found['labelled']:,} labelled; "
        f"{found['evaluated']:,} evaluated after the warm-up"
        + (f", {found['evaluated_positives']:,} of them positive" if backtest.task.kind == "binary" else "")
    )
    refused = {key.removeprefix("refused_"): n for key, n in found.items() if key.startswith("refused_")}
    if refused:
        console.print("  refused: " + ", ".join(f"{n:,} {reason}" for reason, n in refused.items()))
    if not found["evaluated"]:
        console.print(
            "  note: nothing could be evaluated: the stream ended in the warm-up, or no label came after it"
        )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("policy")
    metrics = backtest.task.schema.target.metrics
    for title in (*(TITLES[key] for key in metrics), "alerts", "swaps", "events/s"):
        table.add_column(title, justify="right")
    best = {key: _best(found, key, [lane.name for lane in backtest.lanes]) for key in metrics}
    for lane in backtest.lanes:
        cells = [_cell(found[f"{lane.name}_{key}"], best[key]) for key in metrics]
        counts = [
            f"{found[f'{lane.name}_{key}'] or 0:,.0f}" for key in ("alerts", "swaps", "events_per_second")
        ]
        table.add_row(lane.name, *cells, *counts)
    console.print(table)
    console.print(
        f"features and join: {found['shared_seconds']:.1f} s of processor time; events/s: that and one policy",
        style="dim",
    )
    if options.out is not None:
        console.print(f"report: {options.out / 'backtest.html'}   figures: {options.out / 'backtest.json'}")
    if options.predictions is not None:
        console.print(f"predictions: {options.predictions}")


def _best(found: Mapping[str, Any], key: str, names: Sequence[str]) -> float | None:
    values = [found[f"{name}_{key}"] for name in names if found[f"{name}_{key}"] is not None]
    if len(values) < 2:
        return None
    return float(min(values) if key in SMALLER_IS_BETTER else max(values))


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return NONE
    return f"[bold]{value:.4f}[/]" if value == best else f"{value:.4f}"


def write_predictions(backtest: Backtest, path: Path) -> None:
    """A row for each accepted event, in the order of the stream: id, time, label, each policy's score and version; with
    a canary its arm, with exploration what that means for its label.

    Raises UserError when the file cannot be written.
    """
    parts = backtest.ids or [([], np.zeros(0, np.int64))]
    at, ids = np.concatenate([numbers for _, numbers in parts]), [i for some, _ in parts for i in some]
    labels = backtest.labels[at].astype(np.float64)
    columns: dict[str, Any] = {
        "event_id": pa.array(ids, pa.utf8()),
        "event_time": pa.array(backtest.times_ms[at], pa.timestamp("ms", "UTC")),
        "label": pa.array(labels, pa.float32(), mask=np.isnan(labels)),
        "evaluated": pa.array(np.isin(at, backtest.evaluated())),
    }
    for lane in backtest.lanes:
        scores, classes = lane.scores[at], backtest.task.classes
        columns[f"{lane.name}_score"] = pa.array(list(scores) if classes else scores)
        columns[f"{lane.name}_version"] = _named(lane.version_of[at], lane.versions)
        if backtest.task.guard.canary:
            columns[f"{lane.name}_arm"] = _named((lane.arm[at] > 0).astype(np.int32), ARMS)
        if backtest.task.exploration.share:
            found = lane.marks(ids, at)
            columns[f"{lane.name}_explored"] = pa.array(found.explored)
            columns[f"{lane.name}_propensity"] = pa.array(found.propensity)
    draft = path.with_name(path.name + ".part")
    with usable(path, "give another --predictions"):
        pa.parquet.write_table(pa.table(columns), draft)
        os.replace(draft, path)


def _named(places: NDArray[np.int32], names: Iterable[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(places), pa.array(list(names), pa.utf8()))


def _write_report(backtest: Backtest, found: Mapping[str, Any], out: Path) -> None:
    from streams.backtest_report import page

    with usable(out, "give another --out"):
        draft = out / "backtest.html.part"
        draft.write_text(page(backtest, found), encoding="utf-8")
        os.replace(draft, out / "backtest.html")
        (out / "backtest.json").write_text(json.dumps(found, indent=2) + "\n")
