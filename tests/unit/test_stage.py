"""The state of a serve partition: however its log is cut and wherever it is resumed, rows and state are the same."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.snapshot import CorruptSnapshot, load_state, save_state
from streams.rows import Feedback, Rows
from streams.stage import Folded, StagePartition, fold
from streams.task import Task
from streams.wire import encode_feedback, encode_rows
from tests.stream_records import HIDDEN, HOUR, MINUTE, NOW_MS, Record, event, sent, task

TASK = task()
STRICT = task(late='"dead_letter"')
DAY = 24 * HOUR

# (id, driver, step of event time in minutes, delay in Kafka in minutes, broken?)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 12), st.integers(0, 2), st.integers(-9, 9) | st.sampled_from([40, -40]), st.integers(-3, 3),
        st.booleans() | st.just(False),
    ),
    max_size=25,
)  # fmt: skip


def log_of(steps: Sequence[tuple[int, int, int, int, bool]]) -> list[Record]:
    records, now = [], NOW_MS
    for offset, (trip, driver, step, delay, broken) in enumerate(steps):
        now += step * MINUTE
        fields = event(trip=f"t-{trip}", driver=f"d-{driver}", zone=driver % 2, at=now, fare=float(offset))
        stamp = now + delay * MINUTE
        records.append(
            Record(b"?", offset, stamp) if broken else sent(fields, offset=offset, timestamp=stamp)
        )
    return records


def stage(made: Task = TASK, index: int = 0) -> StagePartition:
    return StagePartition(made, index, HIDDEN)


def parts_of(log: Sequence[Any], cuts: Sequence[int]) -> list[Sequence[Any]]:
    places = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    return [log[a:b] for a, b in pairwise(places)]


def summary(folds: Sequence[Folded]) -> tuple[bytes, bytes, list[tuple[str, int]], int]:
    """All that left the stage, to the last bit."""
    rows = Rows.concat([fold.rows for fold in folds])
    features = np.concatenate([fold.features for fold in folds])
    letters = [(letter.reason, letter.record.offset) for fold in folds for letter in fold.broken]
    return encode_rows(rows), features.tobytes(), letters, sum(fold.duplicates for fold in folds)


def state(of: StagePartition) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in of.snapshot().items()}


@settings(max_examples=30)
@given(st.sampled_from([TASK, STRICT]), EVENTS, st.lists(st.integers(0, 25), max_size=5))
def test_cuts_into_batches_change_nothing(made: Task, steps: Any, cuts: list[int]) -> None:
    log, whole, cut = log_of(steps), stage(made), stage(made)
    wanted = summary([whole.fold(log)])
    assert summary([cut.fold(part) for part in parts_of(log, cuts)]) == wanted
    assert state(cut) == state(whole)


@settings(max_examples=30)
@given(st.sampled_from([TASK, STRICT]), EVENTS, st.integers(0, 25), st.integers(0, 25))
def test_a_snapshot_and_a_replay_go_on_bit_for_bit(made: Task, steps: Any, saved: int, crashed: int) -> None:
    log = log_of(steps)
    saved, crashed = min(saved, crashed, len(log)), min(max(saved, crashed), len(log))
    undisturbed = stage(made)
    undisturbed.fold(log[:crashed])
    wanted = summary([undisturbed.fold(log[crashed:])])
    first, second = stage(made), stage(made)
    first.fold(log[:saved])
    arrays = load_state(save_state(first.snapshot()))
    first.fold(log[saved:])  # a snapshot is a copy: going on does not change it
    second.restore(arrays)
    second.fold(log[saved:crashed])
    assert summary([second.fold(log[crashed:])]) == wanted
    assert state(second) == state(undisturbed)


@settings(max_examples=20)
@given(EVENTS, st.lists(st.integers(0, 25), max_size=4))
def test_the_second_stage_too(steps: Any, cuts: list[int]) -> None:
    rows = stage().fold(log_of(steps)).rows
    log = [Record(encode_rows(rows.take(np.array([i]))), i) for i in range(len(rows))]
    feedback = Feedback(
        np.array([HIDDEN.one("zone", 0)]), np.array([NOW_MS]), np.ones(1), np.zeros(1, np.bool_)
    )
    whole, cut = stage(index=1), stage(index=1)
    wanted = summary([whole.fold(log)])
    cut.fold_feedback([Record(encode_feedback(feedback))])  # the zones have no label rate: nothing changes
    assert summary([cut.fold(part) for part in parts_of(log, cuts)]) == wanted
    assert state(cut) == state(whole)


@settings(max_examples=30)
@given(st.sampled_from([TASK, STRICT]), st.lists(EVENTS, min_size=1, max_size=4))
def test_several_partitions_at_once_are_folded_as_each_by_itself(made: Task, streams: list[Any]) -> None:
    logs = [[replace(r, partition=i) for r in log_of(steps)] for i, steps in enumerate(streams)]
    alone, together = ([stage(made) for _ in logs] for _ in range(2))
    apart = [each.fold(log) for each, log in zip(alone, logs, strict=True)]
    folded = fold(together, logs)
    assert summary([folded]) == summary(apart)
    assert [encode_rows(rows) for rows in folded.parts()] == [encode_rows(each.rows) for each in apart]
    assert [state(each) for each in together] == [state(each) for each in alone]

    passed = [
        [Record(encode_rows(each.rows.take(np.array([i]))), i) for i in range(len(each.rows))]
        for each in apart
    ]
    passed[0].append(Record(b"?", 99))
    alone, together = ([stage(made, 1) for _ in logs] for _ in range(2))
    apart = [each.fold(log) for each, log in zip(alone, passed, strict=True)]
    assert summary([fold(together, passed)]) == summary(apart)
    assert [state(each) for each in together] == [state(each) for each in alone]


def test_both_stages_fill_the_rows() -> None:
    records = [
        sent(event(trip=f"t-{i}", fare=10.0 * i, tip=i, at=NOW_MS + i * 1000), offset=i) for i in range(3)
    ]
    first = stage().fold(records).rows
    second = stage(index=1).fold([Record(encode_rows(first))]).rows
    found = dict(zip(TASK.numbers, second.numbers[2].tolist(), strict=True))
    assert found["driver_fare_count_8m"] == 2.0
    assert found["driver_fare_mean_8m"] == 5.0
    assert found["zone_tip_sum_16m"] == 1.0
    assert found["zone_time_since_last"] == 1.0
    assert np.isnan(first.numbers[2, TASK.numbers.index("zone_tip_sum_16m")])


def test_labels_feed_the_label_rate() -> None:
    one = stage()
    one.fold([sent(event())])
    key = np.array([HIDDEN.one("driver", "Anna")] * 2)
    feedback = Feedback(key, np.full(2, NOW_MS + MINUTE), np.array([1.0, 0.0]), np.zeros(2, np.bool_))
    one.fold_feedback([Record(encode_feedback(feedback)), Record(b"junk")])
    rows = one.fold([sent(event(trip="t-2", at=NOW_MS + 4 * MINUTE), timestamp=NOW_MS + 4 * MINUTE)]).rows
    assert rows.numbers[0, TASK.numbers.index("driver_label_rate_8m")] == 0.5


def test_a_label_that_is_taken_back_is_as_if_it_had_never_been_added() -> None:
    """The missing value that a late label corrects: gone from its own minute, the new one known when it came."""
    one, key = stage(), HIDDEN.one("driver", "Anna")
    one.fold([sent(event())])
    keys, known = np.full(3, key), NOW_MS + np.array([1, 2, 1]) * MINUTE
    feedback = Feedback(keys, known, np.array([0.0, 1.0, 0.0]), np.array([False, False, True]))
    one.fold_feedback([Record(encode_feedback(feedback))])
    rows = one.fold([sent(event(trip="t-2", at=NOW_MS + 4 * MINUTE), timestamp=NOW_MS + 4 * MINUTE)]).rows
    rate = TASK.numbers.index("driver_label_rate_8m")
    assert rows.numbers[0, rate] == 1.0
    gone = Feedback(np.array([key]), np.array([NOW_MS]), np.zeros(1), np.ones(1, np.bool_))
    rows = one.fold([sent(event(trip="t-3", at=NOW_MS + 8 * MINUTE), timestamp=NOW_MS + 8 * MINUTE)]).rows
    one.fold_feedback(
        [Record(encode_feedback(gone))]
    )  # its minute has moved on: nothing is left to take back
    later = one.fold([sent(event(trip="t-4", at=NOW_MS + 8 * MINUTE), timestamp=NOW_MS + 8 * MINUTE)]).rows
    assert later.numbers[0, rate] == rows.numbers[0, rate] == 1.0


def at(trip: str, minutes: float, offset: int = 0, **more: Any) -> Record:
    ms = NOW_MS + round(minutes * MINUTE)
    return sent(event(trip=trip, at=ms), offset=offset, **({"timestamp": ms} | more))


def test_a_duplicate_is_dropped_once_and_only_within_the_horizon() -> None:
    one = stage()
    first = one.fold([at("a", 0, 0), at("a", 1, 1), at("b", 2, 2), at("a", 0, 3)])
    assert (first.rows.offset.tolist(), first.duplicates) == ([0, 2], 2)
    assert one.fold([at("a", 19, 4)]).duplicates == 1
    # dedup is 20 minutes and max_future an hour: an id is forgotten after at most twice their sum
    assert one.fold([at("z", 161, 5), at("a", 162, 6)]).duplicates == 0


def test_an_event_of_the_future_evicts_no_id() -> None:
    one = stage()
    one.fold([at("a", 0, 0), at("ahead", 59, 1, timestamp=NOW_MS), at("b", 0, 2)])
    again = one.fold([at("a", 1, 3), at("b", 19, 4), at("ahead", 59, 5, timestamp=NOW_MS)])
    assert (len(again.rows), again.duplicates) == (0, 3)


@settings(max_examples=20)
@given(st.integers(0, 59))
def test_dedup_holds_for_its_time_whatever_runs_ahead(minutes: int) -> None:
    one = stage()
    one.fold([at("a", 0, 0), at("ahead", minutes, 1, timestamp=NOW_MS)])
    assert one.fold([at("a", 19, 2)]).duplicates == 1


def test_a_late_event_is_scored_and_kept_out_of_the_windows() -> None:
    one = stage()
    rows = one.fold([at("a", 0, 0), at("b", 6, 1), at("late", 0.5, 2), at("c", 7, 3)]).rows
    assert rows.late.tolist() == [False, False, True, False]
    count = TASK.numbers.index("driver_fare_count_8m")
    assert rows.numbers[:, count].tolist() == [0.0, 1.0, 1.0, 2.0]  # read, but not added


def test_a_late_event_can_be_refused() -> None:
    folded = stage(STRICT).fold([at("a", 0, 0), at("b", 6, 1), at("late", 0.5, 2), Record(b"?", 3)])
    assert folded.rows.ids == ["a", "b"]
    assert [(letter.reason, letter.record.offset) for letter in folded.broken] == [
        ("late", 2),
        ("malformed", 3),
    ]


def test_exactly_the_allowed_lateness_is_not_late() -> None:
    assert stage().fold([at("a", 5, 0), at("b", 0, 1)]).rows.late.tolist() == [False, False]


def test_one_clock_that_runs_ahead_makes_nobody_late() -> None:
    one = stage()
    ahead = at("ahead", 50, 0, timestamp=NOW_MS)
    assert one.fold([ahead, at("b", 1, 1), at("c", 2, 2)]).rows.late.tolist() == [False] * 3


def test_rows_that_another_task_file_left_are_refused_with_a_reason() -> None:
    old = task(windows='["16m"]')
    rows = stage(old).fold([sent(event())]).rows
    good = stage().fold([sent(event())]).rows
    folded = stage(index=1).fold(
        [Record(encode_rows(rows), 0), Record(encode_rows(good), 1), Record(None, 2)]
    )
    assert folded.rows.ids == ["t-1"]
    assert [(letter.reason, letter.record.offset) for letter in folded.broken] == [
        ("damaged", 0),
        ("damaged", 2),
    ]


def test_nothing_in_nothing_out() -> None:
    for index in (0, 1):
        folded = stage(index=index).fold([])
        assert (len(folded.rows), folded.broken, folded.duplicates) == (0, [], 0)
        assert stage(index=index).entities == 0


def test_the_fingerprint_changes_with_what_the_state_means() -> None:
    def fingerprint(made: Task, index: int = 0) -> str:
        return stage(made, index).fingerprint

    assert fingerprint(TASK) == fingerprint(task(commit_every="'5ms'"))
    for changed in (task(dedup='"30m"'), task(max_future='"2h"'), task(allowed_lateness='"1m"'), STRICT):
        assert fingerprint(changed) != fingerprint(TASK)
        assert fingerprint(changed, 1) == fingerprint(TASK, 1)  # only the events' own stage has these limits
    assert fingerprint(task(windows='["16m"]'), 1) != fingerprint(TASK, 1)


def test_a_state_of_other_features_is_not_restored() -> None:
    arrays = stage(task(windows='["16m"]')).snapshot()
    with pytest.raises(CorruptSnapshot):
        stage().restore(arrays)
