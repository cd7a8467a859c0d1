"""A Faust transport whose message is all that one poll returned of a topic.

Stock Faust builds an event, a queue entry and an acknowledgement for every record. Here one `Message` carries a
`Fetch` for each partition: every record that the poll returned for it. Agents, workers, membership and rebalancing
stay Faust's; the per-record cost goes. Three things differ from the stock transport:

* records are read with isolation `read_committed`, and partitions are handed out by range, so that one worker owns the
  same partition number of every topic with the same number of partitions (co-partitioning);
* Faust never commits an offset. Whoever processes a partition commits, together with what it wrote;
* every fetch is numbered, so a fetch that gets lost inside the framework is noticed by `Fetch.follows`.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from infra.settings import Settings
from streams.membership import NOBODY, Membership

FETCH_BYTES = 512 << 10
"""About the most bytes of one fetch of one partition; a larger record still comes, alone (KIP-74).

aiokafka hands out a whole fetch before it looks at the next partition: large fetches would starve the later stages of
a worker that catches up, and fill its memory."""

FETCH_WAIT_MS = 50
"""How long the broker may hold a fetch back. aiokafka has one under way at a time, and a partition that was handed out
meanwhile waits for its end, also where the fetch waits for other partitions' records."""

_BUSY_S = 0.005  # how soon to look again while some partitions are busy
_SWITCH_S = 0.0005
"""How long a thread of the worker may keep the interpreter while others wait: Python's 5 ms are as long as a pass, and
the consumer, snapshots, Feast and a model that is prepared have threads of their own."""

_NEVER_S = 20 * 86_400.0
"""aiokafka leaves the group when nobody polled for so long, and joins again only once somebody does; but Faust does not
poll without partitions, nor do we while all of them are behind. (20 days of ms fit in 32 bits.)"""

_STALE_S = 0.003
"""After so long without asking, what aiokafka has at hand is as old; what came meanwhile is worth so long a wait."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """The records of one poll of one partition, in offset order.

    `epoch` changes with every seek of the consumer; `sequence` counts the fetches of the partition within the epoch,
    from 0.
    """

    topic: str
    partition: int
    epoch: int
    sequence: int
    records: tuple[Any, ...]

    def follows(self, previous: "Fetch | None") -> bool:
        """Whether nothing was dropped between `previous` and this fetch."""
        if previous is None or previous.epoch != self.epoch:
            return self.sequence == 0
        return self.sequence == previous.sequence + 1


async def to_committed(consumer: AIOKafkaConsumer) -> dict[Any, int | None]:
    """Go to what is committed, or to the beginning; the offsets as they are stored.

    aiokafka's own method leaves a partition where it is that has no commit, or one at 0.
    """
    found: dict[Any, int | None] = await consumer.seek_to_committed()
    for at, offset in found.items():
        if not offset and at in consumer.assignment():
            consumer.seek(at, 0)  # where that is gone, `auto_offset_reset` says where to begin
    return found


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = RangePartitionAssignor
        return AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=transport.instance,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=30_000,
        )

    async def seek_to_committed(self) -> Any:
        """See `to_committed`."""
        return await self.call_thread(lambda: to_committed(self._ensure_consumer()))

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's watchdog for acknowledged offsets: meaningless here, since Faust acknowledges nothing."""


