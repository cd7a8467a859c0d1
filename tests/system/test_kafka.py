"""Topics, offsets, groups and reading on a real broker; what goes wrong is said in a sentence."""

import gc
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from infra.errors import UserError
from infra.kafka import (
    MAX_MESSAGE_BYTES,
    committed_offsets,
    create_topics,
    end_offsets,
    group_ready,
    make_consumer,
    make_producer,
    partitions,
    read_all,
    records_left,
    start_offsets,
    translated,
    wait_ready,
)
from infra.ports import free_port
from tests.system.run_support import await_decided

Names = Callable[[str], str]


@pytest.fixture
def address(broker: Any) -> str:
    return str(broker.address)


@pytest.fixture
def topic(address: str, unique: Names) -> str:
    """An empty topic of two partitions."""
    name = unique("topic")
    assert create_topics(address, {name: (2, {})}) == {name: 2}
    return name


def send(producer: Any, topic: str, values: Iterable[bytes], partition: int = 0) -> None:
    for value in values:
        producer.send(topic, value, partition=partition)
    producer.flush()


def produce(address: str, topic: str, values: Iterable[bytes], partition: int = 0, **config: Any) -> None:
    producer = make_producer(address, **config)
    try:
        send(producer, topic, values, partition)
    finally:
        producer.close()


@pytest.fixture
def transactions(address: str, topic: str) -> Any:
    producer = make_producer(address, transactional_id=f"{topic}-id")
    producer.init_transactions()
    yield producer
    producer.close(timeout=5)


def values(address: str, topic: str, **how: Any) -> list[bytes | None]:
    return [record.value for record in read_all(address, topic, **how)]


def test_ready_means_a_cluster_with_an_identity(address: str) -> None:
    assert wait_ready(address) == wait_ready(f"{address},{address}") != ""


def test_a_closed_port_is_told_with_the_address() -> None:
    closed = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=closed) as caught:
        wait_ready(closed, timeout_s=0.5)
    assert "start it, or correct the address" in caught.value.fix


@pytest.mark.parametrize(
    "wrong", ["", "localhost", "localhost:", ":9092", "kafka://h:1", "h:0", "h:70000", "h:1,"]
)
def test_what_is_no_address_is_told_before_anything_is_tried(wrong: str) -> None:
    for use in (wait_ready, make_consumer, make_producer):
        with pytest.raises(UserError, match="is not an address of Kafka") as caught:
            use(wrong)
        assert "HOST:PORT" in caught.value.fix


def test_other_exceptions_of_the_client_become_sentences() -> None:
    with pytest.raises(UserError, match=r"Kafka at h:1 does not answer: .*in vain"), translated("h:1"):
        raise KafkaTimeoutError("in vain")


def test_nothing_is_left_of_a_failed_attempt() -> None:
    before = set(threading.enumerate())
    with pytest.raises(UserError):
        wait_ready(f"127.0.0.1:{free_port()}", timeout_s=0.3)
    gc.collect()  # an open socket would be a warning now, and so an error
    assert set(threading.enumerate()) <= before


def test_topics_are_made_once_and_the_counts_that_hold_are_returned(address: str, unique: Names) -> None:
    old, new = unique("old"), unique("new")
    assert create_topics(address, {}) == {}
    assert create_topics(address, {old: (3, {})}) == {old: 3}
    produce(address, old, [b"kept"])
    assert create_topics(address, {old: (5, {}), new: (1, {})}) == {old: 3, new: 1}
    assert (partitions(address, old), partitions(address, new)) == (3, 1)
    assert values(address, old) == [b"kept"]


def test_several_may_make_the_same_topics_at_once(address: str, unique: Names) -> None:
    wanted: dict[str, Any] = {unique("together"): (2, {}) for _ in range(3)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: create_topics(address, wanted), range(4)))
    assert found == [dict.fromkeys(wanted, 2)] * 4


def test_the_config_of_a_topic_holds(address: str, unique: Names) -> None:
    small = unique("small")
    create_topics(address, {small: (1, {"max.message.bytes": "2000"})})
    producer = make_producer(address, compression_type=None)
    with pytest.raises(UserError, match=r"answers: .*MessageSizeTooLarge"), translated(address):
        producer.send(small, b"x" * 5000).get(timeout=30)
    producer.close()
    assert values(address, small) == []


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [("no spaces", (1, {}), "InvalidTopic"), ("bad", (1, {"no.such.setting": "1"}), "InvalidConfig")],
)
def test_a_topic_that_cannot_be_made_is_named_with_the_reason(
    address: str, name: str, settings: tuple[int, dict[str, str]], kind: str
) -> None:
    with pytest.raises(UserError, match=f"did not make topic '{name}': {kind}"):
        create_topics(address, {name: settings})


def test_a_topic_that_is_not_there_is_named_and_not_made(address: str, unique: Names) -> None:
    absent = unique("absent")
    for use in (partitions, start_offsets, end_offsets, read_all):
        with pytest.raises(UserError, match=f"has no topic '{absent}'"):
            use(address, absent)


