"""The decoder: whatever bytes come, each record becomes one row or one Broken with a reason."""

import json
import math
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events import LONGEST_ID, EventDecoder, LabelDecoder
from streams.rows import Rows
from streams.times import LATEST_MS, calendar, time_parser
from streams.wire import encode_rows
from tests.stream_records import HIDDEN, HOUR, NOW_MS, Record, event, sent, task

TASK = task()
DECODER = EventDecoder(TASK, HIDDEN)
LABELS = LabelDecoder(TASK, HIDDEN)


def good(record: Record, decoder: EventDecoder = DECODER) -> Rows:
    rows, broken = decoder.decode([record])
    assert (len(rows), broken) == (1, [])
    return rows


def refused(record: Record, decoder: EventDecoder | LabelDecoder = DECODER) -> tuple[str, str]:
    rows, broken = decoder.decode([record])
    assert len(rows) == 0
    assert [letter.record for letter in broken] == [record]
    return broken[0].reason, broken[0].detail


def test_a_good_event_fills_its_columns() -> None:
    rows = good(sent(event(), offset=7, partition=3, timestamp=NOW_MS + 5))
    assert rows.ids == ["t-1"]
    assert (rows.event_ms.tolist(), rows.received_ms.tolist()) == ([NOW_MS], [NOW_MS + 5])
    assert (rows.partition.tolist(), rows.offset.tolist(), rows.late.tolist()) == ([3], [7], [False])
    assert rows.keys.tolist() == [[HIDDEN.one("driver", "Anna"), HIDDEN.one("zone", 4)]]
    assert rows.categories.tolist() == [[HIDDEN.one("city", "Ulm")]]
    assert rows.values.tolist() == [[7.5, 1.0]]
    assert rows.numbers[0, 0] == 7.5
    np.testing.assert_array_equal(rows.numbers[0, 1:5], calendar(rows.event_ms)[0].astype(np.float32))
    assert np.isnan(rows.numbers[0, 5:]).all()
    assert rows.schema == TASK.rows_hash


def test_what_is_optional_may_be_null_or_absent() -> None:
    for fields in (event(tip=None, city=None), json.loads(json.dumps(event()).replace('"Ulm"', "null"))):
        rows = good(sent(fields))
        assert rows.categories.tolist() == [[0]]
    assert math.isnan(good(sent(event(tip=None))).values[0, 1])


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, "null", "no value"),
        (b"", "malformed", "truncated"),
        (b"{", "malformed", "truncated"),
        (b"not json", "malformed", "invalid character"),
        (b"\xff\xfe\x00", "malformed", "invalid"),
        (b'{"trip": "\xff"}', "malformed", "UTF-8"),
        (b'{"trip": "\\ud800", "at": 1}', "malformed", "surrogate"),
        (b'{"x": ' + b"[" * 100_000, "malformed", "nested"),
        (b'{"x": ' + b'{"x": ' * 100_000, "malformed", "nested"),
        (b"[" * 100_000, "invalid", "Expected `object`"),
        (b"null", "invalid", "got `null`"),
        (b'"text"', "invalid", "got `str`"),
        (b"{}", "invalid", "missing required field"),
        (b"x" * 2_000_000, "too_large", "2000000 bytes"),
    ],
)
def test_bytes_that_are_no_event(value: bytes | None, reason: str, detail: str) -> None:
    found, said = refused(Record(value))
    assert found == reason
    assert detail in said


