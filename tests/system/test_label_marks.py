"""What a partition of labels says of how far it has come, on a real broker: with labels, without, after a takeover.

And while the labels of a transaction wait for its end.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from faust.types import TP

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.errors import UserError
from infra.kafka import create_topics, end_offsets, read_all
from infra.metrics import Metrics
from infra.settings import Settings
from streams import wire
from streams.join import ON_ITS_WAY_MS, JoinContext, LabelStep
from streams.log_end import EndOfLog
from streams.ordering import WATERMARK
from streams.task import Task
from streams.topics import Topics
from streams.transaction import ExactlyOnce, Outputs
from tests.stream_records import HIDDEN, task
from tests.system import run_support as runs


@pytest.fixture
def made() -> Task:
    name = f"marks-{uuid4().hex[:8]}"
    return task(name=f'"{name}"')


def context_of(made: Task, broker: Any, folder: Path) -> JoinContext:
    topics, settings = Topics.of(made), Settings(kafka=broker.address, data=folder, partitions=2)
    layout: dict[str, tuple[int, dict[str, str]]] = {
        topics.labels: (3, {}),
        topics.examples: (2, {}),
        topics.dead_letters: (2, {}),
    }
    create_topics(broker.address, layout)
    return JoinContext(
        made, settings, topics, Blobs(settings.blobs), HIDDEN, ThreadPoolExecutor(1), Metrics(), 3,
        EndOfLog(broker.address),
    )  # fmt: skip


async def send(context: JoinContext, *ids: str) -> None:
    """Labels into partition 1, in a transaction: its mark stands at the end of the partition."""
    producer = AIOKafkaProducer(bootstrap_servers=context.settings.kafka, transactional_id=uuid4().hex)
    await producer.start()
    try:
        async with producer.transaction():
            for event_id in ids:
                value = f'{{"trip": "{event_id}", "bad": 1}}'.encode()
                await producer.send_and_wait(context.topics.labels, value, partition=1)
    finally:
        await producer.stop()
    runs.await_decided(context.settings.kafka, context.topics.labels)


async def delete(context: JoinContext, before: int) -> None:
    """As retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=context.settings.kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(context.topics.labels, 1): RecordsToDelete(before)})
    finally:
        await admin.close()


def marks(context: JoinContext) -> list[list[int]]:
    """How far the labels have come, as each partition of the examples topic was told."""
    runs.await_decided(context.settings.kafka, context.topics.examples)
    told: list[list[int]] = [[], []]
    for record in read_all(context.settings.kafka, context.topics.examples):
        headers = dict(record.headers)
        assert headers[wire.KIND] == wire.LABELS
        if WATERMARK in headers:
            assert (headers["driftline.from"], headers["driftline.partitions"]) == (b"1", b"3")
            told[record.partition].append(int(headers[WATERMARK]))
    return told


async def the_life_of_a_step(context: JoinContext) -> None:
    topic = context.topics.labels
    source = TP(topic, 1)
    first = LabelStep(context, 1)
    owner = ExactlyOnce(context.settings.kafka, f"{topic}-group", f"{topic}-1")

    async def quiet(step: LabelStep, owner: ExactlyOnce, at: int) -> float | None:
        outputs = Outputs()
        again = await step.quiet(outputs)
        await owner.commit(outputs, {source: at})
        return again

    await first.open(await owner.open([source]))
    await send(context, "a", "b")
    assert await quiet(first, owner, 0) is not None
    assert marks(context) == [[], []]  # there is something that it has not read
    records, outputs = read_all(context.settings.kafka, topic), Outputs()
    first.process({source: records}, outputs)
    end = records[-1].offset + 1
    await owner.commit(outputs, {source: end})
    assert marks(context) == [[records[-1].timestamp]] * 2  # both, wherever the labels went
    before = now_ms()
    pauses = [await quiet(first, owner, end) for _ in range(4)]
    assert all(pauses[i] is not None for i in range(4))
    silent = marks(context)
    assert [len(told) for told in silent] == [5, 5]
    assert all(told[1:] == sorted(told[1:]) and told[-1] >= before - ON_ITS_WAY_MS for told in silent)
    await owner.close()

    second, successor = (
        LabelStep(context, 1),
        ExactlyOnce(context.settings.kafka, f"{topic}-group", f"{topic}-1"),
    )
    offsets = await successor.open([source])
    assert offsets == {source: end}
    with pytest.raises(UserError, match="Kafka has lost its end"):
        await second.open({source: end + 100})
    await second.open(offsets)
    await quiet(second, successor, end)
    assert [len(told) for told in marks(context)] == [6, 6]  # it needs no memory of what the first one said
    await delete(context, end)
    assert await context.end_of_log.reached(source, 0)  # nothing that was deleted is waited for
    await send(context, "c")
    await quiet(second, successor, end)
    assert [len(told) for told in marks(context)] == [6, 6]
    await successor.close()
    await an_open_transaction(context)
    await context.end_of_log.close()


async def an_open_transaction(context: JoinContext) -> None:
    """A partition does not say that it has come further than a label which may yet be committed."""
    source = TP(context.topics.labels, 1)
    end = end_offsets(context.settings.kafka, source.topic)[1]
    producer = AIOKafkaProducer(bootstrap_servers=context.settings.kafka, transactional_id=uuid4().hex)
    await producer.start()

    async def reached() -> bool:
        return await context.end_of_log.reached(source, end)

    try:
        for commits in (False, True):
            assert await reached()
            await producer.begin_transaction()
            await producer.send_and_wait(source.topic, b'{"trip": "d", "bad": 1}', partition=1)
            assert not await reached()
            await (producer.commit_transaction() if commits else producer.abort_transaction())
            runs.await_decided(context.settings.kafka, source.topic)
        assert not await reached()  # it came
    finally:
        await producer.stop()


def test_marks_follow_from_the_labels_and_from_kafka_alone(made: Task, broker: Any, tmp_path: Path) -> None:
    asyncio.run(the_life_of_a_step(context_of(made, broker, tmp_path)))
