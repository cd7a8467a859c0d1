"""Kafka's fence of KIP-447 for aiokafka: offsets of a transaction are taken from the present owner of a partition only.

aiokafka's producer names the group whose offsets it adds to a transaction, but not who it is in that group, and its
clients read offsets that a transaction under way is about to change. Here are the newer versions of both requests:

* `GroupProducer` sends `TxnOffsetCommit` version 3, with the member and the generation in which it was given its
  partitions. Once Kafka has given them to anybody else, that generation is over, and the transaction is refused.
* `stable_offsets` sends `OffsetFetch` version 7 with `require_stable`: Kafka answers only when no open transaction is
  going to change the offset.

Both came with Kafka 2.5. (https://cwiki.apache.org/confluence/x/gJz9Bg; the layouts are those of Kafka's
clients/src/main/resources/common/message.)
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import CoordinationType
from aiokafka.errors import ProducerFenced, for_code
from aiokafka.producer.sender import Sender, TxnOffsetCommitHandler
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from faust.types import TP

from infra.errors import UserError

Versions = dict[int, tuple[int, int]]
_TEXT = CompactString("utf-8")
_UNSTABLE = 88  # UNSTABLE_OFFSET_COMMIT
_NOT_OURS = {22, 25, 82}  # ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID


class Membership(NamedTuple):
    """Who a worker is in its consumer group, as Kafka gave it its partitions: `instance` for a static member."""

    member: str
    generation: int
    instance: str | None = None


NOBODY = Membership("", -1)
"""No member of any group: Kafka then looks at the producer's id only, as before KIP-447."""


def _topics(*fields: tuple[str, Any]) -> tuple[str, Any]:
    """The field that both requests and both answers have: by topic, for each partition these fields."""
    partitions = CompactArray(("partition", Int32), *fields, ("tags", TaggedFields))
    return "topics", CompactArray(("name", _TEXT), ("partitions", partitions), ("tags", TaggedFields))


_PLACE = (("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT))


class _TxnOffsetCommitResponse(Response):  # type: ignore[misc]
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), _topics(("error_code", Int16)), ("tags", TaggedFields))


class _TxnOffsetCommitStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 28
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("group_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", _TEXT),
        ("group_instance_id", _TEXT),
        _topics(*_PLACE),
        ("tags", TaggedFields),
    )


