"""`driftline models`, `drift` and `predictions`: what happened, read from the registry and from Kafka."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from infra.errors import UserError
from infra.settings import Settings
from streams.running import connected, settings_here
from streams.task import Task, load_task

models = typer.Typer(no_args_is_help=True, help="Which models there were, and which one is live.")
drift = typer.Typer(no_args_is_help=True, help="Drift alarms, and what was decided after them.")
predictions = typer.Typer(no_args_is_help=True, help="The predictions that are made.")

TaskOption = Annotated[str, typer.Option("--task", "-t", help="A built-in task or the path of a task file.")]
KafkaOption = Annotated[
    str, typer.Option("--kafka", help="host:port; default: of the `driftline up` that runs here.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Row = dict[str, Any]

_console = Console(highlight=False, soft_wrap=True)


def lineages(task: Task, settings: Settings | None = None) -> list[Row]:
    """Every lineage of the task with when and why it was born, live or quarantined, and its settings; oldest first."""
    from infra.blobs import Blobs
    from learners.registry import Registry

    registry = Registry(Blobs((settings or settings_here()).blobs), f"models/{task.name}/registry")
    lives, barred = registry.history(), registry.quarantined()
    rows: list[Row] = []
    for birth in registry.lineages():
        since, out = [live for live in lives if live.lineage == birth.name], barred.get(birth.name)
        rows.append(
            {
                "lineage": birth.name,
                "live": bool(lives) and lives[-1].lineage == birth.name,
                "parent": birth.parent,
                "born_at": birth.created_ms,
                "event_time": birth.event_ms or None,
                "why": birth.why,
                "live_since": [live.since_ms for live in since],
                "live_because": [live.reason for live in since],
                "quarantined_at": out and out.created_ms,
                "quarantined_because": out and out.reason,
                "quarantined_evidence": out and dict(out.evidence),
                "seed": birth.seed,
                "schema": birth.schema,
                "config": dict(birth.config),
            }
        )
    return rows


@models.command("list")
def models_list(task: TaskOption = "clicks", as_json: JsonOption = False) -> None:
    """List the lineages: born when and why, which one is live, and why one is quarantined."""
    rows = lineages(load_task(task))
    if as_json:
        _print_lines(rows)
        return
    if not rows:
        raise UserError(
            f"there are no models in {settings_here().blobs}",
            "they come with the first run of `driftline up`",
        )
    for row in rows:
        config = row["config"]
        model = f"{config['family']}, {config['optimiser']} {config['learning_rate']:g}"
        mark, parent = "live" if row["live"] else "", f"from {row['parent']}" if row["parent"] else "new"
        born = clock(row["born_at"])
        _console.print(
            f"{mark:<4}  {row['lineage']:<4}  {born}  {parent:<11}  {model}: {row['why']}", markup=False
        )
        if row["quarantined_because"]:
            _console.print(f"{'':<12}quarantined: {row['quarantined_because']}", markup=False)


@models.command("show")
def models_show(
    lineage: Annotated[str, typer.Argument(help="Such as L2.")],
    task: TaskOption = "clicks",
    as_json: JsonOption = False,
) -> None:
    """Show one lineage: its origin, its settings, when it was live or quarantined and why."""
    found = {row["lineage"]: row for row in lineages(load_task(task))}
    if lineage not in found:
        known = ", ".join(found) or "none yet"
        raise UserError(f"there is no lineage {lineage!r}", f"lineages are {known}")
    row = found[lineage]
    if as_json:
        _print_lines([row])
        return
    _console.print(
        f"[bold]{lineage}[/] from {row['parent'] or 'nothing'}, born {clock(row['born_at'])}, seed {row['seed']}"
    )
    _console.print(f"  because: {row['why']}", markup=False)
    for since, reason in zip(row["live_since"], row["live_because"], strict=True):
        _console.print(f"  live since {clock(since)}: {reason}", markup=False)
    if row["quarantined_because"]:
        _console.print(
            f"  quarantined since {clock(row['quarantined_at'])}: {row['quarantined_because']}", markup=False
        )
    for name, value in row["config"].items():
        _console.print(f"  {name}  {value}", markup=False)


def _history(task: Task, settings: Settings) -> list[Row]:
    """Every alarm and every decision that Kafka still has, in the order of event time."""
    from infra.kafka import read_all
    from streams.topics import Topics

    topics = Topics.of(task)
    rows = [
        json.loads(record.value or b"{}")
        for topic in (topics.drift_alerts, topics.audit)
        for record in read_all(settings.kafka, topic)
    ]
    rows.sort(key=lambda row: (row["event_time"], "alert_id" not in row, row["created_at"]))
    return rows


@drift.command("history")
def drift_history(task: TaskOption = "clicks", kafka: KafkaOption = "", as_json: JsonOption = False) -> None:
    """Tell every alarm and every decision that Kafka still has, in the order of event time."""
    rows = _history(load_task(task), connected(kafka))
    if as_json:
        _print_lines(rows)
        return
    for row in rows:
        kind, text = ("alarm", row["message"]) if "alert_id" in row else (row["action"], row["reason"])
        _console.print(f"{clock(row['event_time'])}  {kind:<9}  {text}", markup=False)
    if not rows:
        _console.print("no alarm and no decision so far")


@drift.command("show")
def drift_show(
    alert_id: Annotated[str, typer.Argument(help="Such as psi-41250; `drift history --json` has them.")],
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show an alarm: what moved and how much, since when, what was decided after it, and the evidence."""
    from infra.blobs import Blobs
    from streams.alerts import evidence_of

    loaded, settings = load_task(task), connected(kafka)
    rows = _history(loaded, settings)
    told = [row for row in rows if row.get("alert_id") == alert_id]
    if not told:
        known = ", ".join(row["alert_id"] for row in rows if "alert_id" in row) or "none so far"
        raise UserError(f"there is no alarm {alert_id!r}", f"alarms are {known}")
    came = [row for row in rows if row.get("evidence", {}) and _followed(row, alert_id)]
    store = Blobs(settings.blobs)
    for row in told:
        row["evidence_file"] = store.uri(row["evidence"]) if row.get("evidence") else None
        row["evidence"] = evidence_of(store, row["evidence"]) if row.get("evidence") else None
    if as_json:
        _print_lines([row | {"decisions": came} for row in told])
        return
    for row in told:
        _say_alarm(row)
    for row in came:
        _console.print(f"  {row['action']:<9}  {row['reason']}", markup=False)


