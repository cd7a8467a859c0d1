"""`driftline up`: all roles of a task until Ctrl-C, and what a producer must know to use them."""

import base64
import json
import signal
import threading
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from infra.settings import Settings
from streams.cluster import Cluster
from streams.task import Task
from streams.topics import Topics

POLL_S = 0.5
_BLACK = base64.b64encode(b"P5 1 1 255 \0").decode()  # an image of one pixel


def run_up(task: Task, settings: Settings, *, workers: int, port: int | None) -> None:
    """Start, say how to use it, and supervise until SIGINT or SIGTERM. Raises UserError."""
    console = Console(highlight=False, soft_wrap=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    console.print(f"Driftline runs task [bold]{task.name}[/] on {settings.data}")
    cluster = Cluster(task, settings, workers=workers, port=port, say=lambda text: console.print(f"  {text}"))
    with cluster:
        told = False
        while not stop.wait(POLL_S):
            cluster.poll()
            if not told and cluster.ready():
                told = True
                console.print(how_to_use(task, cluster.settings))
        console.print("stopping (everything read so far is committed)")
    console.print("stopped")


def how_to_use(task: Task, settings: Settings) -> str:
    """Copy-paste lines for a producer and a consumer; plain text without rich markup."""
    topics, event = Topics.of(task), json.dumps(sample_event(task))
    label = json.dumps({task.label.id: sample_event(task)[task.event.id], task.label.field: 1})
    key = str(sample_event(task)[task.event.key])
    kafka = settings.kafka
    return f"""
ready. Kafka is on {kafka}.
Send JSON events to {topics.events} and labels to {topics.labels}; predictions come on {topics.predictions}.

with kcat:
  echo '{key}|{event}' | kcat -P -b {kafka} -t {topics.events} -K '|'
  echo '{key}|{label}' | kcat -P -b {kafka} -t {topics.labels} -K '|'
  kcat -C -b {kafka} -t {topics.predictions} -X isolation.level=read_committed -o beginning

with kafka-python:
  from kafka import KafkaProducer
  producer = KafkaProducer(bootstrap_servers="{kafka}")
  producer.send("{topics.events}", key=b"{key}", value=b'{event}')
  producer.flush()

logs are in {settings.log_dir}; Ctrl-C stops.
""".replace("[", "\\[")


def sample_event(task: Task) -> dict[str, Any]:
    """A valid event of the task, as a producer would send it now."""
    event: dict[str, Any] = {task.event.id: "my-event-1", task.event.time: _now(task.event.time_format)}
    for field in task.event.fields:
        if field.name in event:
            continue
        number = max(field.min or 0.0, min(1.0, field.max if field.max is not None else 1.0))
        name = f"{field.name}-1"[: field.max_length]
        samples = {"number": number, "list": [name], "image": _BLACK}
        event[field.name] = samples.get(field.type, name)
    return event


def _now(time_format: str) -> Any:
    now = datetime.now(UTC)
    if time_format == "iso8601":
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if time_format == "epoch_ms":
        return round(now.timestamp() * 1000)
    if time_format == "epoch_s":
        return round(now.timestamp())
    return now.strftime(time_format)
