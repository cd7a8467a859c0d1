"""A canary on a real Kafka: two workers agree on who is served by it, also one that was killed, until the swap; and on
which events are explored.
"""

import json
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.kafka import make_producer, read_all
from infra.settings import Settings
from learners.canary import chosen
from learners.slot import encode_full
from learners.trainer import Trainer
from streams import wire
from streams.exploration import marks
from streams.heads import Head, Heads
from streams.outlet import KafkaOutlet
from streams.prepare import prepare
from streams.task import Task
from streams.topics import Topics
from tests.system import run_support as runs

SHARE, USERS, EACH = 0.3, 120, 4


def publish(outlet: KafkaOutlet, heads: Heads, trainer: Trainer, canary: float = 0.0) -> None:
    trainer.advance(trainer.refresh)
    meta, payload = encode_full(trainer, event_ms=0, created_ms=now_ms(), canary=canary)
    head = Head(meta, payload, outlet.publish(meta, payload) + 1)
    (heads.put_canary if canary else heads.put)(head)


def test_two_workers_agree_on_a_canary_until_it_serves_all(broker: Any, tmp_path: Path) -> None:
    task = runs.own_task(tmp_path, "canaried", serving='order = "arrival"\n[exploration]\nshare = 0.2')
    settings = prepare(task, Settings(kafka=broker.address, data=tmp_path / "data", partitions=2))
    heads, topics = Heads(Blobs(settings.blobs), task.name), Topics.of(task)
    outlet = KafkaOutlet(broker.address, topics.model_updates, f"driftline-{task.name}-learn")
    arms = {
        name: Trainer(task.schema, task.model, seed, name, "cpu") for seed, name in ((1, "L1"), (2, "L2"))
    }
    publish(outlet, heads, arms["L1"])
    publish(outlet, heads, arms["L2"], SHARE)
    env = {"DRIFTLINE_PARTITIONS": "2", "DRIFTLINE_BLOBS": settings.blobs}
    env["DRIFTLINE_SECRET"] = str(tmp_path / "secret.key")
    (tmp_path / "secret.key").write_bytes(b"it chooses the same in every run")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(runs.serving(tmp_path / name, task, broker.address, **env))
            for name in ("a", "b")
        )
        runs.await_serving(first, task, broker.address)
        served = send(task, broker.address, "one")
        first.process.kill()
        third = stack.enter_context(runs.serving(tmp_path / "c", task, broker.address, **env))
        served = send(task, broker.address, "two")
        publish(outlet, heads, arms["L2"])
        heads.drop_canary()
        runs.until(lambda: reported(broker.address, topics, "L2"), "both workers with L2")
        third.check_alive()
        second.check_alive()
        after = {row["event_id"]: row for row in send(task, broker.address, "three")}
    outlet.close()
    examples = [wire.decode_examples(record.value) for record in read_all(broker.address, topics.examples)]
    rows = wire.Rows.concat([each[0] for each in examples])
    versions = [version for each in examples for version in each[2]]
    own = chosen(rows.keys[:, 0], "L2", SHARE)
    by_id = {row["event_id"]: row for row in (*served, *after.values())}
    assert len(by_id) == len(rows) == 3 * USERS * EACH
    assert 0.15 < own.mean() < 0.45
    for event_id, canary, arm, version in zip(rows.ids, own, rows.arm.tolist(), versions, strict=True):
        row, during = by_id[event_id], not event_id.startswith("three")
        assert row["version"] == version
        assert row["arm"] == ("canary" if canary and during else "champion")
        assert arm == ((2 if canary else -2) if during else 0)
        assert version.startswith("L2." if canary or not during else "L1.")
    scores = np.array([by_id[event_id]["score"] for event_id in rows.ids], np.float32)
    wanted = marks(task.exploration, rows.ids, scores)
    np.testing.assert_array_equal(rows.explored, wanted.explored)
    np.testing.assert_array_equal(rows.propensity, wanted.propensity)
    assert [by_id[event_id]["explored"] for event_id in rows.ids] == wanted.explored.tolist()
    assert {by_id[event_id]["propensity"] for event_id in rows.ids} <= {0.2, 1.0}


def reported(kafka: str, topics: Topics, lineage: str) -> bool:
    """Whether the newest reports of two workers say that they serve the lineage."""
    newest = {row["worker"]: row for row in runs.values(kafka, topics.workers) if not row["canary"]}
    last = max(row["created_at"] for row in newest.values())
    alive = [row for row in newest.values() if row["created_at"] > last - 3_000]
    return len(alive) == 2 and all(row["version"].startswith(f"{lineage}.") for row in alive)


def send(task: Task, kafka: str, round_: str) -> list[dict[str, Any]]:
    """Some events of every user, and all predictions that there are then."""
    ids = {f"{round_}-{user}-{i}" for user in range(USERS) for i in range(EACH)}
    with make_producer(kafka) as producer:
        for event_id in sorted(ids):
            user, number = event_id.split("-")[1:]
            event: dict[str, object] = {
                "event_id": event_id,
                "timestamp": datetime.now(UTC).isoformat(),
                "user_id": user,
            }
            event |= {"item_id": f"i-{number}", "position": 1}
            producer.send(Topics.of(task).events, value=json.dumps(event).encode(), key=user.encode())
    return runs.await_predictions(kafka, task, ids)
