"""`driftline replay`: a file into a running Driftline, or a run of its own with a report at the end."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from infra.clickhouse import open_archive
from infra.errors import UserError
from infra.settings import Settings
from streams.cluster import Cluster
from streams.progress import feed_with_progress
from streams.regret import served_excess
from streams.replay import Replay
from streams.report import write_report
from streams.running import running
from streams.session import Feeding, await_ready, stream
from streams.simulate import Simulation
from streams.task import Task
from streams.view import View


def run_replay(
    file: Path,
    task: Task,
    settings: Settings,
    *,
    speed: float | None,
    mapping: Mapping[str, str],
    resume: Path | None,
    out: Path,
    console: Console,
    labels: bool = True,
) -> None:
    """Stream `file`. Raises UserError for a file, a task or a Kafka that cannot be used."""
    replay = Replay(task, file, mapping, labels=labels)
    console.print(f"{file.name}: {replay.events:,} events, {replay.total - replay.events:,} labels")
    for note in replay.notes:
        console.print(f"  note: {note}")
    found = running(settings.data)
    if settings.kafka or found:
        kafka = settings.kafka or (found or {})["kafka"]
        console.print(f"feeding {task.name} on {kafka}")
        feed_with_progress(
            replay.items(),
            replay.total,
            task,
            kafka,
            speed=speed,
            rate=None,
            resume=resume,
            source=replay.identity,
            console=console,
        )
        return
    _run_alone(replay, task, settings, speed=speed, resume=resume, out=out, console=console)


def _run_alone(
    replay: Replay,
    task: Task,
    settings: Settings,
    *,
    speed: float | None,
    resume: Path | None,
    out: Path,
    console: Console,
) -> None:
    """Everything started here, fed, reported and stopped."""
    if resume and not resume.exists() and (settings.data / "kafka").exists():
        console.print(
            f"  note: {settings.data} holds what earlier runs left; events seen before count as duplicates"
        )
    cluster = Cluster(task, settings, say=lambda text: console.print(f"  {text}", style="dim"))
    with cluster:
        await_ready(cluster)
        feeding = Feeding(replay, speed, resume)
        with View(console, task, replay.events, None) as view:
            watch = stream(cluster, feeding, lambda w, f: view.show(w, f.progress, cluster.roles.status()))
        console.print("  stopping the roles", style="dim")
    facts = {
        "task": task.name,
        "events": feeding.events,
        "predictions": len(watch.predicted) - watch.earlier[0],
        "doubled": watch.doubled,
        "dead_letters": watch.dead_letters - watch.earlier[1],
        "alerts": len(watch.alerts),
        "swaps": len(watch.swaps),
    }
    write_run_report(
        task, replace(cluster.settings), facts, out, drift_ms=None, title=f"Driftline: {task.name}"
    )
    console.print(
        f"\n{facts['predictions']:,} predictions for {facts['events']:,} events, "
        f"{facts['dead_letters']:,} dead letters; drift alerts: {facts['alerts']}, swaps: {facts['swaps']}"
    )
    served = watch.latest("served")
    if served and served[task.metric] is not None:
        console.print(f"rolling {task.metric.replace('_', ' ')} at the end: {served[task.metric]:.3f}")
    console.print(f"report: {out / 'report.html'}   figures: {out / 'summary.json'}")


def write_run_report(
    task: Task,
    settings: Settings,
    facts: Mapping[str, object],
    out: Path,
    *,
    drift_ms: int | None,
    title: str,
    simulation: Simulation | None = None,
) -> None:
    """report.html and summary.json from the archive of a run that has ended, into folder `out`.

    What a `simulation` knows is compared with what was served.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {out}: {error.strerror}", "give another --out") from error
    archive = open_archive(settings.archive)
    try:
        if simulation is not None:
            facts = {**facts, "served_excess_log_loss": served_excess(archive, task.name, simulation)}
        summary = write_report(
            archive,
            task.name,
            task.metric,
            out / "report.html",
            title=title,
            facts=dict(facts),
            drift_ms=drift_ms,
        )
    finally:
        archive.close()
    half = out / "summary.json.part"
    half.write_text(json.dumps({**summary, **facts}, indent=2, default=str) + "\n")
    half.replace(out / "summary.json")
