"""A model of 40 MiB from the learner to a serve worker: refreshes and swaps in parts, and both killed in between."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.kafka import make_producer, read_all
from infra.settings import Settings
from learners.slot import Slot
from streams.kept import Kept
from streams.labelled import KafkaLog
from streams.parts import PART_BYTES, gathered
from streams.prepare import prepare
from streams.task import Task, load_task
from streams.topics import MAX_RECORD_BYTES, META, PART, Topics
from streams.verify import VERIFIED, compare
from streams.wire import encode_labelled
from tests import learner_log as logs
from tests.system import run_support as runs

ROWS, FIRST, RECORD, BATCH = 12_000, 8_000, 500, 250
MODEL = f'family = "mlp"\nhidden = [16]\nembedding = 256\nrows = 8192\nbatch_size = {BATCH}'
ALWAYS = '[drift]\npolicy = "always"\nmin_events = 500\nmax_events = 100000\ncooldown = 6000\nwindow = 400\n'


def large_task(folder: Path) -> Task:
    """The clicks with long embeddings, and a challenger that starts by itself and wins."""
    path = runs.own_task(folder, "large").path
    path.write_text(path.read_text().replace("batch_size = 64", MODEL) + ALWAYS)
    return load_task(str(path))


def served(kafka: str, task: Task) -> str:
    """The version in the newest report of a worker."""
    reports = [row for row in runs.values(kafka, Topics.of(task).workers) if not row["canary"]]
    return str(reports[-1]["version"]) if reports else ""


def sent(kafka: str, task: Task) -> list[tuple[dict[str, Any], bytes | bytearray]]:
    """All updates that are whole in their topic."""
    return list(gathered(read_all(kafka, Topics.of(task).model_updates)))


def test_a_large_model_is_served_whoever_is_killed_in_between(broker: Any, tmp_path: Path) -> None:
    data, task = tmp_path / "data", large_task(tmp_path)
    kafka, topics = broker.address, Topics.of(task)
    settings = prepare(task, Settings(kafka=kafka, data=data, partitions=1))
    command = ("learn", "--task", str(task.path), "--kafka", kafka)
    env = {"DRIFTLINE_PARTITIONS": "1", "DRIFTLINE_BLOBS": settings.blobs}
    rows = logs.labelled(task, ROWS, turn=1.0)
    rows.rows.categories[:] = np.random.default_rng(7).integers(1, 2**62, rows.rows.categories.shape)
    faulty = (sys.executable, str(Path(__file__).with_name("fault_learner.py")), "10", *command)
    with ExitStack() as stack:
        producer = stack.enter_context(make_producer(kafka))

        def send(begin: int, end: int) -> None:
            for start in range(begin, end, RECORD):
                part = rows.take(np.arange(start, start + RECORD))
                producer.send(topics.labelled, encode_labelled(part), partition=0)
            producer.flush()

        send(0, FIRST)
        worker = stack.enter_context(runs.serving(tmp_path / "worker", task, kafka, **env))
        runs.until(lambda: served(kafka, task) == "L1.0", "a worker")
        with runs.running_command(data, faulty, **env) as first:
            assert first.ended() == -signal.SIGKILL
        newest = read_all(kafka, topics.model_updates)[-1]
        assert dict(newest.headers).keys() == {PART}  # it died in the midst
        before = sent(kafka, task)
        assert served(kafka, task) in {meta["version"] for meta, _ in before}

        send(FIRST, ROWS)
        learner = stack.enter_context(runs.running(data, *command, **env))
        runs.await_consumed(kafka, task, "learn", topics.labelled)
        assert learner.stop() == 0
        version = sent(kafka, task)[-1][0]["version"]
        runs.until(lambda: served(kafka, task) == version, "a worker that serves it")
        worker.process.kill()
        again = stack.enter_context(runs.serving(tmp_path / "worker", task, kafka, **env))
        told = len(runs.values(kafka, topics.workers))
        runs.until(lambda: len(runs.values(kafka, topics.workers)) > told + 1, "reports of the next worker")
        assert served(kafka, task) == version
        assert "is refused" not in worker.output + again.output
        assert "is not what it was" not in learner.output

    updates = sent(kafka, task)
    assert updates[-1][0]["version"] == version
    large = [meta for meta, payload in updates if len(payload) > PART_BYTES]
    assert {meta["kind"] for meta in large} == {"refresh", "swap"}
    assert max(len(payload) for _, payload in updates) > MAX_RECORD_BYTES
    known = [(meta["version"], meta["sha256"]) for meta, _ in updates]
    assert known[: len(before)] == [(meta["version"], meta["sha256"]) for meta, _ in before]
    assert len({name for name, _ in known}) == len(known)  # no version was used again for other weights
    slot = Slot(task.schema, task.model, task.seed, "cpu")
    for meta, payload in updates:
        assert slot.apply(meta, payload)  # raises where one does not follow
    assert slot.version == version
    records = read_all(kafka, topics.model_updates)
    assert max(len(record.value or b"") for record in records) <= PART_BYTES
    assert sum(META in dict(record.headers) for record in records) == len(updates)

    torch.set_num_threads(1)
    source = KafkaLog(kafka, topics.labelled, 1)
    code, facts = compare(task, Kept.of(settings, task.name), source, version, kafka)
    source.close()
    assert code == VERIFIED, facts