@pytest.mark.parametrize(
    ("raw", "reason", "detail"),
    [
        ({"trip": '""'}, "invalid", "trip is empty"),
        ({"trip": "1.5"}, "invalid", "$.trip"),
        ({"trip": "true"}, "invalid", "$.trip"),
        ({"trip": "null"}, "invalid", "$.trip"),
        ({"trip": f'"{"x" * 513}"'}, "invalid", "513 characters"),
        ({"trip": "9" * 600}, "invalid", "600 characters"),
        ({"trip": "9" * 5000}, "invalid", "out of range"),
        ({"at": "-1"}, "invalid_time", "before 1970"),
        ({"at": str(NOW_MS + HOUR + 1)}, "future", "serving.max_future"),
        ({"at": "9" * 300}, "invalid_time", "9999"),
        ({"at": '"2024-01-01"'}, "invalid", "$.at"),
        ({"at": "true"}, "invalid", "$.at"),
        ({"fare": '"7"'}, "invalid", "Expected `float`, got `str`"),
        ({"fare": "null"}, "invalid", "$.fare"),
        ({"fare": "NaN"}, "malformed", ""),
        ({"fare": "Infinity"}, "malformed", ""),
        ({"fare": "1e999"}, "invalid", "out of range"),
        ({"fare": "-1e999"}, "invalid", "out of range"),
        ({"fare": "1000.5"}, "invalid", "above max 1000"),
        ({"fare": "-2000"}, "invalid", "below min -1000"),
        ({"fare": "[1]"}, "invalid", "got `array`"),
        ({"tip": "false"}, "invalid", "$.tip"),
        ({"city": '"Oberammergau"'}, "invalid", "12 characters, more than max_length 8"),
        ({"city": "123456789"}, "invalid", "9 characters"),
        ({"city": '{"name": "Ulm"}'}, "invalid", "$.city"),
        ({"driver": "null"}, "invalid", "$.driver"),
        ({"zone": "null"}, "invalid", "$.zone"),
    ],
)
def test_fields_that_cannot_be_used(raw: dict[str, str], reason: str, detail: str) -> None:
    texts = {name: json.dumps(value) for name, value in event().items()} | raw
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in texts.items()) + "}"
    found, said = refused(Record(text.encode()))
    assert found == reason
    assert detail in said


def test_a_missing_field_is_named() -> None:
    assert refused(sent(event(fare=None))) == ("invalid", "Object missing required field `fare`")


def test_a_record_without_a_timestamp_has_no_present() -> None:
    reason, detail = refused(sent(event(), timestamp=-1))
    assert (reason, "no timestamp" in detail) == ("invalid_time", True)


def test_kafkas_timestamp_does_not_let_a_time_overflow() -> None:
    reason, _ = refused(sent(event(at=2**63), timestamp=2**63 - 1))
    assert reason == "invalid_time"
    assert good(sent(event(at=LATEST_MS), timestamp=2**62)).event_ms.tolist() == [LATEST_MS]


def test_the_last_of_two_equal_keys_counts_and_unknown_ones_are_skipped() -> None:
    text = json.dumps(event())[:-1] + ', "fare": 9, "note": {"deep": [1, {"x": null}]}}'
    assert good(Record(text.encode())).values[0, 0] == 9.0


def test_field_names_may_have_any_letters_escaped_or_not() -> None:
    odd = task(driver='"Fahrer in Köln"', key='"Fahrer in Köln"')
    decoder = EventDecoder(odd, HIDDEN)
    fields = event(driver=None) | {"Fahrer in Köln": "Anna"}
    rows = [
        good(Record(json.dumps(fields, ensure_ascii=escaped).encode()), decoder) for escaped in (True, False)
    ]
    assert (
        rows[0].keys.tolist()
        == rows[1].keys.tolist()
        == [[HIDDEN.one("Fahrer in Köln", "Anna"), rows[0].keys[0, 1]]]
    )


def test_a_number_beyond_float32_is_clipped_for_the_model_only() -> None:
    wide = task(fare='{ type = "number" }')
    rows = good(sent(event(fare=1e300)), EventDecoder(wide, HIDDEN))
    assert rows.values[0, 0] == 1e300
    assert rows.numbers[0, 0] == np.finfo(np.float32).max


