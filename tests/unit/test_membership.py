"""What needs no broker of the fence by membership: old brokers, and the layout of the requests."""

from io import BytesIO
from typing import Any

import pytest

from infra.errors import UserError
from streams.membership import (
    _OffsetFetch,
    _OffsetFetchStruct,
    _TxnOffsetCommit,
    _TxnOffsetCommitStruct,
    signature,
)


@pytest.mark.parametrize("request_of", [_OffsetFetch, _TxnOffsetCommit])
@pytest.mark.parametrize("versions", [{}, {9: (0, 6), 28: (0, 2)}])
def test_an_old_kafka_is_told_of_in_a_sentence(
    request_of: type, versions: dict[int, tuple[int, int]]
) -> None:
    with pytest.raises(UserError, match=r"older than 2\.5"):
        request_of().prepare(versions)


def test_requests_are_read_back_as_they_were_written() -> None:
    fetch: Any = ("group", [("events", [0, 3], {})], True, {})
    made = _OffsetFetch(*fetch).prepare({9: (1, 10)})
    assert _OffsetFetchStruct.decode(BytesIO(made.encode())).to_object() == made.to_object()
    commit: Any = (
        "id",
        "group",
        7,
        2,
        5,
        "member",
        None,
        [("events", [(0, 11, -1, "id member", {})], {})],
        {},
    )
    sent = _TxnOffsetCommit(*commit).prepare({28: (0, 5)})
    again = _TxnOffsetCommitStruct.decode(BytesIO(sent.encode()))
    assert again.to_object() == sent.to_object()
    assert (again.generation_id, again.member_id, again.group_instance_id) == (5, "member", None)


def test_a_signature_names_producer_and_member() -> None:
    assert signature("driftline-clicks-serve-a", "m-1").rpartition(" ")[::2] == (
        "driftline-clicks-serve-a",
        "m-1",
    )
