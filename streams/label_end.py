"""Whether everything that a partition holds has been read: what a step may say of it while nothing comes."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

_READ_MS = 200


class EndOfLog:
    """Asks Kafka with a consumer of its own, which is made when it is first needed."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._consumer: AIOKafkaConsumer | None = None
        self._asking = asyncio.Lock()

    async def reached(self, tp: TP, offset: int) -> bool:
        """Whether `tp` has no committed record at or above `offset`.

        It looks at the records themselves: behind the last one, Kafka's end may count marks of transactions too.
        """
        at = TopicPartition(*tp)
        async with self._asking:
            consumer = await self._started()
            consumer.assign([at])
            oldest = (await consumer.beginning_offsets([at]))[at]
            consumer.seek(at, max(offset, oldest))  # what was deleted will not come
            end = (await consumer.end_offsets([at]))[at]
            while await consumer.position(at) < end:
                if await consumer.getmany(timeout_ms=_READ_MS):
                    return False
            return True

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(
                bootstrap_servers=self._kafka.split(","),
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
            )
            await self._consumer.start()
        return self._consumer

    async def close(self) -> None:
        """Let go of the connection."""
        if self._consumer is not None:
            await self._consumer.stop()