def test_good_and_broken_records_keep_their_order() -> None:
    records = [sent(event(trip=f"t-{i}"), offset=i) if i % 3 else Record(b"?", i) for i in range(10)]
    rows, broken = DECODER.decode(records)
    assert rows.offset.tolist() == [1, 2, 4, 5, 7, 8]
    assert [letter.record.offset for letter in broken] == [0, 3, 6, 9]
    assert [len(part) for part in DECODER.decode([])] == [0, 0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
VALID = JSON.filter(lambda value: "Infinity" not in (text := json.dumps(value)) and "NaN" not in text)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "trip": JSON, "at": JSON | st.integers(0, 2 * NOW_MS), "fare": JSON, "tip": JSON, "city": JSON,
        "driver": JSON, "zone": JSON, "bad": JSON, "other": JSON,
    },
)  # fmt: skip
NEARLY = FIELDS.map(lambda fields: json.dumps(event() | fields).encode("utf-8", "surrogatepass"))


def mutated(parts: tuple[bytes, int, bytes]) -> bytes:
    data, at, junk = parts
    return data[: at % (len(data) + 1)] + junk + data[at % (len(data) + 1) :]


ANY = (
    st.binary(max_size=60)
    | NEARLY
    | st.tuples(NEARLY, st.integers(0, 500), st.binary(max_size=4)).map(mutated)
)
STAMPS = st.sampled_from([NOW_MS, 0, -1, 2**62])


@settings(max_examples=150)
@given(st.lists(st.tuples(st.none() | ANY, STAMPS), max_size=8))
def test_any_bytes_become_a_row_or_a_reason(stream: list[tuple[bytes | None, int]]) -> None:
    records = [Record(value, offset, stamp) for offset, (value, stamp) in enumerate(stream)]
    rows, broken = DECODER.decode(records)
    offsets = [*rows.offset.tolist(), *(letter.record.offset for letter in broken)]
    assert sorted(offsets) == list(range(len(records)))
    assert all(letter.reason and letter.detail for letter in broken)
    assert np.isfinite(rows.values[:, 0]).all()
    assert ((rows.event_ms >= 0) & (rows.event_ms <= LATEST_MS)).all()
    assert all(0 < len(event_id) <= LONGEST_ID for event_id in rows.ids)
    labels, refusals = LABELS.decode(records)
    assert len(labels.ids) + len(refusals) == len(records)
    assert set(labels.label.tolist()) <= {0.0, 1.0}


@settings(max_examples=40)
@given(st.text("abcdefgh", min_size=8, max_size=8), st.dictionaries(st.text(max_size=8), VALID, max_size=4))
def test_neither_raw_values_nor_undeclared_fields_get_out(name: str, extra: dict[str, Any]) -> None:
    declared = {**extra, **event(driver=name, zone=name, city=name)}
    with_extra, without = good(sent(declared)), good(sent(event(driver=name, zone=name, city=name)))
    assert encode_rows(with_extra) == encode_rows(without)  # what is not declared leaves no trace
    assert name.encode() not in encode_rows(with_extra)


def test_the_event_id_travels_as_a_pseudonym_where_the_task_says_so() -> None:
    private = task('[privacy]\npseudonymise = ["trip"]\n')
    rows = good(sent(event(trip="secret-trip")), EventDecoder(private, HIDDEN))
    assert rows.ids == [HIDDEN.text("trip", "secret-trip")]
    assert b"secret-trip" not in encode_rows(rows)
    found, _ = LabelDecoder(private, HIDDEN).decode([sent({"trip": "secret-trip", "bad": 1})])
    assert found.ids == rows.ids  # the label still finds its event


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"trip": "a", "bad": 1}, 1.0),
        ({"trip": 5, "bad": False}, 0.0),
        ({"trip": "a", "bad": 1.0, "x": 2}, 1.0),
    ],
)
def test_a_good_label(fields: dict[str, Any], label: float) -> None:
    found, broken = LABELS.decode([sent(fields)])
    assert (found.ids, found.label.tolist(), found.known_ms.tolist()) == (
        [str(fields["trip"])],
        [label],
        [-1],
    )
    assert broken == []


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"trip": "a", "bad": 2}, "invalid", "label bad is 2"),
        ({"trip": "a", "bad": 0.5}, "invalid", "takes 0 or 1"),
        ({"trip": "a", "bad": "1"}, "invalid", "$.bad"),
        ({"trip": "a", "bad": None}, "invalid", "$.bad"),
        ({"trip": "", "bad": 1}, "invalid", "trip is empty"),
        ({"trip": "x" * 600, "bad": 1}, "invalid", "600 characters"),
        ({"bad": 1}, "invalid", "missing required field `trip`"),
    ],
)
def test_a_label_that_cannot_be_used(fields: dict[str, Any], reason: str, detail: str) -> None:
    found, said = refused(sent(fields), LABELS)
    assert found == reason
    assert detail in said


