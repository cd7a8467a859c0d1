"""The `driftline` command. Exit codes: 0 done, 1 failed, 2 used wrongly."""

import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infra.disk import usable
from infra.errors import UserError
from infra.settings import Settings, load_secret
from streams import (
    ask,  # noqa: F401 - it adds to `driftline models`, as diff does
    diff,  # noqa: F401
    look,
)
from streams.backtest_cli import backtest
from streams.lineage import lineage
from streams.look import TaskOption
from streams.running import connected, settings_here
from streams.task import Task, built_in_tasks, load_task
from streams.task_size import memory
from streams.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
task_app = typer.Typer(no_args_is_help=True, help="Check a task file, or propose a new one.")
app.add_typer(task_app, name="task")
app.command()(backtest)
app.command()(lineage)
features_app = typer.Typer(no_args_is_help=True, help="The features of a task in Feast.")
app.add_typer(features_app, name="features")
look.models.command("verify")(verify)
app.add_typer(look.models, name="models")
app.add_typer(look.drift, name="drift")
app.add_typer(look.predictions, name="predictions")
console = Console(highlight=False, soft_wrap=True)

KafkaOption = Annotated[
    str, typer.Option("--kafka", help="host:port of an existing Kafka; default: embedded.")
]
ROLE_HELP = "One worker of this role, for production: one process or container each."


def main() -> None:
    """Entry point: errors a user can mend end in a sentence and exit code 1, never in a traceback."""
    try:
        with usable(Path.cwd(), "name another place"):
            app()
    except UserError as error:
        console.file.flush()
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {_plain(error)}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(error: UserError) -> str:
    return str(error).replace("[", "\\[")


@app.command()
def demo(
    task: TaskOption = "clicks",
    seed: Annotated[int, typer.Option(help="Seed of the simulated stream and the model.")] = 1,
    events: Annotated[int, typer.Option(help="How many events to stream; 0: the task's default.")] = 0,
    drift: Annotated[
        str, typer.Option(help="KIND@FRACTION: sudden, gradual, recurring, pattern, unit; or none.")
    ] = "sudden@0.5",
    kafka: KafkaOption = "",
    out: Annotated[Path, typer.Option(help="Folder for report.html and summary.json.")] = Path("."),
) -> None:
    """Watch a model learn from a live stream, drift, and be replaced by a better one (about 90 seconds)."""
    from streams.demo import run_demo

    raise typer.Exit(
        run_demo(task, seed=seed, events=events, drift=drift, settings=settings_here(kafka), out=out)
    )


@app.command()
def up(
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    workers: Annotated[int, typer.Option(help="Serve workers.")] = 1,
    port: Annotated[
        int, typer.Option(help="Port of the embedded Kafka; 0: a free one, then the same again.")
    ] = 0,
) -> None:
    """Run all roles of a task until Ctrl-C, with an embedded Kafka or your own."""
    from streams.up import run_up

    run_up(load_task(task), settings_here(kafka), workers=workers, port=port or None)


@app.command(help=f"Features, scores, predictions. {ROLE_HELP}")
def serve(task: TaskOption = "clicks", kafka: KafkaOption = "") -> None:
    """Run a serve worker."""
    _faust_role("serve", load_task(task), connected(kafka))


@app.command(help=f"Labels meet examples. {ROLE_HELP}")
def join(task: TaskOption = "clicks", kafka: KafkaOption = "") -> None:
    """Run a join worker."""
    _faust_role("join", load_task(task), connected(kafka))


@app.command(help=f"History in ClickHouse. {ROLE_HELP}")
def archive(task: TaskOption = "clicks", kafka: KafkaOption = "") -> None:
    """Run an archive worker."""
    _faust_role("archive", load_task(task), connected(kafka))


def _faust_role(role: str, task: Task, settings: Settings) -> None:
    from streams.roles import APPS
    from streams.worker import log_plainly, run_worker

    log_plainly()
    run_worker(APPS[role](task, settings))


