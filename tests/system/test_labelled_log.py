"""What the learner reads from, in memory and on a real broker: nothing twice, nothing missed, whatever is skipped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from infra.kafka import create_topics, make_producer
from streams.labelled import KafkaLog, LabelledLog, ListLog
from tests import stream_records

PARTITIONS = 3


@dataclass
class Kept:
    """A log that grows, what was put into it and what it gave."""

    log: LabelledLog
    put: Callable[[int, int], None]  # so many records into a partition
    given: dict[int, list[int]] = field(default_factory=lambda: {p: [] for p in range(PARTITIONS)})

    def take(self, *skip: int, turns: int = 1) -> None:
        for _ in range(turns):
            for each in self.log.poll(20, skip):
                assert each.partition not in skip
                self.given[each.partition].append(each.offset)

    def take_all(self, counts: dict[int, int]) -> None:
        for _ in range(3_000):
            if all(len(self.given[p]) >= count for p, count in counts.items()):
                break
            self.take()
        assert self.given == {p: list(range(count)) for p, count in counts.items()}
        assert self.log.behind() == {}


def in_memory(_: Any) -> Iterator[Kept]:
    partitions: dict[int, list[Any]] = {p: [] for p in range(PARTITIONS)}

    def put(p: int, count: int) -> None:
        begin = len(partitions[p])
        partitions[p].extend(stream_records.Record(b"x", offset=begin + n, partition=p) for n in range(count))

    yield Kept(ListLog(partitions), put)


def on_kafka(request: Any) -> Iterator[Kept]:
    address, topic = request.getfixturevalue("broker").address, f"log-{uuid4().hex[:8]}"
    create_topics(address, {topic: (PARTITIONS, {})})
    producer = make_producer(address)

    def put(p: int, count: int) -> None:
        for _ in range(count):
            producer.send(topic, b"x", partition=p)
        producer.flush()

    log = KafkaLog(address, topic, PARTITIONS)
    try:
        yield Kept(log, put)
    finally:
        log.close()
        producer.close()


@pytest.fixture(params=[in_memory, on_kafka])
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    yield from request.param(request)


def test_one_that_was_skipped_in_the_middle_of_what_had_come_goes_on(kept: Kept) -> None:
    """Kafka hands out 64 records of what has come; the others wait, while those of another partition come and end."""
    kept.put(0, 300)
    kept.log.start({0: 0, 1: 0, 2: 0})
    while not kept.given[0]:
        kept.take()
    kept.put(1, 5)
    while len(kept.given[1]) < 5:
        kept.take(0)
    kept.take(0, turns=10)
    kept.take_all({0: 300, 1: 5, 2: 0})


def test_what_is_skipped_by_turns(kept: Kept) -> None:
    kept.log.start({0: 0, 1: 0, 2: 0})
    for turn in range(40):
        kept.put(turn % PARTITIONS, 7 * (turn % 5))
        kept.take(*(p for p in range(PARTITIONS) if turn >> p & 1), turns=2)
    counts = {
        p: sum(7 * (turn % 5) for turn in range(40) if turn % PARTITIONS == p) for p in range(PARTITIONS)
    }
    kept.take_all(counts)
    assert kept.log.oldest() == {0: 0, 1: 0, 2: 0}


def test_it_starts_where_it_is_told_and_may_start_anew(kept: Kept) -> None:
    for p in range(PARTITIONS):
        kept.put(p, 10)
    kept.log.start({0: 8, 1: 9, 2: 10})
    while len(kept.given[0]) < 2 or len(kept.given[1]) < 1:
        kept.take()
    assert kept.given == {0: [8, 9], 1: [9], 2: []}
    kept.given = {p: [] for p in range(PARTITIONS)}
    kept.log.start({0: 0, 1: 0, 2: 0})
    kept.take_all({0: 10, 1: 10, 2: 10})


def test_all_skipped_gives_nothing(kept: Kept) -> None:
    kept.put(0, 3)
    kept.log.start({0: 0, 1: 0, 2: 0})
    kept.take(0, 1, 2, turns=3)
    assert kept.given == {0: [], 1: [], 2: []}
    assert 0 in kept.log.behind()
    kept.take_all({0: 3, 1: 0, 2: 0})
