"""Transactions against a real broker: all of one is seen or nothing, and only its newest owner can commit."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from faust.types import TP

from infra.kafka import create_topics, read_all
from streams import transaction
from streams.membership import Membership
from streams.transaction import Displaced, ExactlyOnce, Outputs, committed_offsets
from tests.system import run_support as runs


@pytest.fixture(autouse=True)
def _patient_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka ends no transaction by itself before a busy machine comes to the end of a test."""
    monkeypatch.setattr(transaction, "_TRANSACTION_TIMEOUT_MS", 600_000)


@pytest.fixture
def topic(broker: Any) -> str:
    name = f"once-{uuid4().hex[:8]}"
    create_topics(broker.address, {name: (1, {})})
    return name


def one(topic: str, text: str) -> Outputs:
    outputs = Outputs()
    outputs.add(topic, 0, text.encode(), key=b"k", headers=[("h", b"v")])
    return outputs


def texts(broker: Any, topic: str, *, read_committed: bool = True) -> list[str]:
    records = read_all(broker.address, topic, read_committed=read_committed)
    return [(record.value or b"").decode() for record in records]


def await_texts(broker: Any, topic: str, expected: list[str]) -> None:
    """Kafka answers a commit when it is decided; readers see it a moment later."""
    runs.until(lambda: len(texts(broker, topic)) >= len(expected), f"{expected}")
    assert texts(broker, topic) == expected


async def until_stored(kafka: str, group: str, offsets: dict[TP, int]) -> None:
    """Kafka answers a commit when it is decided; the group hears of it a moment later. Who opens waits for that."""
    found: dict[TP, int] = {}
    for _ in range(1_800):
        found = await committed_offsets(kafka, group, list(offsets))
        if found == offsets:
            return
        await asyncio.sleep(0.1)
    assert found == offsets


def test_outputs_and_offsets_become_visible_together(broker: Any, topic: str) -> None:
    source = TP(topic, 0)

    async def run() -> None:
        owner = ExactlyOnce(broker.address, f"{topic}-group", f"{topic}-id")
        try:
            assert await owner.open([source]) == {source: 0}
            await owner.commit(one(topic, "a"), {source: 7})
            await until_stored(broker.address, f"{topic}-group", {source: 7})
            await owner.commit(one(topic, "b"), {source: 9})
        finally:
            await owner.close()
        successor = ExactlyOnce(broker.address, f"{topic}-group", f"{topic}-id")
        try:
            assert await successor.open([source]) == {source: 9}
        finally:
            await successor.close()

    asyncio.run(run())
    await_texts(broker, topic, ["a", "b"])
    assert [(r.key, r.headers) for r in read_all(broker.address, topic)] == [(b"k", [("h", b"v")])] * 2


def test_a_zombie_cannot_commit_after_its_successor_opened(broker: Any, topic: str) -> None:
    source, group = TP(topic, 0), f"{topic}-group"

    async def run() -> None:
        zombie = ExactlyOnce(broker.address, group, f"{topic}-id")
        owner = ExactlyOnce(broker.address, group, f"{topic}-id")
        try:
            await zombie.open([source])
            await zombie.commit(one(topic, "before"), {source: 1})
            assert await owner.open([source]) == {source: 1}
            with pytest.raises(KafkaError):
                await zombie.commit(one(topic, "zombie"), {source: 5})
            assert await committed_offsets(broker.address, group, [source]) == {source: 1}
            await owner.commit(one(topic, "after"), {source: 2})
        finally:
            await owner.close()
            await zombie.close()

    asyncio.run(run())
    await_texts(broker, topic, ["before", "after"])


def test_what_a_dead_owner_left_open_is_aborted_by_its_successor(broker: Any, topic: str) -> None:
    source, group = TP(topic, 0), f"{topic}-group"

    async def run() -> None:
        dying = AIOKafkaProducer(bootstrap_servers=broker.address, transactional_id=f"{topic}-id")
        owner = ExactlyOnce(broker.address, group, f"{topic}-id")
        try:
            await dying.start()
            await dying.begin_transaction()
            await dying.send_and_wait(topic, b"half", partition=0)
            await dying.send_offsets_to_transaction({TopicPartition(topic, 0): 5}, group)
            assert await owner.open([source]) == {source: 0}
            await owner.commit(one(topic, "whole"), {source: 1})
            with pytest.raises(KafkaError):
                await dying.commit_transaction()
        finally:
            await owner.close()
            await dying.stop()

    asyncio.run(run())
    await_texts(broker, topic, ["whole"])
    assert texts(broker, topic, read_committed=False) == ["half", "whole"]


