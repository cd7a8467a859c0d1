import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.errors import UserError
from infra.kafka import create_topics, read_all
from streams.feed import Item, Progress, feed
from streams.simulate import Simulation, simulate
from streams.task import Task, load_task
from streams.topics import Topics


@pytest.fixture
def task(request: pytest.FixtureRequest, broker: Any) -> Task:
    """The clicks task under a name of this test's own, with its two topics."""
    task = replace(load_task("clicks"), name=f"feed-{abs(hash(request.node.name)):x}")
    topics = Topics.of(task)
    layout = topics.layout(3)
    create_topics(broker.address, {name: layout[name] for name in (topics.events, topics.labels)})
    return task


@pytest.fixture
def clicks() -> Simulation:
    return simulate("clicks", seed=1, events=6_000)


def sent(broker: Any, topic: str) -> list[tuple[str | None, Any]]:
    """Keys and values of a topic's records, by partition and then in their order."""
    decode = msgspec.json.decode
    return [
        (r.key.decode() if r.key else None, decode(r.value or b"")) for r in read_all(broker.address, topic)
    ]


def ids(records: list[tuple[str | None, Any]]) -> list[str]:
    return [value["event_id"] for _, value in records]


def test_every_item_arrives_once_keyed_and_in_order(broker: Any, task: Task, clicks: Simulation) -> None:
    told: list[Progress] = []
    counts = feed(clicks.items(), clicks.total, task, broker.address, on_progress=told.append)
    assert (counts.events, counts.labels) == (6_000, clicks.total - 6_000)
    assert not counts.stopped

    topics, items = Topics.of(task), list(clicks.items())
    for topic, kind in ((topics.events, "event"), (topics.labels, "label")):
        wanted = [(item.key, item.value) for item in items if item.kind == kind]
        found = sent(broker, topic)
        assert sorted(found, key=str) == sorted(wanted, key=str)
        for key in {key for key, _ in wanted[:200]}:  # a key's records lie in one partition, in order
            assert [value for k, value in found if k == key] == [value for k, value in wanted if k == key]
    assert (told[-1].done, told[-1].total, told[-1].time_ms) == (
        clicks.total,
        clicks.total,
        items[-1].time_ms,
    )
    placed = {r.key: r.partition for r in read_all(broker.address, topics.events)}
    assert len(set(placed.values())) == 3
    for record in read_all(broker.address, topics.labels):
        assert record.partition == placed[record.key]  # a label lies where its event does


def test_a_stopped_feed_resumes_where_it_was(
    broker: Any, task: Task, clicks: Simulation, tmp_path: Path
) -> None:
    path, stop = tmp_path / "position.json", threading.Event()

    def until(items: Iterator[Item], last: int) -> Iterator[Item]:
        for number, item in enumerate(items):
            if number == last:
                stop.set()
            yield item

    def run(items: Iterator[Item]) -> tuple[int, int, bool]:
        counts = feed(
            items,
            clicks.total,
            task,
            broker.address,
            stop=stop,
            resume=path,
            source=clicks.identity,
            rate=50_000,
        )
        return counts.skipped, counts.events + counts.labels, counts.stopped

    assert run(until(clicks.items(), 1_500)) == (0, 1_500, True)
    stop.clear()
    assert run(until(clicks.items(), 4_321)) == (1_500, 2_821, True)
    stop.clear()
    assert run(clicks.items()) == (4_321, clicks.total - 4_321, False)
    assert run(clicks.items()) == (clicks.total, 0, False)
    assert sorted(ids(sent(broker, Topics.of(task).events))) == sorted(f"imp-1-{n}" for n in range(6_000))


class PowerCut(Exception):
    """Stands for whatever ends a feed in the middle."""


def test_a_feed_that_dies_sends_items_again_rather_than_never(
    broker: Any, task: Task, clicks: Simulation, tmp_path: Path
) -> None:
    path = tmp_path / "position.json"

    def dying() -> Iterator[Item]:
        for number, item in enumerate(clicks.items()):
            if number == 5_500:
                raise PowerCut
            yield item

    with pytest.raises(PowerCut):
        feed(dying(), clicks.total, task, broker.address, resume=path, source=clicks.identity)
    counts = feed(clicks.items(), clicks.total, task, broker.address, resume=path, source=clicks.identity)
    assert counts.skipped <= 5_500
    assert set(ids(sent(broker, Topics.of(task).events))) == {f"imp-1-{n}" for n in range(6_000)}


def test_bytes_go_as_they_are_and_large_records_too(broker: Any, task: Task) -> None:
    huge = b'"' + b"x" * (3 << 20) + b'"'
    items = [
        Item(0, "event", "", b"\xff{not json"),
        Item(0, "event", "k", huge),
        Item(1, "event", "", b"null"),
    ]
    assert feed(items, 3, task, broker.address).events == 3
    found = read_all(broker.address, Topics.of(task).events)
    assert sorted((r.key, r.value) for r in found if r.key) == [(b"k", huge)]
    assert sorted(r.value or b"" for r in found if r.key is None) == sorted([b"\xff{not json", b"null"])


def test_a_record_that_kafka_refuses_is_said_and_not_counted(broker: Any, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    items = [Item(0, "event", "k", np.random.default_rng(0).bytes(20 << 20))]
    with pytest.raises(UserError, match="does not take a record"):
        feed(items, 1, task, broker.address, resume=path)
    assert not path.exists() or b'"sent": 0' in path.read_bytes()


def test_pacing_by_event_time_spreads_the_items(broker: Any, task: Task) -> None:
    items = [Item(second * 1_000, "event", "k", {"n": second}) for second in range(5)]
    feed(items, 5, task, broker.address, speed=20)  # four seconds of events at 20 a second
    times = [r.timestamp for r in read_all(broker.address, Topics.of(task).events)]
    assert times[-1] - times[0] >= 4_000 / 20 - 5


def test_without_topics_it_says_how_to_get_them(broker: Any) -> None:
    absent = replace(load_task("clicks"), name="feed-absent")
    with pytest.raises(UserError, match=r"no topic 'feed-absent.events'[\s\S]*start the task's roles first"):
        feed([], 0, absent, broker.address)


NO_BROKER = """
from infra.errors import UserError
from streams.feed import feed
from streams.task import load_task
try:
    feed([], 0, load_task("clicks"), "127.0.0.1:1")
except UserError as error:
    print(error.message)
"""


def test_without_a_broker_it_says_so() -> None:
    # In a process of its own: kafka-python leaves the sockets of connections that it did not get unclosed.
    done = subprocess.run(
        [sys.executable, "-c", NO_BROKER], capture_output=True, text=True, timeout=240, check=True
    )
    assert "127.0.0.1:1 does not answer" in done.stdout
