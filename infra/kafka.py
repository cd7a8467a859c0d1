"""Kafka for everything but the hot path: topics, offsets, and plain consumers and producers, on kafka-python.

kafka-python's exceptions stay in here: the functions raise UserError, and whoever holds a consumer or
producer made here wraps its calls in `translated(address)`.
"""

import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from kafka import IsolationLevel, KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetSpec, TopicPartition
from kafka.errors import (
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    RetriableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from infra.errors import UserError

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # the largest record that any topic of ours carries: a dead letter
CONNECT_TIMEOUT_S = 15.0
_OPEN_S = 2.0  # a transaction that is open for so long has written something
# A broker that restarts should be found again within a second; kafka-python's own back-off grows to 30 s.
CLIENT: Mapping[str, Any] = {"reconnect_backoff_max_ms": 1000}


class Record(Protocol):
    """What kafka-python's ConsumerRecord has. `timestamp` is int milliseconds, `headers` are (name, bytes)."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turns kafka-python's exceptions into UserErrors that name the broker."""
    try:
        yield
    except UnknownTopicOrPartitionError as error:
        raise UserError(
            f"Kafka at {address} lacks a topic that is needed: {error}", "create it first"
        ) from error
    except KafkaConfigurationError as error:
        raise UserError(f"Kafka at {address}: {error}", "correct the address or the setting") from error
    except KafkaTimeoutError as error:
        raise UserError(
            f"Kafka at {address} does not answer: {error}",
            "start it, or correct the address (host:port) that you gave",
        ) from error
    except KafkaError as error:
        raise UserError(f"Kafka at {address} answers: {error}", "see the broker's log") from error


def _servers(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> list[str]:
    """The servers of `address`, once one of them accepts connections. Raises UserError.

    kafka-python is given an address only then, because a client of it that cannot connect leaves its thread
    and a socket for each attempt behind.
    """
    servers = [server.strip() for server in address.split(",")]
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise UserError(
                f"{server!r} is not an address of Kafka", "give it as HOST:PORT, such as localhost:9092"
            )
    deadline = time.monotonic() + timeout_s
    while error := _refusal(servers):
        if time.monotonic() > deadline:
            raise UserError(
                f"Kafka at {address} does not answer: {error.strerror or error}",
                "start it, or correct the address (host:port) that you gave",
            ) from error
        time.sleep(0.1)
    return servers


def _refusal(servers: Sequence[str]) -> OSError | None:
    """Why none of the servers accepts connections; None when one does."""
    refusal = OSError("no address")
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            refusal = error
        else:
            return None
    return refusal


@contextmanager
def _admin(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Iterator[Any]:
    with translated(address):
        admin = KafkaAdminClient(
            bootstrap_servers=_servers(address, timeout_s),
            bootstrap_timeout_ms=max(1, int(timeout_s * 1000)),
            **CLIENT,
        )
        try:
            yield admin
        finally:
            admin.close()


def wait_ready(address: str, timeout_s: float = 30.0) -> str:
    """Wait until a broker at `address` (host:port, with commas if several) is ready; return the cluster id.

    An open port is not enough: a starting broker accepts connections before it is registered with its
    controller, and a topic created then has no leader. Raises UserError after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            with _admin(address, max(left, 0.5)) as admin:
                cluster = admin.describe_cluster()
            if any(not broker.get("is_fenced") for broker in cluster["brokers"]):
                return str(cluster["cluster_id"])
        except UserError as error:
            if not isinstance(error.__cause__, RetriableError) or time.monotonic() >= deadline:
                raise
        if time.monotonic() >= deadline:
            raise UserError(
                f"Kafka at {address} is up, but no broker has joined the cluster", "see the broker's log"
            )
        time.sleep(0.1)


def create_topics(address: str, topics: Mapping[str, tuple[int, Mapping[str, str]]]) -> dict[str, int]:
    """Make the topics {name: (partitions, config)} that do not exist and wait until each has leaders.

    An existing topic is left as it is, so what is returned are the counts that really hold, {name:
    partitions}. The replication factor is the cluster's default. Raises UserError.
    """
    if not topics:
        return {}
    wanted = {
        name: {"num_partitions": count, "configs": dict(config)} for name, (count, config) in topics.items()
    }
    with _admin(address) as admin:
        answer = admin.create_topics(wanted, raise_errors=False)
        for topic in answer["topics"]:
            kind = for_code(topic["error_code"])
            if topic["error_code"] != 0 and kind is not TopicAlreadyExistsError:
                raise UserError(
                    f"Kafka at {address} did not make topic {topic['name']!r}: "
                    f"{kind.__name__} {topic.get('error_message') or ''}".rstrip(),
                    "give this user the right to create topics, or have them created for you",
                )
        admin.wait_for_topics(list(topics), timeout_ms=30_000)
        return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(topics))}


def partitions(address: str, topic: str) -> int:
    """How many partitions `topic` has; UserError when there is no such topic."""
    with _admin(address) as admin:
        return _partition_count(admin, address, topic)


def start_offsets(address: str, topic: str) -> dict[int, int]:
    """{partition: the oldest offset that is still kept}."""
    return _offsets(address, topic, OffsetSpec.EARLIEST, IsolationLevel.READ_UNCOMMITTED)


def end_offsets(address: str, topic: str, *, read_committed: bool = False) -> dict[int, int]:
    """{partition: the offset that the next record gets, or, with read_committed, where the first open
    transaction starts}. Offsets count transaction markers too: a difference is no exact number of records.
    """
    isolation = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
    return _offsets(address, topic, OffsetSpec.LATEST, isolation)


def committed_offsets(address: str, group: str, topic: str) -> dict[int, int]:
    """{partition: offset that `group` has committed for `topic`}; partitions without one are left out.

    The first question after a start can come too early, since Kafka only then makes or loads the topic that it
    keeps groups in; that is waited for, because "nothing is committed" would be a wrong answer.
    """
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    with _admin(address) as admin:
        while True:
            try:
                offsets = admin.list_group_offsets({group: None}).get(group, {})
                break
            except RetriableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    return {
        place.partition: offset.offset
        for place, offset in offsets.items()
        if place.topic == topic and offset.offset >= 0
    }


def group_ready(address: str, group: str, members: int = 1) -> bool:
    """Whether consumer group `group` has so many members, at least, and all of them have their partitions."""
    with _admin(address) as admin:
        try:
            described = admin.describe_groups([group]).get(group, {})
        except RetriableError:  # the topic that Kafka keeps groups in is made when the first one joins
            return False
    return described.get("group_state") == "Stable" and len(described.get("members", ())) >= members


def make_consumer(
    address: str, *, read_committed: bool = True, group: str | None = None, **config: Any
) -> KafkaConsumer:
    """A kafka-python consumer that starts at the beginning, does not commit by itself and makes no topic."""
    settings: dict[str, Any] = {
        "group_id": group,
        "isolation_level": "read_committed" if read_committed else "read_uncommitted",
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": 4 * 1024 * 1024,
        "max_poll_records": 5000,
        "bootstrap_timeout_ms": int(CONNECT_TIMEOUT_S * 1000),
    }
    with translated(address):
        return KafkaConsumer(bootstrap_servers=_servers(address), **{**CLIENT, **settings, **config})


def make_producer(address: str, **config: Any) -> KafkaProducer:
    """A kafka-python producer: idempotent, acknowledged by all replicas, lz4, for records up to 16 MiB."""
    settings: dict[str, Any] = {
        "acks": "all",
        "compression_type": "lz4",
        "linger_ms": 5,
        "batch_size": 64 * 1024,
        "max_request_size": MAX_MESSAGE_BYTES,
        "allow_auto_create_topics": False,
        "bootstrap_timeout_ms": int(CONNECT_TIMEOUT_S * 1000),
    }
    with translated(address):
        return KafkaProducer(bootstrap_servers=_servers(address), **{**CLIENT, **settings, **config})


def polls(
    consumer: Any, ends: Mapping[Any, int], until_s: float = math.inf
) -> Iterator[dict[Any, list[Record]]]:
    """What each poll finds, perhaps nothing, until the consumer is past these ends of its partitions.

    Raises TimeoutError when it is not by `until_s` of the monotonic clock.
    """
    # The position, unlike the last record, also moves over transaction markers and aborted records.
    while any(consumer.position(place) < end for place, end in ends.items()):
        if time.monotonic() > until_s:
            raise TimeoutError
        yield consumer.poll(timeout_ms=200)


def read_all(
    address: str,
    topic: str,
    *,
    read_committed: bool = True,
    newest: int | None = None,
    timeout_s: float = 60.0,
) -> list[Record]:
    """Every record of `topic` that is there now, by partition and then by offset.

    With read_committed (the default) records of aborted and of still open transactions are not among them. With
    `newest`, those at the newest so many offsets of each partition.
    """
    ends = end_offsets(address, topic, read_committed=read_committed)
    found: dict[int, list[Record]] = {partition: [] for partition in ends}
    consumer = make_consumer(address, read_committed=read_committed)
    deadline = time.monotonic() + timeout_s
    with translated(address):
        try:
            places = {TopicPartition(topic, partition): end for partition, end in ends.items()}
            _begin(consumer, {at: 0 if newest is None else end - newest for at, end in places.items()})
            for polled in polls(consumer, places, deadline):
                for place, records in polled.items():
                    found[place.partition].extend(r for r in records if r.offset < places[place])
        except TimeoutError:
            said = f"Kafka at {address} did not hand out {topic} in {timeout_s:g} s"
            raise UserError(said, "try again") from None
        finally:
            consumer.close()
    return [record for partition in sorted(found) for record in found[partition]]


def records_left(
    address: str, topic: str, offsets: Mapping[int, int], counts: Callable[[Record], bool] = lambda _: True
) -> bool:
    """Whether `topic` has a committed record at or above `offsets`, by partition (0 for one that is not named).

    It looks at the records themselves: behind the last one, Kafka's end may count marks of transactions too. What an
    open transaction has written counts as a record; a record of which `counts` is false does not.
    """
    ends = end_offsets(address, topic)
    behind = {p: offsets.get(p, 0) for p, end in ends.items() if offsets.get(p, 0) < end}
    if not behind:
        return False
    consumer = make_consumer(address, read_committed=True)
    deadline = time.monotonic() + _OPEN_S
    with translated(address):
        try:
            places = {TopicPartition(topic, partition): ends[partition] for partition in behind}
            _begin(consumer, {at: behind[at.partition] for at in places})
            return any(
                time.monotonic() > deadline or any(counts(r) for records in found.values() for r in records)
                for found in polls(consumer, places)
            )
        finally:
            consumer.close()


def _begin(consumer: Any, offsets: Mapping[TopicPartition, int]) -> None:
    """Let it read from these offsets on, or from what is left: what was deleted will not come."""
    consumer.assign(list(offsets))
    for place, oldest in consumer.beginning_offsets(list(offsets)).items():
        consumer.seek(place, max(offsets[place], oldest))


def _partition_count(admin: Any, address: str, topic: str) -> int:
    described = admin.describe_topics([topic])[0]
    if described["error_code"] != 0:
        raise UserError(f"Kafka at {address} has no topic {topic!r}", "create it, or correct the name")
    return len(described["partitions"])


def _offsets(address: str, topic: str, which: Any, isolation: Any) -> dict[int, int]:
    with _admin(address) as admin:
        places = [TopicPartition(topic, n) for n in range(_partition_count(admin, address, topic))]
        answer = admin.list_partition_offsets(dict.fromkeys(places, which), isolation_level=isolation)
    return {place.partition: int(answer[place].offset) for place in places}
