"""`driftline models promote` and `rollback`: a person asks, the learner does it or says why not."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from infra.clock import now_ms
from infra.errors import UserError
from infra.settings import Settings
from streams.look import JsonOption, KafkaOption, TaskOption, models
from streams.running import connected
from streams.task import Task, load_task

ANSWER_S = 30.0  # a learner that works off a backlog looks up between two batches
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit.")]

_console = Console(highlight=False, soft_wrap=True)


@models.command("rollback")
def rollback(
    task: TaskOption = "clicks",
    to: Annotated[
        str, typer.Option(help="A lineage (L1) or a stored version (L1.41); default: what was live before.")
    ] = "",
    reason: ReasonOption = "",
    kafka: KafkaOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put a former model back. What goes is quarantined: nothing starts from it again."""
    _say(ask(load_task(task), connected(kafka), "rollback", to, reason), as_json=as_json)


@models.command("promote")
def promote(
    lineage: Annotated[str, typer.Argument(help="A challenger on trial, such as L2.")],
    task: TaskOption = "clicks",
    reason: ReasonOption = "",
    kafka: KafkaOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a challenger on trial the champion, whatever its test says so far."""
    _say(ask(load_task(task), connected(kafka), "promote", lineage, reason), as_json=as_json)


def ask(
    task: Task,
    settings: Settings,
    action: Literal["promote", "rollback"],
    target: str,
    reason: str,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Send a command and wait for the decision on the audit topic. UserError if it is declined or not answered."""
    from kafka import TopicPartition
    from msgspec import json as msgjson

    from infra.blobs import Blobs
    from infra.kafka import end_offsets, make_consumer, make_producer, translated
    from learners.registry import Registry
    from streams.control import Command
    from streams.topics import Topics

    topics = Topics.of(task)
    live = Registry(Blobs(settings.blobs), f"models/{task.name}/registry").live()
    if live is None:
        raise UserError(f"{task.name} has no model yet", "start its learner first: driftline up, or learn")
    command = Command(uuid.uuid4().hex, action, target, live.lineage, reason, now_ms())
    with translated(settings.kafka):
        place, consumer = TopicPartition(topics.audit, 0), make_consumer(settings.kafka)
        consumer.assign([place])
        consumer.seek(place, end_offsets(settings.kafka, topics.audit)[0])
        try:
            with make_producer(settings.kafka) as producer:
                producer.send(topics.commands, value=msgjson.encode(command), partition=0).get(timeout=30)
            decision = _answer(consumer, command.command_id, clock)
        finally:
            consumer.close()
    if decision is None:
        raise UserError(
            f"the learner of {task.name} has not answered within {ANSWER_S:g} s",
            "start it; it does the command then. Look with: driftline drift history",
        )
    if decision["action"] == "decline":
        raise UserError(str(decision["reason"]), "see driftline models list, and driftline drift history")
    return decision


def _answer(consumer: Any, command_id: str, clock: Callable[[], float]) -> dict[str, Any] | None:
    """The decision that a command led to; None after `ANSWER_S`."""
    deadline = clock() + ANSWER_S
    while clock() < deadline:
        for records in consumer.poll(timeout_ms=100).values():
            for record in records:
                decision: dict[str, Any] = json.loads(record.value or b"{}")
                if decision.get("evidence", {}).get("command_id") == command_id:
                    return decision
    return None


def _say(decision: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(decision))
    else:
        _console.print(f"{decision['action']}: {decision['reason']}", markup=False)
