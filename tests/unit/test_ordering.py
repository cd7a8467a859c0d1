"""Rows of several partitions in event-time order: the same order whatever the partitions and their interleaving."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import ordering
from streams.ordering import IDLE, Merge, told
from streams.rows import Rows
from streams.stage import StagePartition
from streams.wire import encode_rows
from tests.stream_records import HIDDEN, MINUTE, NOW_MS, Record, event, sent, task

TASK = task(order='"event_time"')
BY_ARRIVAL = task()

# (driver, minutes since the event before): a stream in time order, with equal times
STREAMS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30)


def events_of(steps: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    now, events = NOW_MS, []
    for number, (driver, step) in enumerate(steps):
        now += step * MINUTE
        events.append(
            event(trip=f"t-{number}", driver=f"d-{driver}", zone="z", at=now, fare=1.0, tip=float(number))
        )
    return events


def moved(events: Sequence[dict[str, Any]], partitions: int, cuts: Sequence[int]) -> list[list[Record]]:
    """What each partition of the first stage, which folds its events in pieces of the sizes `cuts`, passes on."""
    logs: list[list[Record]] = []
    for partition in range(partitions):
        stage, log = StagePartition(TASK, 0, HIDDEN), []
        own = [e for e in events if int(e["driver"][2:]) % partitions == partition]
        records = [sent(e, offset=i, timestamp=e["at"] + MINUTE) for i, e in enumerate(own)]
        start = 0
        for size in [*cuts, len(records)]:
            rows = stage.fold(records[start : start + size]).rows
            start += size
            log.append(Record(encode_rows(rows), headers=tuple(told(partition, stage.watermark_ms))))
        log.append(Record(encode_rows(Rows.empty(TASK)), headers=tuple(told(partition, IDLE))))
        logs.append(log)
    return logs


def interleaved(logs: list[list[Record]], picks: Sequence[int]) -> list[Record]:
    """The logs as one, in an order that `picks` chooses; each keeps its own."""
    left, merged = [list(log) for log in logs], []
    for pick in [*picks, *([0] * 1000)]:
        there = [log for log in left if log]
        if not there:
            break
        merged.append(there[pick % len(there)].pop(0))
    return merged


def rows_of(log: Sequence[Any], partitions: int, size: int) -> dict[str, bytes]:
    """Each event's features after the second stage, which folds its log in pieces of `size`."""
    stage = StagePartition(TASK, 1, HIDDEN, partitions)
    parts = [stage.fold(log[start : start + size]).rows for start in range(0, len(log), size)]
    rows = Rows.concat(parts)
    return {event_id: rows.numbers[i].tobytes() for i, event_id in enumerate(rows.ids)}


@given(
    STREAMS,
    st.lists(st.integers(1, 6), max_size=4),
    st.lists(st.integers(0, 7), max_size=60),
    st.integers(1, 9),
)
@settings(max_examples=40)
def test_features_are_the_same_for_any_number_of_partitions(
    steps: list[tuple[int, int]], cuts: list[int], picks: list[int], size: int
) -> None:
    events = events_of(steps)
    wanted = rows_of(interleaved(moved(events, 1, []), []), 1, 1000)
    assert set(wanted) == {e["trip"] for e in events}
    for partitions in (1, 3, 8):
        assert rows_of(interleaved(moved(events, partitions, cuts), picks), partitions, size) == wanted


@given(STREAMS, st.lists(st.integers(0, 7), max_size=60), st.integers(0, 40))
@settings(max_examples=25)
def test_a_snapshot_anywhere_changes_nothing(
    steps: list[tuple[int, int]], picks: list[int], cut: int
) -> None:
    log = interleaved(moved(events_of(steps), 3, [2, 2]), picks)
    one, before = StagePartition(TASK, 1, HIDDEN, 3), StagePartition(TASK, 1, HIDDEN, 3)
    first = before.fold(log[:cut])
    after = StagePartition(TASK, 1, HIDDEN, 3)
    with patch.object(ordering, "_PIECE", 2):
        after.restore(before.snapshot())
    both = Rows.concat([first.rows, after.fold(log[cut:]).rows])
    assert encode_rows(both) == encode_rows(one.fold(log).rows)
    assert after.watermark_ms == one.watermark_ms


def a_row(name: str, minute: int) -> Rows:
    made = sent(
        event(trip=name, driver="d-0", zone="z", at=NOW_MS + minute * MINUTE, fare=1.0), timestamp=NOW_MS * 2
    )
    return StagePartition(TASK, 0, HIDDEN).fold([made]).rows


def said(partition: int, watermark_ms: int) -> Record:
    return Record(b"", headers=tuple(told(partition, watermark_ms)))


def test_rows_wait_for_the_slowest_and_not_for_the_idle() -> None:
    merge, nothing = Merge(TASK, 2), Rows.empty(TASK)
    merge.add(said(0, NOW_MS + 5 * MINUTE), a_row("a", 2))
    assert merge.take().ids == []  # partition 1 has not said anything
    merge.add(said(1, NOW_MS + 2 * MINUTE), nothing)
    assert merge.take().ids == []  # it may still send something of the same time
    merge.add(said(1, NOW_MS + 3 * MINUTE), nothing)
    assert merge.take().ids == ["a"]
    merge.add(said(0, NOW_MS + 9 * MINUTE), a_row("b", 8))
    assert merge.take().ids == []
    merge.add(said(1, IDLE), nothing)
    assert merge.take().ids == ["b"]
    merge.add(said(1, NOW_MS + MINUTE), a_row("too late to be in order", 1))
    assert merge.take().ids == []  # partition 1 is back, and at minute 1
    merge.add(said(1, IDLE), nothing)
    assert merge.take().ids == ["too late to be in order"]


def test_records_of_which_nothing_may_go_are_left_as_they_are() -> None:
    """Else each record would cost as much as all that wait, and many do while one partition stands still."""
    merge, late = Merge(TASK, 2), a_row("late", 8)
    merge.add(said(0, NOW_MS + 9 * MINUTE), late)
    merge.add(said(0, NOW_MS + 9 * MINUTE), a_row("early", 2))
    merge.add(said(1, NOW_MS + 3 * MINUTE), Rows.empty(TASK))
    assert merge.take().ids == ["early"]
    assert [rows for _, rows in merge._waiting] == [late]


def test_rows_by_arrival_do_not_wait() -> None:
    stage = StagePartition(BY_ARRIVAL, 1, HIDDEN, 3)
    rows = (
        StagePartition(BY_ARRIVAL, 0, HIDDEN)
        .fold([sent(event(trip="a", driver="d", zone="z", at=NOW_MS, fare=1.0), timestamp=NOW_MS)])
        .rows
    )
    assert stage.fold([Record(encode_rows(rows))]).rows.ids == ["a"]


def test_a_snapshot_of_another_number_of_partitions_is_refused() -> None:
    assert StagePartition(TASK, 1, HIDDEN, 3).fingerprint != StagePartition(TASK, 1, HIDDEN, 4).fingerprint
    assert (
        StagePartition(TASK, 1, HIDDEN, 3).fingerprint != StagePartition(BY_ARRIVAL, 1, HIDDEN, 3).fingerprint
    )


@pytest.mark.parametrize("watermark", [0, -(2**62), IDLE])
def test_what_is_told_is_heard(watermark: int) -> None:
    merge = Merge(TASK, 1)
    merge.add(said(0, watermark), Rows.empty(TASK))
    assert merge.watermark_ms == watermark
    assert np.array_equal(merge.snapshot()["come"], [watermark])
