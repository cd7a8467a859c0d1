"""Where a consumer goes on after a rebalance, on a real broker: at what is committed, or at the beginning."""

import asyncio
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.kafka import create_topics, make_producer
from infra.settings import Settings
from streams.transport import make_app, to_committed


def test_it_goes_back_to_what_is_committed_or_to_the_beginning(broker: Any) -> None:
    topic = f"back-{uuid4().hex[:8]}"
    create_topics(broker.address, {topic: (3, {})})
    producer = make_producer(broker.address)
    for number in range(15):
        producer.send(topic, b"x", partition=number % 3)
    producer.close()
    places = [TopicPartition(topic, p) for p in range(3)]

    async def read(consumer: AIOKafkaConsumer) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for _ in range(200):
            for at, records in (await consumer.getmany(timeout_ms=200)).items():
                found[at.partition] += [record.offset for record in records]
            if all(found.values()) and all(offsets[-1] == 4 for offsets in found.values()):
                break
        return found

    async def run() -> None:
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=broker.address,
            group_id=topic,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            assert await read(consumer) == {p: list(range(5)) for p in range(3)}
            await consumer.commit({places[1]: 0, places[2]: 3})
            assert await to_committed(consumer) == {places[0]: None, places[1]: 0, places[2]: 3}
            assert await read(consumer) == {0: list(range(5)), 1: list(range(5)), 2: [3, 4]}
        finally:
            await consumer.stop()

    asyncio.run(run())


def test_who_has_nothing_to_read_stays_in_the_group(tmp_path: Any) -> None:
    """aiokafka leaves it after the interval, and nobody polls for a worker without partitions."""
    interval_ms = (
        1000 * make_app("spare", Settings(kafka="localhost:1", data=tmp_path)).conf.broker_max_poll_interval
    )
    assert 10 * 86_400_000 < interval_ms < 2**31