@app.command(help=f"Training, drift, challengers; one a task. {ROLE_HELP}")
def learn(
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    freeze_at: Annotated[
        int | None, typer.Option(help="Event time (ms) at which to keep a frozen copy to compare with.")
    ] = None,
) -> None:
    """Run the learner; under torchrun, as one of its ranks."""
    import torch

    from learners.parallel import joined
    from streams.crew import check_ranks
    from streams.follow import follow
    from streams.learn import Learner, connect
    from streams.prepare import prepare
    from streams.reporting import report
    from streams.worker import log_plainly

    log_plainly()
    torch.set_num_threads(1)
    loaded = load_task(task)
    with joined() as ranks:
        check_ranks(loaded, ranks)
        if ranks.rank:
            for number in (signal.SIGTERM, signal.SIGINT):  # rank 0 says when to end
                signal.signal(number, signal.SIG_IGN)
            follow(loaded, connected(kafka), ranks)
            return
        settings = prepare(loaded, connected(kafka))
        learner = Learner(loaded, settings, *connect(loaded, settings), freeze_at_ms=freeze_at)
        report(learner.training.metrics, settings, loaded.name, "learn")
        signal.signal(signal.SIGTERM, lambda *_: learner.stop())
        signal.signal(signal.SIGINT, lambda *_: learner.stop())
        learner.run()


@app.command()
def simulate(
    name: Annotated[str, typer.Argument(help="transactions or clicks")],
    seed: Annotated[int, typer.Option(help="Equal seeds give equal streams.")] = 1,
    events: Annotated[int, typer.Option(help="How many events.")] = 100_000,
    drift: Annotated[
        list[str] | None,
        typer.Option(help="KIND@FRACTION or KIND@FRACTION:UNTIL; may be given several times."),
    ] = None,
    speed: Annotated[str, typer.Option(help="Event seconds a wall second, or max.")] = "max",
    rate: Annotated[float, typer.Option(help="Events a second instead of a speed; 0: by --speed.")] = 0.0,
    task: Annotated[
        str, typer.Option("--task", "-t", help="Task whose topics are fed; default: the same name.")
    ] = "",
    kafka: KafkaOption = "",
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps the position, to stop and go on.")
    ] = None,
) -> None:
    """Produce a simulated stream, with its late labels and scheduled drift, to Kafka."""
    from streams.progress import feed_with_progress
    from streams.simulate import parse_change
    from streams.simulate import simulate as make

    simulation = make(name, seed=seed, events=events, changes=[parse_change(text) for text in drift or []])
    feed_with_progress(
        simulation.items(), simulation.total, load_task(task or name), connected(kafka).kafka,
        speed=parse_speed(speed), rate=rate or None, resume=resume, source=simulation.identity, console=console,
    )  # fmt: skip


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines.")],
    task: TaskOption = "clicks",
    speed: Annotated[str, typer.Option(help="1, 60, … event seconds a wall second, or max.")] = "max",
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN where the file names a field otherwise.")
    ] = None,
    kafka: KafkaOption = "",
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps the position, to stop and go on.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report.html and summary.json of a run of its own.")
    ] = Path("."),
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Send the events only; labels come from elsewhere.")
    ] = False,
) -> None:
    """Stream a file in event-time order, each label when it would have become known.

    Feeds the `driftline up` that runs here or the Kafka given; with neither it starts everything itself, streams the
    file, and leaves a report.
    """
    from streams.replay_run import run_replay

    mapping = dict(pair(text) for text in columns or [])
    run_replay(
        file, load_task(task), settings_here(kafka), speed=parse_speed(speed), mapping=mapping, resume=resume,
        out=out, console=console, labels=not no_labels,
    )  # fmt: skip


@app.command()
def report(
    task: TaskOption = "clicks",
    out: Annotated[Path, typer.Option(help="Folder for report.html and summary.json.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON too.")] = False,
) -> None:
    """Make report.html from the archive (an embedded archive only while nothing runs on it)."""
    from infra.clickhouse import open_archive
    from streams.report import write_report

    loaded, settings = load_task(task), settings_here()
    history = open_archive(settings.archive)
    try:
        summary = write_report(
            history, loaded.name, loaded.metric, out / "report.html", title=f"Driftline: {loaded.name}", facts={},
            drift_ms=None,
        )  # fmt: skip
    finally:
        history.close()
    (out / "summary.json").write_text(json.dumps(summary, indent=2, default=str) + "\n")
    console.print(json.dumps(summary, default=str) if as_json else f"wrote {out / 'report.html'}")