def test_a_record_that_fits_no_batch_ends_the_transaction_and_nothing_is_seen(
    broker: Any, topic: str
) -> None:
    source = TP(topic, 0)

    async def run() -> None:
        owner = ExactlyOnce(broker.address, f"{topic}-group", f"{topic}-id")
        outputs = one(topic, "small")
        outputs.add(topic, 0, b"x" * (17 << 20))
        try:
            await owner.open([source])
            with pytest.raises((KafkaError, ValueError)):
                await owner.commit(outputs, {source: 3})
        finally:
            await owner.close()
        assert await committed_offsets(broker.address, f"{topic}-group", [source]) == {source: 0}

    asyncio.run(run())
    assert texts(broker, topic) == []


async def member(broker: Any, group: str, topic: str) -> tuple[AIOKafkaConsumer, Membership]:
    """A member of the group, with who it is once it has its partitions."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=broker.address, group_id=group, enable_auto_commit=False,
        session_timeout_ms=60_000, heartbeat_interval_ms=200,
    )  # fmt: skip
    await consumer.start()
    return consumer, who(consumer)


def who(consumer: AIOKafkaConsumer) -> Membership:
    return Membership(consumer._coordinator.member_id, consumer._coordinator.generation)


def test_who_was_given_the_partitions_before_the_last_rebalance_cannot_commit(
    broker: Any, topic: str
) -> None:
    source, group = TP(topic, 0), f"{topic}-group"

    async def run() -> None:
        first, before = await member(broker, group, topic)
        owner = ExactlyOnce(broker.address, group, f"{topic}-first")
        try:
            await owner.open([source])
            owner.joined(before)
            await owner.commit(one(topic, "before"), {source: 1})
            second, _ = await member(broker, group, topic)
            try:
                assert who(first).generation == before.generation + 1
                with pytest.raises(ProducerFenced, match="given the partitions to another worker"):
                    await owner.commit(one(topic, "zombie"), {source: 5})
                assert await committed_offsets(broker.address, group, [source]) == {source: 1}
            finally:
                await second.stop()
        finally:
            await first.stop()
            await owner.close()

    asyncio.run(run())
    await_texts(broker, topic, ["before"])


def test_a_stranger_cannot_commit_beside_a_group_that_lives(broker: Any, topic: str) -> None:
    source, group = TP(topic, 0), f"{topic}-group"

    async def run() -> None:
        consumer, living = await member(broker, group, topic)
        owner = ExactlyOnce(broker.address, group, f"{topic}-id")
        try:
            await owner.open([source])
            owner.joined(Membership("a stranger", living.generation))
            with pytest.raises(ProducerFenced, match="given the partitions to another worker"):
                await owner.commit(one(topic, "stranger"), {source: 5})
        finally:
            await consumer.stop()
            await owner.close()

    asyncio.run(run())
    assert texts(broker, topic) == []


@pytest.mark.parametrize("with_offsets", [True, False])
def test_what_a_worker_that_is_gone_left_open_is_ended_by_whoever_has_its_partitions(
    broker: Any, topic: str, with_offsets: bool
) -> None:
    """Its successor has another name, so only the offsets say whose transaction to end."""
    source, group = TP(topic, 0), f"{topic}-group"

    async def run() -> None:
        consumer, dying = await member(broker, group, topic)
        first = ExactlyOnce(broker.address, group, f"{topic}-first")
        second = ExactlyOnce(broker.address, group, f"{topic}-second")
        try:
            await first.open([source])
            first.joined(dying)
            await first.commit(one(topic, "before"), {source: 1})
            producer = first._producer
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"half", partition=0)
            if with_offsets:
                await producer.send_offsets_to_transaction({TopicPartition(topic, 0): 5}, group)
            await consumer.stop()  # it leaves the group
            consumer, heir = await member(broker, group, topic)
            async with asyncio.timeout(200):  # less than Kafka's patience with a transaction
                assert await second.open([source]) == {source: 1}
            second.joined(heir)
            await second.commit(one(topic, "after"), {source: 2})
            with pytest.raises(KafkaError):
                await producer.commit_transaction()
        finally:
            await consumer.stop()
            await second.close()
            await first.close()

    asyncio.run(run())
    await_texts(broker, topic, ["before", "after"])


def test_a_worker_that_dies_in_its_first_transaction_is_known_to_its_successor(
    broker: Any, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name stands with the offsets that it was given before it writes anything."""
    source, group = TP(topic, 0), f"{topic}-group"
    plain = transaction._send

    async def die(producer: Any, outputs: Outputs) -> None:
        await plain(producer, outputs)
        if outputs.records:
            raise SystemError("dead")

    async def run() -> None:
        consumer, dying = await member(broker, group, topic)
        first = ExactlyOnce(broker.address, group, f"{topic}-first")
        second = ExactlyOnce(broker.address, group, f"{topic}-second")
        try:
            first.joined(dying)
            await first.open([source])
            monkeypatch.setattr(transaction, "_send", die)
            with pytest.raises(SystemError):
                await first.commit(one(topic, "half"), {source: 5})
            monkeypatch.setattr(transaction, "_send", plain)
            await consumer.stop()
            consumer, heir = await member(broker, group, topic)
            second.joined(heir)
            async with asyncio.timeout(200):  # less than Kafka's patience with a transaction
                assert await second.open([source]) == {source: 0}
                await second.commit(one(topic, "after"), {source: 2})
        finally:
            await consumer.stop()
            await second.close()
            await first.close()

    asyncio.run(run())
    await_texts(broker, topic, ["after"])  # the half one does not hold up who reads
    assert texts(broker, topic, read_committed=False) == ["half", "after"]