def test_the_time_of_a_label_is_checked_as_that_of_an_event() -> None:
    decoder = LabelDecoder(task(field='"bad"\ntime = "known"'), HIDDEN)
    found, _ = decoder.decode([sent({"trip": "a", "bad": 1, "known": NOW_MS})])
    assert found.known_ms.tolist() == [NOW_MS]
    for known, reason in [(NOW_MS + HOUR + 1, "future"), (-5, "invalid_time"), ("soon", "invalid")]:
        assert refused(sent({"trip": "a", "bad": 1, "known": known}), decoder)[0] == reason


@pytest.mark.parametrize(
    ("time_format", "value", "ms"),
    [
        ("epoch_ms", 1_700_000_000_123, 1_700_000_000_123),
        ("epoch_ms", 12.4, 12),
        ("epoch_s", 1_700_000_000.123, 1_700_000_000_123),
        ("epoch_s", 3, 3000),
        ("iso8601", "1970-01-01", 0),
        ("iso8601", "1970-01-02T00:00:00Z", 86_400_000),
        ("iso8601", "1970-01-01T02:00:00.250+02:00", 250),
        ("iso8601", "19700101T000001", 1000),
        ("%d/%m/%Y %H:%M", "02/01/1970 00:01", 86_460_000),
        ("%Y-%m-%d %H:%M %z", "1970-01-01 02:00 +0200", 0),
        ("%Y-%m-%d %%z", "1970-01-02 %z", 86_400_000),  # no zone, but the letters
    ],
)
def test_times(time_format: str, value: Any, ms: int) -> None:
    assert time_parser(time_format)(value) == ms


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_the_machines_time_zone_changes_nothing(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for time_format, value in [("%Y-%m-%d %H", "2024-07-01 12"), ("iso8601", "2024-07-01T12:00")]:
            assert time_parser(time_format)(value) == 1_719_835_200_000
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("time_format", "value"),
    [
        ("epoch_ms", math.inf), ("epoch_s", math.nan), ("iso8601", "soon"), ("iso8601", "2024-02-30"),
        ("iso8601", "0001-01-01T00:00:00+23:59"), ("%Y", "x"), ("%Y-%m-%d", "2024-01-01 10:00"),
        ("%Y-%m-%d %z", "0001-01-01 +2359"),
    ],
)  # fmt: skip
def test_what_is_no_time_raises_what_the_decoder_expects(time_format: str, value: Any) -> None:
    with suppress(ValueError, OverflowError, TypeError):
        assert time_parser(time_format)(value) < 0  # before 1970 is refused as well


def test_calendar_is_on_the_unit_circle_and_knows_the_weekday() -> None:
    thursday, monday = 0, 4 * 86_400_000
    found = calendar(np.array([thursday, monday, thursday + 6 * HOUR]))
    np.testing.assert_allclose(found[:, 0] ** 2 + found[:, 1] ** 2, 1.0)
    np.testing.assert_allclose(found[1], [0, 1, 0, 1], atol=1e-9)  # midnight, start of the week
    np.testing.assert_allclose(found[2, :2], [1, 0], atol=1e-9)
