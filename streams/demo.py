"""`driftline demo`: the whole path on one machine in about 90 seconds, with a drift and a verdict at the end.

1. start Kafka and the roles, 2. stream a simulated task with one injected drift, showing what happens, 3. wait until
everything is predicted and learned, 4. stop, 5. report and judge: the exit code says whether the loop did its work.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from infra.errors import UserError
from infra.settings import Settings
from streams.cluster import Cluster
from streams.replay_run import write_run_report
from streams.running import refuse_second
from streams.session import Feeding, await_ready, stream
from streams.simulate import Simulation, parse_change, simulate
from streams.task import Task, load_task
from streams.view import ARMS, View
from streams.watch import Watch

EVENTS = {"clicks": 100_000, "transactions": 120_000}
EVENTS_PER_S = 1600.0  # what two small cores carry with everything on them, and room to catch up


def run_demo(name: str, *, seed: int, events: int, drift: str, settings: Settings, out: Path) -> int:
    """Run the demo; the exit code. Raises UserError for what a user can mend."""
    console = Console(highlight=False, soft_wrap=True)
    changes = [] if drift == "none" else [parse_change(drift)]
    task = load_task(name)
    if task.name not in EVENTS:
        raise UserError(
            f"the demo has no simulator for {name}", f"use one of {', '.join(EVENTS)}, or `driftline replay`"
        )
    simulation = simulate(task.name, seed=seed, events=events or EVENTS[task.name], changes=changes)
    settings = _own_folder(settings)
    drift_ms = simulation.onset_ms(changes[0]) if changes else None
    console.print(
        f"[bold]Driftline demo[/]: {simulation.events:,} simulated {task.name}, "
        + (f"drift {changes[0]} of the way" if changes else "no drift")
    )
    started = time.monotonic()
    freeze_ms = drift_ms or simulation.start_ms + simulation.span_ms * 2 // 5
    cluster = Cluster(
        task, settings, freeze_at_ms=freeze_ms, say=lambda text: console.print(f"  {text}", style="dim")
    )
    with cluster:
        await_ready(cluster)
        console.print(f"  ready after {time.monotonic() - started:.0f} s", style="dim")
        wall_s = simulation.events / EVENTS_PER_S
        feeding = Feeding(simulation, speed=simulation.span_ms / 1000 / wall_s)
        with View(console, task, simulation.events, drift_ms) as view:
            watch = stream(cluster, feeding, lambda w, f: view.show(w, f.progress, cluster.roles.status()))
        console.print("  stopping the roles", style="dim")
    return _conclude(
        task, cluster.settings, simulation, watch, feeding, drift_ms, bool(changes), out, console
    )


def _own_folder(settings: Settings) -> Settings:
    """A folder of its own, empty: the demo neither reads nor changes what `driftline up` keeps."""
    folder = settings.data / "demo"
    refuse_second(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return Settings(kafka=settings.kafka, data=folder, partitions=settings.partitions)


def _conclude(
    task: Task,
    settings: Settings,
    simulation: Simulation,
    watch: Watch,
    feeding: Feeding,
    drift_ms: int | None,
    drifting: bool,
    out: Path,
    console: Console,
) -> int:
    """Report, summary, verdict; the exit code."""
    accepted = feeding.events - watch.dead_letters
    after = drift_ms or simulation.start_ms
    means = {arm: watch.mean(arm, task.metric, after) for arm in ARMS}
    failures = judge(accepted, watch, means, drifting=drifting)
    facts: dict[str, Any] = {
        "task": task.name,
        "seed": simulation.seed,
        "drift": str(simulation.changes[0]) if simulation.changes else "none",
        "events": feeding.events,
        "accepted": accepted,
        "predictions": len(watch.predicted),
        "doubled": watch.doubled,
        "dead_letters": watch.dead_letters,
        "alerts": len({alert["alert_id"] for alert in watch.alerts}),
        "swaps": len(watch.swaps),
        **{f"{task.metric}_after_drift_{arm}": value for arm, value in means.items()},
        "failures": failures,
    }
    title = f"Driftline demo: {task.name}"
    write_run_report(task, settings, facts, out, drift_ms=drift_ms, title=title, simulation=simulation)
    _tell(task, facts, means, failures, out, console)
    return 1 if failures else 0


def judge(accepted: int, watch: Watch, means: dict[str, float | None], *, drifting: bool) -> list[str]:
    """What the demo failed to show, one sentence each; nothing when all is well."""
    failures = []
    if len(watch.predicted) != accepted or watch.doubled:
        failures.append(
            f"{accepted:,} events were accepted, {len(watch.predicted):,} have a prediction, "
            f"{watch.doubled} more than one"
        )
    if drifting and not watch.swaps:
        failures.append("the stream drifted and no model was swapped")
    frozen, continuous = means["frozen"], means["continuous"]
    if drifting and (frozen is None or continuous is None or continuous <= frozen):
        failures.append("after the drift the continuous model is not better than the frozen one")
    return failures


def _tell(
    task: Task,
    facts: dict[str, Any],
    means: dict[str, float | None],
    failures: list[str],
    out: Path,
    console: Console,
) -> None:
    name = task.metric.replace("_", " ")
    console.print(
        f"\n{facts['predictions']:,} predictions for {facts['accepted']:,} accepted events, "
        f"{facts['doubled']} doubled, {facts['dead_letters']} dead letters"
    )
    console.print(f"drift alerts: {facts['alerts']}, swaps: {facts['swaps']}")
    shown = [f"{words} {'—' if means[arm] is None else f'{means[arm]:.3f}'}" for arm, words in ARMS.items()]
    console.print(f"{name} after the drift: {', '.join(shown)}")
    console.print(
        "  (as served: by the model of that moment, before the labels of the events just before were there; the others"
        " score an event when its label comes)",
        style="dim",
    )
    console.print(f"report: {out / 'report.html'}   figures: {out / 'summary.json'}")
    for failure in failures:
        console.print(f"[red]failed:[/] {failure}")
