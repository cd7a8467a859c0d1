"""One stream through 1, 3 and 8 partitions and one or two workers: every event has the same features."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.kafka import read_all
from infra.settings import Settings, load_secret
from streams import wire
from streams.feed import Item, feed
from streams.prepare import prepare
from streams.simulate import simulate
from streams.task import Task
from streams.topics import Topics
from tests.system import run_support as runs

EVENTS = 3_000
ORDER = 'order = "event_time"\nidle = "5s"'  # longer than a busy machine stands still


def events() -> list[Item]:
    clicks = simulate("clicks", seed=8, events=EVENTS)
    return [item for item in clicks.items() if item.kind == "event"]


def features(broker: Any, folder: Path, secret: Path, partitions: int, workers: int) -> dict[str, bytes]:
    """Event id → the bits of its features, keys and categories, as a run with so many partitions made them."""
    task: Task = runs.own_task(folder, f"alike-{partitions}", serving=ORDER)
    settings = prepare(
        task, Settings(kafka=broker.address, data=folder / "data", partitions=partitions, secret=secret)
    )
    load_secret(secret)
    items = events()
    feed(
        items, len(items), task, broker.address
    )  # all is there before anybody reads: partitions run far apart
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
            found[event_id] = b"".join(
                np.ascontiguousarray(column[i]).tobytes()
                for column in (rows.numbers, rows.keys, rows.categories)
            )
    return found


@pytest.fixture(scope="module")
def alone(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Path]:
    """What one partition makes of the stream, and the key for pseudonyms."""
    folder = tmp_path_factory.mktemp("alone")
    secret = folder / "secret.key"
    return features(broker, folder, secret, 1, 1), secret


@pytest.mark.parametrize(("partitions", "workers"), [(3, 2), (8, 2)])
def test_partitions_and_workers_change_no_feature(
    broker: Any, alone: tuple[dict[str, bytes], Path], tmp_path: Path, partitions: int, workers: int
) -> None:
    wanted, secret = alone
    found = features(broker, tmp_path, secret, partitions, workers)
    assert len(found) == len(wanted) == EVENTS
    assert [event_id for event_id, bits in wanted.items() if found[event_id] != bits] == []
