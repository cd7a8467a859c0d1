"""Tuning on a real Kafka: a learner that is killed goes on with its population, and what won is served and verified."""

from pathlib import Path
from typing import Any

import numpy as np

from infra.kafka import make_producer, read_all
from infra.settings import Settings
from streams.parts import gathered
from streams.prepare import prepare
from streams.task import load_task
from streams.topics import Topics
from streams.wire import encode_labelled
from tests import learner_log as logs
from tests.system import run_support as runs
from tests.system.test_swap import audit

ROWS, RECORD = 6_000, 64
TUNING = """
[tuning]
population = 4
rungs = 2
events = 128
budget = 0.7
[tuning.space]
learning_rate = { min = 0.0005, max = 0.2 }
"""


def test_a_population_is_tuned_over_a_kill_and_its_winner_becomes_the_champion(
    broker: Any, tmp_path: Path
) -> None:
    data, path = tmp_path / "data", tmp_path / "tuned.toml"
    text = logs.small_task("tuned").text.replace("learning_rate = 0.003\n", "learning_rate = 0.0005\n")
    path.write_text(text.replace("window = 400", "window = 400\npsi_threshold = 100.0") + TUNING)
    task = load_task(path)
    prepare(task, Settings(kafka=broker.address, data=data, partitions=1))
    topics, rows = Topics.of(task), logs.labelled(task, ROWS, turn=1.0)
    parts = [rows.take(np.arange(at, min(at + RECORD, ROWS))) for at in range(0, ROWS, RECORD)]
    where = ("--task", str(path), "--kafka", broker.address)
    learn = ("learn", *where)
    with make_producer(broker.address) as producer:

        def a_rung_ended() -> list[Any]:
            """One part more, and whether that was enough: it must not be all over before the kill."""
            if len(parts) > len(rows) // RECORD // 2:
                producer.send(topics.labelled, encode_labelled(parts.pop(0)), partition=0)
                producer.flush()
            return audit(broker.address, task, "tune")

        with runs.running(data, *learn, DRIFTLINE_PARTITIONS="1") as first:
            first.wait_for("ready with")
            runs.until(a_rung_ended, "the end of a rung")
            first.process.kill()
        assert not audit(broker.address, task, "promote")
        for part in parts:
            producer.send(topics.labelled, encode_labelled(part), partition=0)
        producer.flush()
    with runs.running(data, *learn, DRIFTLINE_PARTITIONS="1") as second:
        second.wait_for("ready with")
        promoted = runs.until(lambda: audit(broker.address, task, "promote"), "a promotion")[0]
        assert second.stop() == 0
        assert "Traceback" not in second.output
    assert (promoted["evidence"]["kind"], promoted["champion"]) == ("tuned", "L1")
    rungs = [row["evidence"] for row in audit(broker.address, task, "tune")]
    seen = {
        (rung["population"], rung["rung"]): [each["settings"] for each in rung["members"]] for rung in rungs
    }
    told = [[each["settings"] for each in rung["members"]] for rung in rungs]
    assert all(seen[rung["population"], rung["rung"]] == each for rung, each in zip(rungs, told, strict=True))
    updates = [meta for meta, _ in gathered(read_all(broker.address, topics.model_updates))]
    swap = next(meta for meta in updates if meta["lineage"] == promoted["lineage"])
    assert swap["kind"] == "swap"
    said = runs.driftline(data, "models", "verify", swap["version"], *where, DRIFTLINE_PARTITIONS="1")
    assert said.returncode == 0, said.stdout + said.stderr
