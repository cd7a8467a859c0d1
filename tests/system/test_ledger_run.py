"""A real learner on a real Kafka, killed at random instants: the same weights; then verify and lineage."""

import json
import random
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infra.clock import now_ms
from infra.kafka import Record, make_producer, read_all
from infra.settings import Settings
from learners import checkpoint
from learners.entries import Run, Steps, Version
from streams.kept import Kept, recipe_of
from streams.outlet import ListOutlet
from streams.prepare import prepare
from streams.rebuild import ledger_of
from streams.topics import Topics
from streams.wire import decode_labelled, partition_of_id
from tests import learner_log as logs
from tests.system import run_support as runs

ROWS, KILLS = 12_000, 3


def test_a_learner_killed_at_random_instants_is_the_undisturbed_one(broker: Any, tmp_path: Path) -> None:
    data, chance = tmp_path / "data", random.Random(3)
    task = runs.own_task(tmp_path, "ledgered")
    settings = prepare(task, Settings(kafka=broker.address, data=data, partitions=logs.PARTITIONS))
    topics, rows = Topics.of(task), logs.labelled(task, ROWS)
    event_id = rows.rows.ids[77]
    began = now_ms()
    with make_producer(broker.address) as producer:
        for partition, found in logs.records(task, rows, by_id=True).items():
            for record in found:
                at_ms = began + record.timestamp  # Kafka deletes at once what is older than its retention
                producer.send(topics.labelled, record.value, partition=partition, timestamp_ms=at_ms)
        producer.flush()
    kept = Kept.of(settings, task.name)
    command = ("learn", "--task", str(task.path), "--kafka", broker.address)

    def learned() -> bool:
        found = checkpoint.load_newest(kept.store, kept.checkpoints).checkpoint
        return found is not None and found.meta["arena"]["counts"][0] == ROWS

    def grown(before: int) -> bool:
        return kept.ledger_path.stat().st_size != before or learned()  # all of it, on a fast machine

    for _ in range(KILLS):
        with runs.running(data, *command) as run:
            runs.until(kept.ledger_path.exists, "a ledger")
            before = kept.ledger_path.stat().st_size
            runs.until(partial(grown, before), "a line in the ledger")
            time.sleep(chance.random())  # the instant is what the test is about
            run.process.kill()
    with runs.running(data, *command) as run:
        runs.until(learned, "a checkpoint of everything")
        assert run.stop() == 0
        assert "Traceback" not in run.output

    log: dict[int, list[Record]] = defaultdict(list)
    for record in read_all(broker.address, topics.labelled):
        log[record.partition].append(record)
    torch.set_num_threads(1)
    undisturbed = logs.learner(task, tmp_path / "undisturbed", log, ListOutlet())
    undisturbed.run()
    assert steps(kept) == steps(undisturbed._kept)
    newest = checkpoint.load_newest(kept.store, kept.checkpoints).checkpoint
    assert newest is not None
    arena = recipe_of(task).arena()
    arena.load(newest.files, newest.meta["arena"])
    assert logs.digest(arena) == logs.digest(undisturbed.training.arena)

    versions = [line.entry for line in ledger_of(kept)[0] if isinstance(line.entry, Version)]
    where = ("--task", str(task.path), "--kafka", broker.address)
    done = runs.driftline(data, "models", "verify", versions[-1].version, *where, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["rebuilt"] == versions[-1].sha256
    assert runs.driftline(data, "models", "verify", "L9.9", *where).returncode == 2

    check_lineage(broker.address, data, where, topics, event_id, versions)


def steps(kept: Kept) -> list[tuple[Run, ...]]:
    """The rows of each step that was learned."""
    entries = [line.entry for line in ledger_of(kept)[0]]
    return [runs for entry in entries if isinstance(entry, Steps) for runs in entry.runs]


def check_lineage(
    kafka: str, data: Path, where: tuple[str, ...], topics: Topics, event_id: str, versions: list[Version]
) -> None:
    """The event is traced by what the topics have: an archive does not run here."""
    prediction = {
        "event_id": event_id, "score": 0.25, "version": versions[-1].version, "event_time": 77_000, "late": False,
        "received_at": 1, "processed_at": 2, "source": {"partition": 1, "offset": 9}, "task": topics.task,
    }  # fmt: skip
    with make_producer(kafka) as producer:
        producer.send(topics.predictions, json.dumps(prediction).encode(), key=event_id.encode())
        producer.flush()
    done = runs.driftline(data, "lineage", event_id, *where, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["prediction"]["version"] == facts["version"]["version"] == versions[-1].version
    assert facts["learned"]["examples"] == ROWS
    [row] = facts["trained"]
    [record] = [
        record for record in read_all(kafka, topics.labelled)
        if (record.partition, record.offset) == (row["partition"], row["offset"])
    ]  # fmt: skip
    assert row["partition"] == partition_of_id(event_id, logs.PARTITIONS)
    assert decode_labelled(record.value).rows.ids[row["row"]] == event_id
    first = next(entry for entry in versions if entry.version == row["first_version"])
    assert 1 <= row["step"] <= first.step
    said = runs.driftline(data, "lineage", event_id, *where).stdout
    assert f"scored 0.25 by {versions[-1].version}" in said
    assert f"learned in step {row['step']:,}" in said
    unknown = runs.driftline(data, "lineage", "nobody", *where)
    assert unknown.returncode == 1
    assert "knows no event 'nobody'" in unknown.stderr
