"""Serve workers that come, go and crash while events stream in: nothing lost, nothing twice, the same features."""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from infra.kafka import read_all
from infra.settings import Settings, load_secret
from streams import wire
from streams.feed import Item, feed
from streams.prepare import prepare
from streams.privacy import Pseudonymiser
from streams.simulate import simulate
from streams.stage import StagePartition
from streams.task import Task
from streams.topics import Topics
from tests.system import run_support as runs

PARTITIONS = 4


@dataclass
class Stream:
    """The clicks under a name of their own, prepared on the broker, and an endless source of its events."""

    task: Task
    settings: Settings
    items: Iterator[Item]

    def __post_init__(self) -> None:
        self.sent: set[str] = set()
        self._runs: list[runs.Run] = []

    @property
    def topics(self) -> Topics:
        return Topics.of(self.task)

    def send(self, count: int, rate: float | None = None) -> None:
        """Produce so many more events."""
        items = list(islice(self.items, count))
        self.sent |= {str(item.value["event_id"]) for item in items if isinstance(item.value, dict)}
        counts = feed(items, count, self.task, self.settings.kafka, rate=rate)
        assert counts.events == count

    def send_until_it_works(self, run: runs.Run) -> None:
        """Produce 500 events a second until a new worker has partitions, and a little longer."""
        while "ready at offset" not in run.output:
            run.check_alive()
            self.send(100, rate=500)
        self.send(500, rate=500)

    def worker(self, stack: ExitStack, name: str) -> runs.Run:
        """One more serve worker; all share the blobs and the secret, as they would in a cluster."""
        folder = self.settings.data.parent / name
        folder.mkdir()
        shared = {
            k: v for k, v in self.settings.to_env().items() if k in ("DRIFTLINE_BLOBS", "DRIFTLINE_SECRET")
        }
        command = ("serve", "--task", str(self.task.path), "--kafka", self.settings.kafka)
        run = stack.enter_context(runs.running(folder / "data", *command, **shared))
        self._runs.append(run)
        return run

    def tails(self) -> Iterator[tuple[str, str]]:
        for run in self._runs:
            yield from run.tails()


def make_stream(broker: Any, folder: Path, name: str, serving: str) -> Stream:
    task = runs.own_task(folder, name, serving=serving)
    settings = prepare(task, Settings(kafka=broker.address, data=folder / "shared", partitions=PARTITIONS))
    load_secret(settings.secret)
    clicks = simulate("clicks", seed=5, events=100_000)
    return Stream(task, settings, (item for item in clicks.items() if item.kind == "event"))


def check_one_prediction_each(stream: Stream) -> None:
    rows = runs.await_predictions(stream.settings.kafka, stream.task, stream.sent)
    seen = Counter(row["event_id"] for row in rows)
    assert set(seen) == stream.sent
    assert [event_id for event_id, count in seen.items() if count > 1] == []
    assert read_all(stream.settings.kafka, stream.topics.dead_letters) == []


def folded(stream: Stream, index: int) -> dict[str, wire.Rows]:
    """The rows, one each by event id, that one undisturbed pass over a stage's log makes."""
    secret, topic = load_secret(stream.settings.secret), stream.topics.stage(index)
    partitions = {p: StagePartition(stream.task, index, Pseudonymiser(secret)) for p in range(PARTITIONS)}
    records: dict[int, list[Any]] = {p: [] for p in partitions}
    for record in read_all(stream.settings.kafka, topic):
        records[record.partition].append(record)
    return by_id([stage.fold(records[p]).rows for p, stage in partitions.items()])


def by_id(parts: list[wire.Rows]) -> dict[str, wire.Rows]:
    rows = wire.Rows.concat(parts)
    assert len(set(rows.ids)) == len(rows)
    return {event_id: rows.take(np.array([i])) for i, event_id in enumerate(rows.ids)}


def check_equal(found: dict[str, wire.Rows], wanted: dict[str, wire.Rows]) -> None:
    assert set(found) == set(wanted)
    for event_id in sorted(found):
        assert wire.encode_rows(found[event_id]) == wire.encode_rows(wanted[event_id]), event_id


def test_workers_come_go_and_crash_and_every_feature_is_as_if_nothing_had_happened(
    broker: Any, tmp_path: Path
) -> None:
    stream = make_stream(broker, tmp_path, "shared", 'snapshot_every = "1s"')
    with ExitStack() as stack:
        first = stream.worker(stack, "one")
        runs.await_serving(first, stream.task, broker.address)
        stream.send(500)
        second = stream.worker(stack, "two")
        stream.send_until_it_works(second)
        assert first.stop(signal.SIGTERM) == 0
        stream.send(500)
        third = stream.worker(stack, "three")
        stream.send_until_it_works(third)
        second.process.kill()
        stream.send(500)
        check_one_prediction_each(stream)
        assert third.stop(signal.SIGTERM) == 0
    examples = [
        wire.decode_examples(record.value or b"")[0]
        for record in read_all(broker.address, stream.topics.examples)
    ]
    moved = by_id(
        [wire.decode_rows(r.value or b"") for r in read_all(broker.address, stream.topics.stage(1))]
    )
    check_equal(moved, folded(stream, 0))
    check_equal(by_id(examples), folded(stream, 1))


def test_at_least_once_works_from_end_to_end(broker: Any, tmp_path: Path) -> None:
    stream = make_stream(broker, tmp_path, "least", 'guarantee = "at_least_once"')
    with ExitStack() as stack:
        worker = stream.worker(stack, "one")
        runs.await_serving(worker, stream.task, broker.address)
        stream.send(500)
        check_one_prediction_each(stream)
        assert worker.stop(signal.SIGTERM) == 0
    assert stream.task.serving.guarantee == "at_least_once"