@task_app.command("check")
def task_check(
    file: Annotated[str, typer.Argument(help="A task file, or a built-in name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was understood as JSON.")] = False,
) -> None:
    """Check a task file and say what Driftline understood."""
    task = load_task(file)
    population = task.tuning.population if task.tuning else 0
    needs = memory(task.schema, task.model, (task.challenger, *task.others), population)
    facts: dict[str, Any] = {
        "name": task.name,
        "key": task.event.key,
        "entities": {entity.name: entity.field for entity in task.entities},
        "numbers": list(task.numbers),
        "categories": list(task.categories),
        "blocks": {block.name: {"kind": block.kind, "length": block.length} for block in task.blocks},
        "label": {
            "field": task.label.field,
            "delay_ms": task.label.delay_ms,
            "window_ms": task.label.window_ms,
        },
        "schema": task.schema_hash,
        "memory": needs,
    }
    if as_json:
        console.print_json(json.dumps(facts))
        return
    console.print(f"[green]ok[/] {file}: task {task.name}")
    console.print(f"  reads        {', '.join(task.allowed)}")
    console.print(f"  entities     {', '.join(f'{e.name} ({e.field})' for e in task.entities)}")
    more = "".join(f", {block.kind} {block.name} ({block.length})" for block in task.blocks)
    console.print(f"  model sees   {len(task.numbers)} numbers, {len(task.categories)} categories{more}")
    console.print(f"  label        {task.label.field}, {task.label.delay_ms / 1000:g} s after the event")
    whole, serve, learn = (f"{math.ceil(size / 2**20):,} MiB" for size in needs.values())
    console.print(
        f"  memory       a model up to {whole}, all in a serve worker {serve}, all in the learner {learn}"
    )


@task_app.command("new")
def task_new(
    sample: Annotated[Path | None, typer.Argument(help="Parquet, CSV or JSON lines to propose from.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write here; default: print.")] = None,
) -> None:
    """Propose a task file from a sample of your data, or from a few questions."""
    from streams.task_new import propose_task

    text = propose_task(sample, _ask)
    if out is None:
        print(text, end="")
    elif out.exists():
        raise UserError(f"{out} is already there", "give another name with --out")
    else:
        out.write_text(text)
        console.print(f"wrote {out}; read it, then: driftline task check {out}")


def _ask(question: str, default: str) -> str:
    try:
        answer: str = typer.prompt(question, default=default)
        return answer
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise UserError(
            "the questions need answers, and there is no terminal here",
            "run it in a terminal, or give it a sample of your data: driftline task new FILE",
        ) from None


@features_app.command("apply")
def features_apply(task: TaskOption = "clicks") -> None:
    """Register a task's features with Feast (the roles do it too)."""
    loaded = load_task(task)
    _features(loaded).apply()
    console.print(f"registered {', '.join(loaded.views) or 'nothing'}")


@features_app.command("get")
def features_get(
    entity: Annotated[str, typer.Argument(help="An entity of the task, such as user.")],
    key: Annotated[str, typer.Argument(help="Its key as producers send it.")],
    task: TaskOption = "clicks",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Read an entity's newest features from Feast's online store."""
    from streams.privacy import Pseudonymiser

    loaded, settings = load_task(task), settings_here()
    if entity not in loaded.views:
        raise UserError(
            f"{loaded.name} has no features of {entity!r}", f"use one of {', '.join(loaded.views)}"
        )
    field = next(e.field for e in loaded.entities if e.name == entity)
    pseudonym = Pseudonymiser(load_secret(settings.secret)).column(field, [key])
    row = {name: values[0] for name, values in _features(loaded).read(entity, pseudonym).items()}
    if all(value is None for value in row.values()):
        raise UserError(
            f"{entity} {key!r} is not in the online store", "it comes with the entity's first event"
        )
    if as_json:
        console.print_json(json.dumps(row))
        return
    for name, value in row.items():
        console.print(f"  {name}  {'unknown' if value is None else f'{value:g}'}")


def _features(task: Task) -> Any:
    from featurestore.repository import FeatureWriter

    settings = settings_here()
    return FeatureWriter(settings.data, settings.online, task.name, task.views, settings.archive)


@app.command()
def tasks() -> None:
    """List the built-in tasks."""
    for name in built_in_tasks():
        console.print(name)


def parse_speed(text: str) -> float | None:
    """Event seconds a wall second; None for "max". Raises UserError."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise UserError(f"--speed is {text!r}", 'give a number above 0 (1 is as it happened), or "max"')
    return speed


def pair(text: str) -> tuple[str, str]:
    """The field and the column of "FIELD=COLUMN". Raises UserError."""
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise UserError(f"--map is {text!r}", "write FIELD=COLUMN, such as --map user_id=uid")
    return field, column


def wait_a_second() -> None:
    """A pause that Ctrl-C ends."""
    time.sleep(1.0)


if __name__ == "__main__":
    main()