def test_offsets(address: str, topic: str) -> None:
    assert start_offsets(address, topic) == end_offsets(address, topic) == {0: 0, 1: 0}
    produce(address, topic, [b"a", b"b", b"c"], partition=1)
    assert start_offsets(address, topic) == {0: 0, 1: 0}
    assert end_offsets(address, topic) == end_offsets(address, topic, read_committed=True) == {0: 0, 1: 3}


def test_an_open_transaction_holds_the_committed_end_back(
    address: str, topic: str, transactions: Any
) -> None:
    produce(address, topic, [b"before"])
    transactions.begin_transaction()
    send(transactions, topic, [b"open", b"open"])
    produce(address, topic, [b"after"])
    assert end_offsets(address, topic)[0] == 4
    assert end_offsets(address, topic, read_committed=True)[0] == 1
    assert records_left(address, topic, {0: 1})
    assert values(address, topic) == [b"before"]
    assert values(address, topic, read_committed=False) == [b"before", b"open", b"open", b"after"]
    transactions.commit_transaction()
    await_decided(address, topic)
    assert values(address, topic) == [b"before", b"open", b"open", b"after"]


def test_aborted_records_are_not_read(address: str, topic: str, transactions: Any) -> None:
    for word, good in ((b"one", True), (b"two", False), (b"three", True), (b"four", False)):
        transactions.begin_transaction()
        send(transactions, topic, [word, word])
        if good:
            transactions.commit_transaction()
        else:
            transactions.abort_transaction()
    await_decided(address, topic)
    assert values(address, topic) == [b"one", b"one", b"three", b"three"]
    assert len(values(address, topic, read_committed=False)) == 8
    assert not records_left(address, topic, {0: 0}, lambda record: record.value in (b"two", b"four"))
    assert records_left(address, topic, {0: 4}, lambda record: record.value == b"three")
    assert end_offsets(address, topic)[0] == 8 + 4  # a marker ends each transaction
    assert [records_left(address, topic, {0: n}) for n in (0, 7, 8, 9, 12)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_topic_of_nothing_but_aborted_records_is_empty(address: str, topic: str, transactions: Any) -> None:
    transactions.begin_transaction()
    send(transactions, topic, [b"no"] * 10, partition=1)
    transactions.abort_transaction()
    assert read_all(address, topic) == []


def test_records_come_by_partition_and_then_in_order_with_all_they_have(address: str, topic: str) -> None:
    producer = make_producer(address)
    for number in range(200):
        producer.send(
            topic,
            b"%d" % number,
            key=b"k",
            headers=[("h", b"v")],
            partition=number % 2,
            timestamp_ms=5_000 + number,
        )
    producer.send(topic, None, key=b"gone", partition=1)
    producer.close()
    records = read_all(address, topic)
    assert [(r.partition, r.offset) for r in records] == [
        *((0, n) for n in range(100)),
        *((1, n) for n in range(101)),
    ]
    assert [int(r.value or b"") for r in records[:100]] == list(range(0, 200, 2))
    first, last = records[0], records[-1]
    assert (first.topic, first.timestamp, first.key, list(first.headers)) == (
        topic,
        5_000,
        b"k",
        [("h", b"v")],
    )
    assert (last.key, last.value) == (b"gone", None)


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_of_a_foreign_producer_is_read(address: str, topic: str, codec: str | None) -> None:
    sent = [b"%d" % number * 50 for number in range(100)]
    produce(address, topic, sent, compression_type=codec)
    assert values(address, topic) == sent


def test_the_largest_record_goes_through(address: str, unique: Names) -> None:
    name = unique("large")
    create_topics(address, {name: (1, {"max.message.bytes": str(MAX_MESSAGE_BYTES)})})
    large = bytes(range(256)) * 4 * 1024 * 15  # 15 MiB
    produce(address, name, [large, b"next"], compression_type=None)
    assert values(address, name) == [large, b"next"]


def test_a_group_commits_and_is_ready_once_its_members_have_partitions(
    address: str, topic: str, unique: Names
) -> None:
    group = unique("group")
    produce(address, topic, [b"a", b"b"])
    assert not group_ready(address, group)
    assert committed_offsets(address, group, topic) == {}
    consumer = make_consumer(address, group=group)
    consumer.subscribe([topic])
    found: list[bytes] = []
    while len(found) < 2:
        found += [record.value for records in consumer.poll(timeout_ms=200).values() for record in records]
    assert found == [b"a", b"b"]
    assert group_ready(address, group)
    assert committed_offsets(address, group, topic) == {}  # it does not commit by itself
    consumer.commit()
    assert committed_offsets(address, group, topic)[0] == 2
    assert committed_offsets(address, group, "another") == {}
    consumer.close()
    assert not group_ready(address, group)
