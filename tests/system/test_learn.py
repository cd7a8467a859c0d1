"""The learner on a real Kafka, killed in the middle: every example learned once in what survives, no version twice."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.blobs import Blobs
from infra.kafka import end_offsets, make_producer, read_all
from infra.settings import Settings
from learners import checkpoint
from learners.arena import Arena
from learners.registry import Registry
from learners.slot import Slot, encode_full
from learners.views import Payload
from streams.heads import Heads
from streams.parts import gathered
from streams.prepare import prepare
from streams.rows import Labelled, Rows
from streams.task import Task
from streams.topics import Topics
from streams.wire import encode_labelled
from tests.system import run_support as runs

BATCH, BATCHES = 64, 60


def labelled_batches(task: Task) -> Iterator[Labelled]:
    """Labelled rows as join sends them: what is positive follows the first number."""
    rng = np.random.default_rng(4)
    for number in count():
        ids = [f"e-{number}-{i}" for i in range(BATCH)]
        numbers = rng.normal(size=(BATCH, len(task.numbers))).astype(np.float32)
        times = np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.int64) * 1_000
        rows = Rows(
            ids,
            times,
            times,
            np.zeros(BATCH, np.int32),
            np.arange(BATCH, dtype=np.int64),
            np.zeros(BATCH, np.bool_),
            np.zeros((BATCH, len(task.entities)), np.int64),
            rng.integers(1, 99, (BATCH, len(task.categories))),
            np.zeros((BATCH, len(task.number_fields))),
            numbers,
            task.rows_hash,
        )
        label = (numbers[:, 0] + rng.normal(size=BATCH) > 0.5).astype(np.float32)
        served = np.full(BATCH, 0.3, np.float32)
        no = np.zeros(BATCH, np.bool_)
        yield Labelled(
            rows, served, ["L1.0"] * BATCH, label, times + 500, no, np.zeros(BATCH, np.float32), no
        )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return runs.own_task(tmp_path, "learned")


def updates(kafka: str, task: Task) -> list[tuple[dict[str, Any], Payload]]:
    return list(gathered(read_all(kafka, Topics.of(task).model_updates)))


def test_a_learner_that_is_killed_goes_on_from_its_checkpoint(
    broker: Any, task: Task, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    settings = prepare(task, Settings(kafka=broker.address, data=data, partitions=1))
    topics, batches = Topics.of(task), labelled_batches(task)
    command = ("learn", "--task", str(task.path), "--kafka", broker.address)
    with make_producer(broker.address) as producer:

        def send(n: int) -> None:
            for _ in range(n):
                producer.send(topics.labelled, encode_labelled(next(batches)), partition=0)
            producer.flush()

        def learned() -> int:
            found = checkpoint.load_newest(Blobs(settings.blobs), f"learner/{task.name}").checkpoint
            return found.meta["positions"]["0"][0] if found else 0

        send(BATCHES // 3)
        with runs.running(data, *command, DRIFTLINE_PARTITIONS="1") as first:
            runs.until(lambda: learned() > 0, "a first checkpoint")
            sent = len(updates(broker.address, task))
            send(BATCHES // 3)
            runs.until(lambda: len(updates(broker.address, task)) > sent, "a refresh after the checkpoint")
            first.process.kill()
        with runs.running(data, *command, DRIFTLINE_PARTITIONS="1") as second:
            send(BATCHES - 2 * (BATCHES // 3))
            end = end_offsets(broker.address, topics.labelled)[0]
            runs.until(lambda: learned() == end, "a checkpoint of everything")
            assert second.stop() == 0
            assert "Traceback" not in second.output

    everything = updates(broker.address, task)
    names = [(meta["kind"], meta["version"]) for meta, _ in everything]
    assert len(set(names)) == len(names)  # no version was used again for other weights
    slot = Slot(task.schema, task.model, task.seed)
    applied = [slot.apply(meta, payload) for meta, payload in everything]  # raises where one does not follow
    assert applied[-1]

    once = Arena(task.schema, task.model, task.challenger, task.drift, seed=task.seed)
    again = labelled_batches(task)
    for _ in range(BATCHES):
        once.observe(next(again).batch(), created_ms=0)
    newest = checkpoint.load_newest(Blobs(settings.blobs), f"learner/{task.name}").checkpoint
    assert newest is not None
    assert newest.meta["arena"]["counts"][0] == once.examples == BATCH * BATCHES
    head = Heads(Blobs(settings.blobs), task.name).get()
    assert head is not None
    assert head.meta["version"] == slot.version == everything[-1][0]["version"]
    probe = next(again).rows
    wanted = once.champion.score(probe.numbers, probe.categories)
    assert np.array_equal(slot.score(probe.numbers, probe.categories)[0], wanted)
    assert len(encode_full(once.champion, event_ms=0, created_ms=0)[1]) == len(head.payload)
    births = Registry(Blobs(settings.blobs), f"models/{task.name}/registry").lineages()
    assert [(birth.name, birth.parent, birth.seed) for birth in births] == [("L1", None, task.seed)]
