"""A clock that is set back changes stamps, and stops nothing that waits."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from infra.blobs import Blobs
from infra.clock import now_ms, ticks_ms
from infra.metrics import Metrics
from infra.settings import Settings
from learners.cuts import Step
from learners.slot import encode_full, encode_refresh
from learners.trainer import Trainer
from streams.control import Command, Control
from streams.heads import Head, Heads
from streams.labelled import PATIENCE_MS, LabelledReader
from streams.learn import Learner
from streams.live import LiveModel
from streams.outlet import ListOutlet
from streams.snapshots import Snapshots, SnapshotWriter
from streams.topics import META
from streams.transaction import Outputs
from tests import learner_log as logs
from tests.unit.test_labelled import HangingLog

TASK = logs.small_task()
HOUR_NS = 3_600_000_000_000


@pytest.fixture(autouse=True)
def _set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever somebody looks at the clock it has been set back by another hour."""
    started, hours = time.time_ns(), count()
    monkeypatch.setattr(time, "time_ns", lambda: started - next(hours) * HOUR_NS)


def test_ticks_only_grow() -> None:
    assert now_ms() > now_ms()
    ticks = [ticks_ms() for _ in range(100)]
    assert ticks == sorted(ticks)


def test_a_partition_that_hangs_is_awaited_for_a_while() -> None:
    log = logs.records(TASK, logs.labelled(TASK, 300))
    reader = LabelledReader(HangingLog({0: log[0], 1: []}), 64, TASK.rows_hash, Metrics())
    reader.start({0: (0, 0), 1: (0, 0)})
    rounds: list[list[Step]] = []
    while not rounds or (not rounds[-1] and len(rounds) < 3 * PATIENCE_MS / 100):
        rounds.append(reader.steps(99))
    assert rounds[-1]


def test_snapshots_are_taken(tmp_path: Path) -> None:
    kept = Snapshots(Blobs(tmp_path.as_uri()), "state", "f")
    writer = SnapshotWriter(kept, 0, ThreadPoolExecutor(1), Metrics())
    outputs = Outputs()
    writer.take([3], lambda: {"x": np.zeros(1)}, outputs)
    assert len(outputs.after) == 1


def test_a_worker_that_misses_updates_again_and_again_takes_the_newest_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.live._RELOAD_PAUSE_MS", 0)
    settings = Settings(kafka="none:1", data=tmp_path, partitions=1)
    model = LiveModel(TASK, settings, "w-1", Metrics())
    trainer = Trainer(TASK.schema, TASK.model, TASK.seed, "L1", "cpu")
    trainer.advance(5)
    Heads(model._heads._blobs, TASK.name).put(Head(*encode_full(trainer, event_ms=1, created_ms=1), 7))
    trainer.train(logs.labelled(TASK, 64).batch())
    trainer.advance(6)
    meta, payload = encode_refresh(trainer, event_ms=2, created_ms=2)
    missed = logs.Logged("t", 0, 0, 0, payload, headers=[(META, json.dumps(meta).encode())])
    for _ in range(3):
        assert asyncio.run(model._take(missed)) == 7
        model._slot.load_full(
            *encode_full(Trainer(TASK.schema, TASK.model, 9, "L1", "cpu"), event_ms=1, created_ms=1)
        )


class Questions(Control):
    """Counts how often it is asked, and keeps no connection."""

    def __init__(self) -> None:
        self.position, self.asked = 0, 0

    def start(self) -> None:
        """See Control."""

    def close(self) -> None:
        """See Control."""

    def poll(self) -> Iterator[Command]:
        """See Control."""
        self.asked += 1
        return iter(())


def test_a_learner_refreshes_checkpoints_and_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(0, 10)
    monkeypatch.setattr("streams.learn.ticks_ms", lambda: next(ticks))
    questions, outlet = Questions(), ListOutlet()
    log = logs.records(TASK, logs.labelled(TASK, 2_000))
    settings = Settings(kafka="none:1", data=tmp_path, partitions=logs.PARTITIONS)
    source = logs.EndingLog(log, 3, lambda: None)
    learner = Learner(TASK, settings, source, outlet, questions, checkpoint_every_ms=100)
    source.on_end = learner.stop
    learner.run()
    assert learner._saved > 3
    assert len(outlet.updates) > learner._saved
    assert questions.asked > 3