def test_offsets_that_were_taken_over_are_not_signed_once_they_may_be_another_s(
    broker: Any, topic: str
) -> None:
    source, other, group = TP(topic, 0), TP(topic, 1), f"{topic}-group"

    async def run() -> None:
        consumer, living = await member(broker, group, topic)
        owner = ExactlyOnce(broker.address, group, f"{topic}-id")
        try:
            owner.joined(living)
            await owner.open([source, other])
            owner.joined(living)  # a rebalance, after which `other` is somebody else's
            await owner.commit(one(topic, "a"), {source: 1})
            assert (await committed_offsets(broker.address, group, [source]))[source] == 1
            stored = await consumer.committed(TopicPartition(*other))
            assert stored is None
        finally:
            await consumer.stop()
            await owner.close()

    asyncio.run(run())


@pytest.mark.parametrize("records", [1, 3])
def test_what_was_processed_as_coming_at_an_offset_is_committed_only_if_it_came_there(
    broker: Any, topic: str, records: int
) -> None:
    source = TP(topic, 0)

    def several(text: str, expected: int | None) -> Outputs:
        outputs = Outputs()
        for _ in range(records):
            outputs.add(topic, 0, text.encode())
        if expected is not None:
            outputs.expected[topic, 0] = expected
        return outputs

    async def run() -> None:
        owner = ExactlyOnce(broker.address, f"{topic}-group", f"{topic}-id")
        try:
            await owner.open([source])
            await owner.commit(first := several("a", None), {source: 1})
            assert first.ends == {(topic, 0): records}
            at = records + ExactlyOnce.marks
            await owner.commit(second := several("b", at), {source: 2})
            assert second.ends == {(topic, 0): at + records}
            with pytest.raises(Displaced, match=f"expected at offset 1, written at {2 * at}"):
                await owner.commit(several("c", 1), {source: 3})
        finally:
            await owner.close()
        assert await committed_offsets(broker.address, f"{topic}-group", [source]) == {source: 2}

    asyncio.run(run())
    await_texts(broker, topic, ["a"] * records + ["b"] * records)


def test_the_transaction_of_a_worker_that_lives_is_waited_for(broker: Any, topic: str) -> None:
    source, group = TP(topic, 0), f"{topic}-group"

    async def run() -> None:
        consumer, living = await member(broker, group, topic)
        first = ExactlyOnce(broker.address, group, f"{topic}-first")
        try:
            await first.open([source])
            first.joined(living)
            await first.commit(one(topic, "before"), {source: 1})
            producer = first._producer
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"more", partition=0)
            await producer.send_offsets_to_transaction({TopicPartition(topic, 0): 5}, group)
            asked = asyncio.ensure_future(
                committed_offsets(broker.address, group, [source], own_id=f"{topic}-second")
            )
            await asyncio.sleep(0.5)
            assert not asked.done()
            await producer.commit_transaction()
            assert await asked == {source: 5}
        finally:
            await consumer.stop()
            await first.close()

    asyncio.run(run())
    await_texts(broker, topic, ["before", "more"])
