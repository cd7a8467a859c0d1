"""One stream through one partition and worker and through 8 and two: every event has the same features."""

import json
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from infra.kafka import make_producer, read_all
from infra.settings import Settings, load_secret
from streams import wire
from streams.feed import Item, feed
from streams.prepare import prepare
from streams.simulate import simulate
from streams.task import Task
from streams.topics import Topics
from tests.system import run_support as runs

EVENTS = 3_000
ORDER = 'order = "event_time"\nidle = "10m"'  # nobody goes on without a partition that only a busy machine holds up


def events() -> list[Item]:
    clicks = simulate("clicks", seed=8, events=EVENTS)
    return [item for item in clicks.items() if item.kind == "event"]


def features(broker: Any, folder: Path, secret: Path, partitions: int, workers: int) -> dict[str, bytes]:
    """Event id → the bits of its features, keys and categories, as a run with so many partitions made them."""
    folder.mkdir()
    task: Task = runs.own_task(folder, f"alike-{partitions}", serving=ORDER)
    settings = prepare(
        task, Settings(kafka=broker.address, data=folder / "data", partitions=partitions, secret=secret)
    )
    load_secret(secret)
    items = events()
    feed(
        items, len(items), task, broker.address
    )  # all is there before anybody reads: partitions run far apart
    send_ends(items[-1], task, broker.address, partitions)
    more = {"DRIFTLINE_PARTITIONS": str(partitions), "DRIFTLINE_SECRET": str(secret)}
    more["DRIFTLINE_BLOBS"] = settings.blobs
    with ExitStack() as stack:
        for number in range(workers):
            stack.enter_context(runs.serving(folder / f"worker-{number}", task, broker.address, **more))
        ids = {str(item.value["event_id"]) for item in items if isinstance(item.value, dict)}
        runs.await_predictions(broker.address, task, ids)
    found: dict[str, bytes] = {}
    for record in read_all(broker.address, Topics.of(task).examples):
        rows = wire.decode_examples(record.value or b"")[0]
        for i, event_id in enumerate(rows.ids):
            assert event_id not in found
            if event_id.startswith("end-"):
                continue
            found[event_id] = b"".join(
                np.ascontiguousarray(column[i]).tobytes()
                for column in (rows.numbers, rows.keys, rows.categories)
            )
    return found


def send_ends(last: Item, task: Task, kafka: str, partitions: int) -> None:
    """An event a day later into every partition: the others need not wait for what may come before it."""
    assert isinstance(last.value, dict)
    at = datetime.fromisoformat(str(last.value["timestamp"])) + timedelta(days=1)
    with make_producer(kafka) as producer:
        for partition in range(partitions):
            end = last.value | {"event_id": f"end-{partition}", "timestamp": at.isoformat()}
            producer.send(Topics.of(task).events, json.dumps(end).encode(), partition=partition)
        producer.flush()


def test_partitions_and_workers_change_no_feature(broker: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.key"
    wanted, found = (
        features(broker, tmp_path / f"{n}", secret, n, workers) for n, workers in ((1, 1), (8, 2))
    )
    assert len(found) == len(wanted) == EVENTS
    assert [event_id for event_id, bits in wanted.items() if found[event_id] != bits] == []
