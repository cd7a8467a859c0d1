"""Dead letters: the same bytes and key, the place, the reason; and nothing that Kafka would refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.dead_letters import LONGEST_KEY, LONGEST_VALUE, add_dead_letters
from streams.events import Broken, EventDecoder
from streams.topics import MAX_RECORD_BYTES
from streams.transaction import Outputs
from tests.stream_records import HIDDEN, NOW_MS, Record, task


def letters(*broken: Broken, partitions: int = 4) -> Outputs:
    outputs = Outputs()
    add_dead_letters(outputs, "trips.dead-letters", partitions, "trips", broken)
    return outputs


@given(st.binary(max_size=30), st.none() | st.binary(max_size=9), st.integers(0, 9), st.integers(0, 2**40))
def test_bytes_place_and_reason(value: bytes, key: bytes | None, partition: int, offset: int) -> None:
    record = Record(value, offset, NOW_MS, partition, "trips.labels", key)
    [((topic, to), [(found_key, found_value, headers)])] = letters(
        Broken(record, "why", "höw")
    ).records.items()
    assert (topic, to) == ("trips.dead-letters", partition % 4)
    assert (found_key, found_value) == (key, value)
    assert {name: text.decode() for name, text in headers} == {
        "driftline.task": "trips",
        "driftline.reason": "why",
        "driftline.detail": "höw",
        "driftline.topic": "trips.labels",
        "driftline.partition": str(partition),
        "driftline.offset": str(offset),
        "driftline.timestamp": str(NOW_MS),
    }


@pytest.mark.parametrize(("key", "value"), [(None, b""), (b"k", None)])
def test_a_null_value_stays_null_where_kafka_allows_it(key: bytes | None, value: bytes | None) -> None:
    [[(found_key, found_value, _)]] = letters(Broken(Record(None, key=key), "null", "")).records.values()
    assert (found_key, found_value) == (key, value)


def test_one_letter_for_each_broken_record_in_order() -> None:
    records = [Record(b"{", 4), Record(None, 5), Record(b"[]", 6)]
    _, broken = EventDecoder(task(), HIDDEN).decode(records)
    [found] = letters(*broken).records.values()
    assert [(value, dict(headers)["driftline.offset"]) for _, value, headers in found] == [
        (b"{", b"4"), (b"", b"5"), (b"[]", b"6"),
    ]  # fmt: skip


def test_what_kafka_would_refuse_is_cut_and_says_so() -> None:
    record = Record(b"v" * (20 << 20), key=b"k" * (2 << 20))
    [[(key, value, headers)]] = letters(Broken(record, "too_large", "x" * 1000)).records.values()
    assert key == b"k" * LONGEST_KEY
    assert value == b"v" * LONGEST_VALUE
    assert dict(headers)["driftline.cut"] == b"2097152 20971520"
    overhead = sum(len(name) + len(text) + 10 for name, text in headers) + 200
    assert len(key) + len(value) + overhead < MAX_RECORD_BYTES


def test_text_that_is_no_unicode_does_not_stop_a_letter() -> None:
    [[(_, _, headers)]] = letters(Broken(Record(b""), "invalid", "\ud800")).records.values()
    assert dict(headers)["driftline.detail"] == b"?"