class _OffsetFetchResponse(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        _topics(*_PLACE, ("error_code", Int16)),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class _OffsetFetchStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _OffsetFetchResponse
    SCHEMA = Schema(
        ("group_id", _TEXT),
        (
            "topics",
            CompactArray(("name", _TEXT), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class _OneVersion:
    """A request as aiokafka's connections take it (they ask for `prepare` only), of which one version will do."""

    def __init__(self, struct: type[Any], *values: Any) -> None:
        self._struct, self._values = struct, values

    def prepare(self, versions: Versions) -> Any:
        """What is sent, to a broker that takes these versions by API. Raises UserError to one that is too old."""
        lowest, highest = versions.get(self._struct.API_KEY, (0, 0))
        if not lowest <= self._struct.API_VERSION <= highest:
            raise UserError(
                "this Kafka is older than 2.5, or a stand-in for it", "Driftline needs Kafka 2.5 or newer"
            )
        return self._struct(*self._values)


_TxnOffsetCommit = partial(_OneVersion, _TxnOffsetCommitStruct)
_OffsetFetch = partial(_OneVersion, _OffsetFetchStruct)


def _by_topic(tps: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for topic, partition in sorted(tps):
        found[topic].append(partition)
    return found


class _Handler(TxnOffsetCommitHandler):  # type: ignore[misc]
    """Adds who we are to the request, and takes "that is not you any more" for what it is."""

    def create_request(self) -> _OneVersion:
        manager, who, offsets = self._sender._txn_manager, self._sender.membership, self._offsets
        topics: list[Any] = [
            (topic, [self._place(TopicPartition(topic, p), offsets) for p in partitions], {})
            for topic, partitions in _by_topic(list(offsets)).items()
        ]
        return _TxnOffsetCommit(
            manager.transactional_id,
            self._group_id,
            manager.producer_id,
            manager.producer_epoch,
            who.generation,
            who.member,
            who.instance,
            topics,
            {},
        )

    @staticmethod
    def _place(tp: TopicPartition, offsets: Any) -> tuple[Any, ...]:
        return tp.partition, offsets[tp].offset, -1, offsets[tp].metadata, {}

    def handle_response(self, response: Any) -> float | None:
        errors = [
            (topic, [(partition, code) for partition, code, _ in partitions])
            for topic, partitions, _ in response.topics
        ]
        if any(code in _NOT_OURS for _, partitions in errors for _, code in partitions):
            raise ProducerFenced("the group has given the partitions to another worker")
        found: float | None = super().handle_response(SimpleNamespace(errors=errors))
        return found


class _Sender(Sender):  # type: ignore[misc]
    membership = NOBODY

    async def _do_txn_offset_commit(self, offsets: Any, group_id: str) -> None:
        node = await self._find_coordinator(CoordinationType.GROUP, group_id)
        await _Handler(self, offsets, group_id).do(node)


class GroupProducer(AIOKafkaProducer):  # type: ignore[misc]
    """A transactional producer that adds offsets as a member of their group. Takes the arguments of aiokafka's."""

    def __init__(self, *, retry_backoff_ms: int = 100, **options: Any) -> None:
        super().__init__(retry_backoff_ms=retry_backoff_ms, **options)
        self._sender = _Sender(
            self.client,
            acks=-1,
            txn_manager=self._txn_manager,
            retry_backoff_ms=retry_backoff_ms,
            message_accumulator=self._message_accumulator,
            request_timeout_ms=self._request_timeout_ms,
        )

    def joined(self, membership: Membership) -> None:
        """Act as this member from now on."""
        self._sender.membership = membership


class Unstable(Exception):
    """A transaction is open that is going to change the offset of some partition."""


async def stable_offsets(
    admin: AIOKafkaAdminClient, group: str, sources: Sequence[TP]
) -> dict[TP, int | None]:
    """The group's committed offset of each source; None where it has none.

    Raises Unstable while a transaction is open that has a new one, and aiokafka's KafkaError.
    """
    topics: list[Any] = [(topic, partitions, {}) for topic, partitions in _by_topic(sources).items()]
    coordinator = await admin.find_coordinator(group)
    response = await admin._send_request(_OffsetFetch(group, topics, True, {}), coordinator)
    codes = [response.error_code]
    found: dict[TP, int | None] = {}
    for topic, partitions, _ in response.topics:
        for partition, offset, _, _, code, _ in partitions:
            found[TP(topic, partition)] = None if offset < 0 else offset
            codes.append(code)
    if _UNSTABLE in codes:
        raise Unstable
    for code in filter(None, codes):
        raise for_code(code)(f"the offsets of {group} cannot be read")
    return found


def signature(transactional_id: str, member: str) -> str:
    """The metadata of a committed offset: by which producer, and for which member of the group."""
    return f"{transactional_id} {member}"


async def dead_writers(admin: AIOKafkaAdminClient, group: str, sources: Sequence[TP]) -> set[str]:
    """Ids of the producers that committed the offsets of these sources last, and are no members of the group any more.

    Whatever they have open will never be committed, and holds up who reads what they wrote. Raises KafkaError.
    """
    places = [TopicPartition(*tp) for tp in sources]
    stored = await admin.list_consumer_group_offsets(group, partitions=places)
    signed = {each.metadata.rpartition(" ")[::2] for each in stored.values() if each.metadata}
    if not signed:
        return set()
    (described,) = await admin.describe_consumer_groups([group])
    members = {member[0] for _, _, _, _, _, found, *_ in described.groups for member in found}
    return {transactional_id for transactional_id, member in signed if member not in members}
