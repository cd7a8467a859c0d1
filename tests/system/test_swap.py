"""Swaps on a real Kafka with a real learner and serve worker: by hand, refused, and found again after a kill."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from infra.blobs import Blobs
from infra.kafka import make_producer
from infra.settings import Settings
from learners.registry import Registry
from learners.slot import encode_full
from learners.trainer import Trainer
from streams.heads import Heads
from streams.prepare import prepare
from streams.task import Task, load_task
from streams.topics import META, Topics
from streams.wire import encode_labelled
from tests import learner_log as logs
from tests.system import run_support as runs
from tests.system.test_learn import labelled_batches

KEY = b"a key that signs models: 32 bytes"


def serves(kafka: str, task: Task, lineage: str) -> bool:
    """Whether the newest report of a worker says that it serves the lineage."""
    reports = runs.values(kafka, Topics.of(task).workers)
    return bool(reports) and reports[-1]["version"].startswith(f"{lineage}.")


def audit(kafka: str, task: Task, action: str) -> list[dict[str, Any]]:
    return [row for row in runs.values(kafka, Topics.of(task).audit) if row["action"] == action]


def test_a_model_is_rolled_back_by_hand_and_everyone_comes_back_with_it(broker: Any, tmp_path: Path) -> None:
    data, task = tmp_path / "data", runs.own_task(tmp_path, "swapped")
    key = tmp_path / "model.key"
    key.write_bytes(KEY)
    settings = prepare(task, Settings(kafka=broker.address, data=data, partitions=1))
    topics, batches = Topics.of(task), labelled_batches(task)
    where = ("--task", str(task.path), "--kafka", broker.address)
    env = {"DRIFTLINE_PARTITIONS": "1", "DRIFTLINE_MODEL_KEY": str(key), "DRIFTLINE_BLOBS": settings.blobs}
    registry = Registry(Blobs(settings.blobs), f"models/{task.name}/registry")
    with ExitStack() as stack:
        producer = stack.enter_context(make_producer(broker.address))
        learner = stack.enter_context(runs.running(data, "learn", *where, **env))
        runs.until(lambda: Heads(Blobs(settings.blobs), task.name).kept(), "a first model")
        for _ in range(20):
            producer.send(topics.labelled, encode_labelled(next(batches)), partition=0)
        producer.flush()
        worker = stack.enter_context(runs.serving(tmp_path / "worker", task, broker.address, **env))
        runs.until(lambda: serves(broker.address, task, "L1"), "a worker that serves L1")

        said = runs.driftline(data, "models", "promote", "L7", *where)
        assert said.returncode == 1
        assert "L7 is not on trial; nobody is" in said.stderr
        [first] = Heads(Blobs(settings.blobs), task.name).kept()
        said = runs.driftline(data, "models", "rollback", *where, "--to", first, "--reason", "a drill")
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith("rollback: L1 goes, L2 is back: a drill")
        runs.until(lambda: serves(broker.address, task, "L2"), "a worker that serves L2")
        assert registry.quarantined()["L1"].evidence["by_hand"] == "a drill"
        assert [birth.parent for birth in registry.lineages()] == [None, first]
        said = runs.driftline(data, "models", "rollback", *where, "--to", "L1")
        assert said.returncode == 1
        assert "L1 is quarantined" in said.stderr

        said = runs.driftline(data, "models", "diff", "L1", "L2", *where, "--json")
        assert said.returncode == 0, said.stderr
        shown = json.loads(said.stdout)
        assert shown["facts"]["parent"] == ["new", first]
        assert shown["config"] == {}
        assert set(shown["importance"]) == {*task.numbers, *task.categories}

        other = Trainer(task.schema, task.model, 1, "L9", "cpu")
        meta, payload = encode_full(other, event_ms=0, created_ms=0, key=b"of somebody else, 32 bytes long..")
        producer.send(topics.model_updates, payload, headers=[(META, json.dumps(meta).encode())], partition=0)
        producer.flush()
        [refused] = runs.until(lambda: audit(broker.address, task, "refuse"), "a refusal")
        assert refused["evidence"]["step"] == "signature"
        assert serves(broker.address, task, "L2")

        worker.process.kill()
        learner.process.kill()
    with (
        runs.running(data, "learn", *where, **env),
        runs.serving(tmp_path / "worker", task, broker.address, **env),
    ):
        before = len(runs.values(broker.address, topics.workers))
        runs.until(lambda: len(runs.values(broker.address, topics.workers)) > before + 2, "new reports")
        assert serves(broker.address, task, "L2")
    live = registry.live()
    assert live is not None
    told = {
        row["decision_id"] for row in audit(broker.address, task, "rollback")
    }  # again, if repeated after the kill
    assert (live.lineage, len(told)) == ("L2", 1)
    assert len(registry.history()) == 2


def test_a_recommended_challenger_is_promoted_by_a_person(broker: Any, tmp_path: Path) -> None:
    task = logs.small_task("approved", 'calendar = true\nsegments = ["user_feature_0"]')
    path = tmp_path / "approved.toml"
    path.write_text(task.text.replace("[drift]", '[drift]\npolicy = "manual"').replace("= 2000", "= 100000"))
    task = load_task(str(path))
    settings = prepare(task, Settings(kafka=broker.address, data=tmp_path, partitions=1))
    where = ("--task", str(path), "--kafka", broker.address)
    env = {"DRIFTLINE_PARTITIONS": "1", "DRIFTLINE_BLOBS": settings.blobs}
    with ExitStack() as stack:
        producer = stack.enter_context(make_producer(broker.address))
        stack.enter_context(runs.running(tmp_path, "learn", *where, **env))
        stack.enter_context(runs.serving(tmp_path / "worker", task, broker.address, **env))
        rows = logs.labelled(task, 5_000)
        for start in range(0, len(rows), 64):
            part = rows.take(np.arange(start, min(start + 64, len(rows))))
            producer.send(Topics.of(task).labelled, encode_labelled(part), partition=0)
        producer.flush()
        [advised, *_] = runs.until(lambda: audit(broker.address, task, "recommend"), "a recommendation")
        assert not audit(broker.address, task, "promote")
        said = runs.driftline(tmp_path, "models", "promote", advised["lineage"], *where, "--reason", "seen")
        assert said.returncode == 0, said.stderr
        runs.until(lambda: serves(broker.address, task, advised["lineage"]), "a worker that serves it")
        [promoted] = audit(broker.address, task, "promote")
        assert promoted["evidence"]["by_hand"] == "seen"