def _followed(row: Row, alert_id: str) -> bool:
    return "action" in row and row["evidence"].get("alert_id") == alert_id


def _say_alarm(row: Row) -> None:
    _console.print(f"{clock(row['event_time'])}  {row['message']}", markup=False)
    noticed = f"{row['detector']}: {row['strength']:.4g}, raised above {row['threshold']:.4g}"
    _console.print(f"  {noticed}; severity {row['severity']:.2f}", markup=False)
    since = f"event {row['since_event_id']} at {clock(row['since_time'])}"
    _console.print(f"  since {since}, while {row['version']} was live", markup=False)
    for each in row["features"]:
        _console.print(f"  {each['severity']:.2f}  {each['name']} is {each['change']}", markup=False)
    if row["evidence_file"]:
        gone = "" if row["evidence"] is not None else " (not there any more)"
        _console.print(f"  evidence  {row['evidence_file']}{gone}", markup=False)


@predictions.command("tail")
def predictions_tail(
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    last: Annotated[int, typer.Option("--last", "-n", help="How many of the newest to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
) -> None:
    """Print the newest predictions, one JSON object a line as they are in Kafka."""
    from streams.topics import Topics

    loaded, settings = load_task(task), connected(kafka)
    for value in newest(settings.kafka, Topics.of(loaded).predictions, last, follow=follow):
        print(value.decode(), flush=follow)


def newest(kafka: str, topic: str, last: int, *, follow: bool) -> Iterator[bytes]:
    """The newest `last` committed values of a topic by Kafka's time; then, to follow, every new one."""
    from kafka import TopicPartition

    from infra.kafka import end_offsets, make_consumer, polls, translated

    with translated(kafka):
        ends = end_offsets(kafka, topic)
        consumer = make_consumer(kafka)
        try:
            places = {p: TopicPartition(topic, p) for p in ends}
            consumer.assign(list(places.values()))
            oldest = consumer.beginning_offsets(list(places.values()))
            for p, place in places.items():
                # Transaction markers take offsets too: some more than asked for are read.
                consumer.seek(place, max(oldest[place], ends[p] - 2 * last - 2))
            found: list[Any] = []
            for polled in polls(consumer, {place: ends[p] for p, place in places.items()}):
                for records in polled.values():
                    found += records
            found.sort(key=lambda record: (record.timestamp, record.partition, record.offset))
            yield from (record.value for record in found[max(0, len(found) - last) :])
            while follow:
                for records in consumer.poll(timeout_ms=200).values():
                    yield from (record.value for record in records)
        finally:
            consumer.close()


def _print_lines(rows: list[Row]) -> None:
    for row in rows:
        print(json.dumps(row))


def clock(ms: int) -> str:
    """A time for people, in UTC."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
