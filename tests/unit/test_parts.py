"""Updates in several records: put together whatever was lost, doubled or left half-sent, and never wrongly."""

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import Record
from streams.archive import version_rows
from streams.parts import PART_BYTES, Gathering, ended, gathered, split
from streams.topics import META, PART
from tests.learner_log import Logged

MOST = 3
payloads = st.binary(max_size=40)


def records(payload: bytes, most: int = MOST) -> list[Record]:
    """An update as the topic has it."""
    meta = {"sha256": sha256(payload).hexdigest()}
    return [
        Logged("t", 0, 0, 0, bytes(value), headers=headers) for headers, value in split(meta, payload, most)
    ]


def found(log: list[Record]) -> list[bytes]:
    """The payloads of the updates that are whole in the log; each has the hash that its meta names."""
    updates = list(gathered(log))
    assert all(meta["sha256"] == sha256(payload).hexdigest() for meta, payload in updates)
    return [bytes(payload) for _, payload in updates]


@given(payloads, st.integers(1, 50))
def test_an_update_is_cut_anywhere_and_is_whole_again(payload: bytes, most: int) -> None:
    log = records(payload, most)
    assert all(len(record.value or b"") <= most for record in log)
    assert len(log) == max(1, -(-len(payload) // most))
    assert found(log) == [payload]


def test_one_that_fits_is_one_record_without_parts() -> None:
    [record] = records(b"x" * MOST)
    assert [name for name, _ in record.headers] == [META]
    [record] = records(bytes(PART_BYTES), PART_BYTES)
    assert len(records(bytes(PART_BYTES + 1), PART_BYTES)) == 2


@given(st.lists(st.tuples(payloads, st.integers(0, 20)), max_size=6))
def test_what_a_learner_left_in_the_midst_harms_nothing(sent: list[tuple[bytes, int]]) -> None:
    """Each update is sent so many records far by one that dies, and then by one that does not."""
    log = [record for payload, far in sent for record in records(payload)[:-1][:far] + records(payload)]
    assert found(log) == [payload for payload, _ in sent]
    assert [json.loads(dict(record.headers)[META]) for record in log if ended(record)] == [
        {"sha256": sha256(payload).hexdigest()} for payload, _ in sent
    ]


@given(st.lists(payloads, min_size=1, max_size=5), st.integers(0, 30))
def test_who_begins_in_the_midst_gets_all_that_begins_later(sent: list[bytes], begin: int) -> None:
    log = [record for payload in sent for record in records(payload)]
    rest, at = [], 0
    for payload in sent:
        rest += [payload] if at >= begin else []
        at += len(records(payload))
    assert found(log[begin:]) == rest


@given(st.lists(payloads, min_size=1, max_size=4, unique=True), st.data())
def test_records_in_any_order_lost_or_doubled_never_make_what_was_not_sent(
    sent: list[bytes], data: st.DataObject
) -> None:
    log = [record for payload in sent for record in records(payload)]
    assert set(found(data.draw(st.lists(st.sampled_from(log), max_size=40)))) <= set(sent)


@given(payloads.filter(lambda payload: len(payload) > MOST))
def test_a_late_part_of_a_dead_learner_does_not_spoil_what_is_sent_again(payload: bytes) -> None:
    log = records(payload)
    for late in log[1:-1]:
        assert found([log[0], late, *log[1:]])[0] == payload


@given(payloads)
def test_whoever_only_wants_the_metas_gets_them_at_the_ends_with_the_sizes(payload: bytes) -> None:
    *others, last = records(payload)
    assert ended(last) == ({"sha256": sha256(payload).hexdigest()}, len(payload))
    assert all(ended(record) is None for record in others)


def test_the_archive_has_one_row_for_an_update_in_parts() -> None:
    named = {"version": "L1.2", "lineage": "L1", "refresh": 2, "kind": "swap", "event_ms": 5, "created_ms": 6}
    meta, payload = named | {"sha256": "f0"}, bytes(10)
    log = [
        Logged("t", 0, 0, 0, bytes(value), headers=headers) for headers, value in split(meta, payload, MOST)
    ]
    rows = [row for record in log for row in version_rows("clicks", record)]
    assert rows == [("clicks", "L1.2", "L1", 2, "swap", 10, "f0", 5, 6)]


@pytest.mark.parametrize(
    "header",
    [b"", b"no json", b"{}", b'{"number": 1, "count": 2, "size": "x", "sha256": ""}', b"\xff"],
)
def test_a_part_that_is_not_readable_is_an_error_of_that_record_only(header: bytes) -> None:
    gathering, wrong = Gathering(), Logged("t", 0, 0, 0, b"x", headers=[(PART, header)])
    first, *rest = records(b"0123456789")
    assert gathering.add(first) is None
    with pytest.raises(ValueError, match="part is not readable"):
        gathering.add(wrong)
    with pytest.raises(ValueError, match="part is not readable"):
        ended(wrong)
    assert [gathering.add(record) for record in rest][-1] is not None


@pytest.mark.parametrize("size", [5, 1 << 60])
def test_parts_without_end_are_not_gathered(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.parts.LARGEST_MODEL", 5)
    gathering = Gathering()
    for number in (1, 2, 3):
        part = json.dumps({"number": number, "count": 1 << 40, "size": size, "sha256": "x"}).encode()
        record = Logged("t", 0, 0, 0, b"xx", headers=[(PART, part)])
        if number < 3:
            assert gathering.add(record) is None
    with pytest.raises(ValueError, match="have more"):
        gathering.add(record)
