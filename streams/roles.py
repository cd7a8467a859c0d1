"""The Faust roles: each function puts one role's agents, background tasks and partition owners into an app."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from uuid import uuid4

import faust
from faust.types import TP

from infra.blobs import Blobs
from infra.clickhouse import create_tables, open_archive
from infra.errors import UserError
from infra.kafka import partitions as label_partitions
from infra.metrics import Metrics
from infra.settings import Settings, load_secret
from streams.partitions import EXIT_AGAIN, EXIT_USER, Partitions, end
from streams.places import Step
from streams.prepare import prepare
from streams.privacy import Pseudonymiser
from streams.reporting import report, worker_name
from streams.task import Task
from streams.topics import Topics
from streams.transaction import AtLeastOnce, Committer, ExactlyOnce
from streams.transport import BatchConsumer, Fetch, make_app

log = logging.getLogger(__name__)


def serve_app(task: Task, settings: Settings) -> faust.App:
    """Features, scores, predictions: as many of these workers as the events topic has partitions, at most."""
    import torch

    from featurestore.repository import FeatureWriter
    from streams.emit import Emitter
    from streams.live import LiveModel
    from streams.log_end import EndOfLog
    from streams.online import OnlineWriter
    from streams.serve import ServeContext, ServePass, ServeStep, warm_up

    torch.set_num_threads(1)
    settings = prepare(task, settings)
    topics = Topics.of(task)
    group = topics.group("serve")
    app = make_app(group, settings)
    blobs, executor, end_of_log = Blobs(settings.blobs), ThreadPoolExecutor(2), EndOfLog(settings.kafka)
    metrics, worker = Metrics(), worker_name(settings)
    report(metrics, settings, task.name, "serve")
    live = LiveModel(task, settings, worker, metrics)
    features = FeatureWriter(settings.data, settings.online, task.name, task.views, settings.archive)
    online = OnlineWriter(features, executor, metrics)
    pseudonymiser = Pseudonymiser(load_secret(settings.secret))
    emitter = Emitter(task, topics, settings.partitions, live)
    context = ServeContext(
        task, settings, topics, blobs, pseudonymiser, live, emitter, online, executor, metrics, end_of_log
    )
    at_hand = ServePass(context)

    warm_up(task, live)
    stages = [topics.stage(i) for i in range(len(task.entities))]
    group_of = {topic: topic for topic in stages}
    group_of |= {
        topics.feedback(e.name): stages[i]
        for i, e in enumerate(task.entities)
        if e.name in topics.feedback_entities
    }

    def make(stage: str, partition: int) -> Step:
        return ServeStep(context, at_hand, stages.index(stage), partition)

    serving = task.serving
    partitions = Partitions(
        make,
        _committer(task, settings, app, worker),
        group_of,
        finish=at_hand.finish,
        partitions=settings.partitions,
        pause_ms=serving.commit_every_ms,
        quiet_ms=serving.idle_ms,
    )
    _run(
        app,
        partitions,
        group_of,
        metrics,
        [live.follow, live.report, online.run],
        [online.flush, end_of_log.close],
    )
    return app


def join_app(task: Task, settings: Settings) -> faust.App:
    """Labels meet examples."""
    from streams.join import FIRST_QUIET_S, JoinContext, JoinStep, LabelStep
    from streams.log_end import EndOfLog

    settings = prepare(task, settings)
    topics = Topics.of(task)
    group = topics.group("join")
    app = make_app(group, settings)
    pseudonymiser = Pseudonymiser(load_secret(settings.secret))
    metrics = Metrics()
    report(metrics, settings, task.name, "join")
    blobs, end_of_log = Blobs(settings.blobs), EndOfLog(settings.kafka)
    labels = label_partitions(settings.kafka, topics.labels)
    context = JoinContext(
        task, settings, topics, blobs, pseudonymiser, ThreadPoolExecutor(1), metrics, labels, end_of_log
    )

    def make(topic: str, partition: int) -> Step:
        step = LabelStep if topic == topics.labels else JoinStep
        return step(context, partition)

    group_of = {topic: topic for topic in (topics.labels, topics.examples)}
    partitions = Partitions(
        make,
        _committer(task, settings, app, worker_name(settings)),
        group_of,
        pause_ms=task.serving.commit_every_ms,
        quiet_ms=round(1000 * FIRST_QUIET_S),
    )
    _run(app, partitions, group_of, metrics, at_end=[end_of_log.close])
    return app


def archive_app(task: Task, settings: Settings) -> faust.App:
    """Everything that left the stream is kept in ClickHouse. One worker for the embedded engine."""
    from streams.archive import ArchiveCommitter, ArchiveStep, ArchiveWriter, sources

    settings = prepare(task, settings)
    group = Topics.of(task).group("archive")
    app = make_app(group, settings)
    metrics = Metrics()
    report(metrics, settings, task.name, "archive")
    archive = open_archive(settings.archive)
    create_tables(archive)
    writer = ArchiveWriter(archive, ThreadPoolExecutor(1), metrics)

    def make(topic: str, partition: int) -> Step:
        return ArchiveStep(task, topic, partition, metrics)

    def committer() -> Committer:
        return ArchiveCommitter(settings.kafka, group, app.consumer, writer)

    group_of = {topic: topic for topic in sources(task)}
    _run(app, Partitions(make, committer, group_of), group_of, metrics, at_end=[writer.close])
    return app


APPS: Mapping[str, Callable[[Task, Settings], faust.App]] = {
    "serve": serve_app,
    "join": join_app,
    "archive": archive_app,
}


def _committer(task: Task, settings: Settings, app: faust.App, worker: str) -> Callable[[], Committer]:
    """What a worker commits with, as the task's guarantee wants it.

    Each life of a worker has a producer id of its own: who ends what a former life left open must not end the present
    one.
    """
    group, life = str(app.conf.id), uuid4().hex[:8]

    def make() -> Committer:
        if task.serving.guarantee == "at_least_once":
            return AtLeastOnce(settings.kafka, group, app.consumer)
        return ExactlyOnce(settings.kafka, group, f"{group}-{worker}-{life}")

    return make


def _run(
    app: faust.App,
    partitions: Partitions,
    topics: Iterable[str],
    metrics: Metrics,
    background: Iterable[Callable[[], Awaitable[None]]] = (),
    at_end: Iterable[Callable[[], Awaitable[None]]] = (),
) -> None:
    """One agent a topic, background tasks, the partitions' coming and going, and how far behind they are."""
    transport: Any = app.transport
    transport.gate = partitions.gate
    for topic in topics:
        source = app.topic(topic, key_serializer="raw", value_serializer="raw")
        app.agent(source, name=f"{app.conf.id}.{topic}")(_agent(partitions))
    for work in background:
        app.task(_guarded(work))
    metrics.probe("lag_records", lambda: partitions.behind(cast(BatchConsumer, app.consumer).ends()))

    @app.on_partitions_revoked.connect(weak=False)
    async def revoked(*_: Any, **__: Any) -> None:
        await partitions.revoked()

    @app.on_partitions_assigned.connect(weak=False)
    async def assigned(_: Any, tps: Iterable[TP], **__: Any) -> None:
        consumer: Any = app.consumer
        await partitions.assigned(tps, consumer.membership)

    @app.on_before_shutdown.connect(weak=False)
    async def ending(*_: Any, **__: Any) -> None:
        await partitions.close()
        for last in at_end:
            await last()


def _agent(partitions: Partitions) -> Callable[[Any], Awaitable[None]]:
    async def route(messages: Any) -> None:
        fetches: tuple[Fetch, ...]
        async for fetches in messages:
            for fetch in fetches:
                partitions.put(fetch)

    return route


def _guarded(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A background task whose failure ends the worker, so that the supervisor starts a sound one."""

    async def run() -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except UserError as error:
            log.critical("%s", error)
            end(EXIT_USER)
        except Exception:
            log.critical("a background task failed; the worker ends and starts again", exc_info=True)
        end(EXIT_AGAIN)

    return run
