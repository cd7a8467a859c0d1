"""A learner of two ranks under torchrun on a real Kafka: one is killed, all go on; then one rank alone goes on."""

import os
import random
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from infra.clock import now_ms
from infra.kafka import Record, make_producer, read_all
from infra.settings import Settings
from learners import checkpoint
from streams.kept import Kept, recipe_of
from streams.outlet import ListOutlet
from streams.prepare import prepare
from streams.task import load_task
from streams.topics import Topics
from tests import learner_log as logs
from tests.system import run_support as runs
from tests.system.test_ledger_run import steps

ROWS = 12_000
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--max-restarts",
    "5",
)


def rank_pids(data: Path) -> dict[int, int]:
    """Process ids of the ranks that live, by rank."""
    found = {}
    for pid in runs.processes(data):
        with suppress(psutil.Error):
            if rank := psutil.Process(pid).environ().get("RANK"):
                found[int(rank)] = pid
    return found


def test_ranks_go_on_from_the_ledger_however_many_they_are(broker: Any, tmp_path: Path) -> None:
    data, chance = tmp_path / "data", random.Random(3)
    path = runs.own_task(tmp_path, "ranked").path
    path.write_text(path.read_text().replace("batch_size = 64", "batch_size = 64\nshards = 2"))
    task = load_task(str(path))
    settings = prepare(task, Settings(kafka=broker.address, data=data, partitions=logs.PARTITIONS))
    topics, began = Topics.of(task), now_ms()
    with make_producer(broker.address) as producer:
        for partition, found in logs.records(task, logs.labelled(task, ROWS), by_id=True).items():
            for record in found:
                at_ms = began + record.timestamp
                producer.send(topics.labelled, record.value, partition=partition, timestamp_ms=at_ms)
        producer.flush()
    kept = Kept.of(settings, task.name)
    command = ("learn", "--task", str(path), "--kafka", broker.address)

    def learned() -> bool:
        found = checkpoint.load_newest(kept.store, kept.checkpoints).checkpoint
        return found is not None and found.meta["arena"]["counts"][0] == ROWS

    def grown(before: int) -> bool:
        return kept.ledger_path.stat().st_size != before or learned()  # all of it, on a fast machine

    with runs.running_command(data, [*TORCHRUN, "-m", "streams.cli", *command]) as run:
        runs.until(kept.ledger_path.exists, "a ledger")
        for rank in (1, 0):
            runs.until(partial(grown, kept.ledger_path.stat().st_size), "a line in the ledger")
            pids = rank_pids(data)
            assert sorted(pids) == [0, 1]
            time.sleep(chance.random() / 4)  # the instant is what the test is about
            os.kill(pids[rank], signal.SIGKILL)
            again = partial(lambda old: sorted(new := rank_pids(data)) == [0, 1] and new[0] != old, pids[0])
            runs.until(again, "ranks that were started again")
        run.stop(signal.SIGTERM)
        said = run.output
    assert "another rank of this learner is gone" in said
    assert "Traceback" not in "".join(line for line in said.splitlines() if "streams" in line)
    with runs.running(data, *command) as alone:
        runs.until(learned, "a checkpoint of everything")
        assert alone.stop() == 0
        assert "is not what it was when it was published" not in alone.output

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
