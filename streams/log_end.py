"""Whether everything that a partition holds has been read: what a step may say of it while nothing comes."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

_READ_MS = 200


class EndOfLog:
    """Asks Kafka with consumers of its own, which are made when they are first needed."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._consumers: dict[str, AIOKafkaConsumer] = {}  # by isolation level
        self._asking = asyncio.Lock()

    async def reached(self, tp: TP, offset: int) -> bool:
        """Whether `tp` has no record at or above `offset`, nor one in a transaction that is still open.

        It looks at the records themselves: behind the last one, Kafka's end may count marks of transactions too.
        """
        at = TopicPartition(*tp)
        async with self._asking:
            consumer = await self._started("read_committed")
            consumer.assign([at])
            oldest = (await consumer.beginning_offsets([at]))[at]
            consumer.seek(at, max(offset, oldest))  # what was deleted will not come
            end = (await consumer.end_offsets([at]))[at]
            while await consumer.position(at) < end:
                if await consumer.getmany(timeout_ms=_READ_MS):
                    return False
            # That was where the first open transaction begins: what it holds may yet come, so the log ends behind it.
            everything = await self._started("read_uncommitted")
            return bool((await everything.end_offsets([at]))[at] <= await consumer.position(at))

    async def _started(self, isolation: str) -> AIOKafkaConsumer:
        if isolation not in self._consumers:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._kafka.split(","),
                isolation_level=isolation,
                enable_auto_commit=False,
                auto_offset_reset="none",
            )
            await consumer.start()
            self._consumers[isolation] = consumer
        return self._consumers[isolation]

    async def close(self) -> None:
        """Let go of the connections."""
        for consumer in self._consumers.values():
            await consumer.stop()
