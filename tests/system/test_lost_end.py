"""A log that ends below what was processed of it: said with the fix, which helps; nothing waits for what is gone."""

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from faust.types import TP

from infra.errors import UserError
from infra.kafka import committed_offsets, create_topics, end_offsets, make_producer
from streams.recovery import check_end, replay
from streams.transaction import ExactlyOnce, Outputs

RECORDS, LOST = 5, 3


@pytest.fixture
def log(broker: Any) -> TP:
    """A log of some records."""
    topic = f"lost-{uuid4().hex[:8]}"
    create_topics(broker.address, {topic: (1, {})})
    with make_producer(broker.address) as producer:
        for n in range(RECORDS):
            producer.send(topic, value=b"%d" % n, partition=0)
    return TP(topic, 0)


def replayed(kafka: str, log: TP, first: int, end: int) -> list[int]:
    found: list[int] = []

    def fold(records: Sequence[Any]) -> None:
        found.extend(record.offset for record in records)

    asyncio.run(asyncio.wait_for(replay(kafka, log, first, end, fold), 60))
    return found


@pytest.mark.parametrize("snapshot", [0, 2, RECORDS, RECORDS + 1, RECORDS + LOST])
def test_a_replay_does_not_wait_for_what_is_gone(snapshot: int, broker: Any, log: TP) -> None:
    with pytest.raises(
        UserError, match=rf"ends at offset {RECORDS}, but was processed up to {RECORDS + LOST}"
    ):
        replayed(broker.address, log, snapshot, RECORDS + LOST)


def test_what_the_message_says_helps(broker: Any, log: TP) -> None:
    group = "driftline-lost-serve"

    async def taken_over(processed: int | None = None) -> int:
        owner = ExactlyOnce(broker.address, group, uuid4().hex)
        committed = await owner.open([log])
        if processed is not None:
            await owner.commit(Outputs(), {log: processed})
        await owner.close()
        return committed[log]

    asyncio.run(taken_over(RECORDS + LOST))
    with pytest.raises(UserError) as raised:
        replayed(broker.address, log, 0, asyncio.run(taken_over()))
    [said] = re.findall(r"python -m (kafka\.admin .+?)\)", raised.value.fix)
    command = [sys.executable, "-m", *shlex.split(said.replace("driftline-TASK-ROLE", group))]
    subprocess.run(command, check=True, capture_output=True)
    assert committed_offsets(broker.address, group, log.topic) == {0: RECORDS}
    assert replayed(broker.address, log, 0, asyncio.run(taken_over())) == list(range(RECORDS))


async def beside_an_open_transaction(kafka: str, log: TP) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=uuid4().hex)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(log.topic, b"x", partition=0)
            assert end_offsets(kafka, log.topic, read_committed=True) == {0: RECORDS}
            await check_end(kafka, log, RECORDS + 1)
    finally:
        await producer.stop()


def test_an_open_transaction_is_no_loss(broker: Any, log: TP) -> None:
    asyncio.run(beside_an_open_transaction(broker.address, log))
