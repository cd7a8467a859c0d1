"""`driftline drift history` and `predictions tail` against a real Kafka."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from infra.kafka import make_producer
from infra.settings import Settings
from streams.prepare import prepare
from streams.topics import Topics
from tests.system import run_support as runs

ALERT = {
    "alert_id": "adwin-7",
    "event_time": 1_700_000_000_000,
    "created_at": 5,
    "message": "log loss [rose]",
}
START = {
    "action": "start",
    "event_time": 1_700_000_000_000,
    "created_at": 4,
    "lineage": "L2",
    "reason": "L2 (warm)",
}
PROMOTE = {
    "action": "promote",
    "event_time": 1_700_000_090_000,
    "created_at": 9,
    "lineage": "L2",
    "reason": "better",
}


def test_what_happened_is_told_in_order(broker: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    task = runs.own_task(tmp_path, "looked-at")
    prepare(task, Settings(kafka=broker.address, data=data, partitions=2))
    topics = Topics.of(task)
    with closing(make_producer(broker.address)) as producer:
        for topic, row in ((topics.audit, PROMOTE), (topics.audit, START), (topics.drift_alerts, ALERT)):
            producer.send(topic, json.dumps(row).encode())
        for number in range(20):
            value = json.dumps({"event_id": f"e-{number}"}).encode()
            producer.send(
                topics.predictions, value, partition=number % 2, timestamp_ms=1_700_000_000_000 + number
            )
        producer.flush()
    where = ("--task", str(task.path), "--kafka", broker.address)

    said = runs.driftline(data, "drift", "history", *where)
    assert said.returncode == 0, said.stderr
    assert [line.split(maxsplit=3)[2:] for line in said.stdout.splitlines()] == [
        ["alarm", "log loss [rose]"],
        ["start", "L2 (warm)"],
        ["promote", "better"],
    ]
    as_json = runs.driftline(data, "drift", "history", *where, "--json").stdout
    assert [json.loads(line) for line in as_json.splitlines()] == [ALERT, START, PROMOTE]

    tail = runs.driftline(data, "predictions", "tail", *where, "--last", "3").stdout
    assert [json.loads(line)["event_id"] for line in tail.splitlines()] == ["e-17", "e-18", "e-19"]