class BatchConsumer(driver.Consumer):
    """Delivers one message a topic and poll, and leaves every commit to the owner of the partitions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch = 0  # odd while a seek is under way
        self._sequence: dict[TP, int] = {}
        self._asked_s = 0.0  # when the last poll ended, by the loop's clock

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def membership(self) -> Membership:
        """Who we are in the group, as it stands: to be asked while the group hands out partitions, for later on."""
        thread: Any = self._thread
        coordinator = thread._consumer._coordinator
        if coordinator.generation < 0:
            return NOBODY
        instance = getattr(self.transport, "instance", None)
        return Membership(coordinator.member_id, coordinator.generation, instance)

    def ends(self) -> dict[TP, tuple[int, int]]:
        """Of the partitions that are read, the next offset to read, and the end of the log as the latest fetch told it.

        In any thread; what is not known yet is left out.
        """
        thread: Any = self._thread
        consumer = getattr(thread, "_consumer", None)
        subscription = consumer and consumer._subscription.subscription
        assignment = subscription and subscription.assignment
        states = {TP(*tp): assignment.state_value(tp) for tp in assignment.tps} if assignment else {}
        return {
            tp: (state.position, state.highwater)
            for tp, state in states.items()
            if state is not None and state.has_valid_position and state.highwater is not None
        }

    async def perform_seek(self) -> None:
        """Seek to the committed offsets; fetches that overlap the seek are thrown away and fetched again."""
        self._epoch += 1 + self._epoch % 2
        epoch = self._epoch
        await super().perform_seek()
        self._sequence.clear()
        if self._epoch == epoch:
            self._epoch += 1

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        transport: Any = self.transport
        busy = await transport.gate()
        if busy:  # what they have fetched stays with aiokafka, which then fetches no more for them
            active_partitions, timeout = active_partitions - busy, _BUSY_S
            if not active_partitions:
                await asyncio.sleep(_BUSY_S)
                return {}
        epoch, clock = self._epoch, self.loop.time
        records = await super()._getmany(active_partitions, timeout)
        if records and clock() - self._asked_s > _STALE_S:
            more = await super()._getmany(active_partitions, _STALE_S)
            records = {tp: [*records.get(tp, ()), *more.get(tp, ())] for tp in {**records, **more}}
        self._asked_s = clock()
        if records and (epoch != self._epoch or epoch % 2):
            # Fetched while the position moved: part of it may come from before the seek. Start again from the commit.
            await self.perform_seek()
            return {}
        fetches: dict[str, list[Fetch]] = {}
        for tp, batch in records.items():
            if batch:
                fetches.setdefault(tp.topic, []).append(self._number(tp, batch))
        # To Faust it is one record of the first of them: a message costs it two tasks.
        return {TP(topic, found[0].partition): [tuple(found)] for topic, found in fetches.items()}

    def _number(self, tp: TP, batch: list[Any]) -> Fetch:
        sequence = self._sequence.get(tp, 0)
        self._sequence[tp] = sequence + 1
        return Fetch(tp.topic, tp.partition, self._epoch, sequence, tuple(batch))

    def _to_message(self, tp: TP, fetches: tuple[Fetch, ...]) -> ConsumerMessage:
        last = fetches[0].records[-1]
        return ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            last.headers,
            None,
            fetches,  # type: ignore[arg-type]
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets inside a fetch are no gaps."""

    async def commit(self, *args: Any, **kwargs: Any) -> bool:
        """Nothing: the owner of the partition commits."""
        return True

    async def force_commit(self, *args: Any, **kwargs: Any) -> bool:
        """Nothing: the owner of the partition commits."""
        return True


async def _open() -> Set[TP]:
    return frozenset()


class BatchTransport(driver.Transport):
    """The stock aiokafka transport with the batch consumer. The app's owner may set `gate`."""

    Consumer = BatchConsumer
    instance: str | None = None  # name of this worker as a static member of its group
    gate: Callable[[], Awaitable[Set[TP]]] = staticmethod(
        _open
    )  # waits until it is time to read; what not to read


def make_app(name: str, settings: Settings, *, max_poll_records: int = 4000) -> faust.App:
    """A Faust app on the batch transport.

    Args:
        name: consumer group and app id.
        settings: where Kafka listens and where Faust keeps its (empty) data folder.
        max_poll_records: most records in one fetch over all partitions.
    """
    sys.setswitchinterval(_SWITCH_S)
    settings.data.mkdir(parents=True, exist_ok=True)  # Faust makes its own folder, but none above it
    app = faust.App(
        name,
        broker=";".join(f"kafka://{address}" for address in settings.kafka.split(",")),
        datadir=str(settings.data / "faust"),
        topic_partitions=settings.partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        web_enabled=False,
        stream_wait_empty=False,
        stream_buffer_maxsize=4,
        broker_max_poll_records=max_poll_records,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        broker_request_timeout=20.0,
        broker_rebalance_timeout=20.0,
        broker_max_poll_interval=_NEVER_S,
        worker_redirect_stdouts=False,
    )
    transport = BatchTransport([*app.conf.broker], app)
    transport.instance = settings.worker or None
    app.transport = transport
    return app
