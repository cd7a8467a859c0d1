"""Labels that come late, twice, or for nothing; and a join that has no memory to spare."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.snapshot import load_state, save_state
from infra.errors import UserError
from learners.late import LARGEST, real_share
from streams.gate import IDLE
from streams.joining import JoinPartition, Refused, feedback_of
from streams.task import Task
from tests.stream_records import HIDDEN, MINUTE, NOW_MS, labels, task
from tests.unit.test_joining import DROP, STEPS, WINDOW, ZERO, decided, examples, join_of, log_of, results

IGNORE = task(missing='0\nlate = "ignore"')
SHORT = task(missing='0\nlate_for = "5m"')


def test_a_late_positive_comes_again_as_a_correction_known_when_it_came() -> None:
    join = join_of(ZERO)
    assert decided(join.fold([examples(("a", 0), ("b", 1)), examples(("c", 12))])) == [
        ("a", 0.0, 10.0, True), ("b", 0.0, 11.0, True),
    ]  # fmt: skip
    found = join.fold([labels(["a"], [1.0])])
    assert decided(found) == [
        ("a", 1.0, 12.0, False)
    ]  # events have come to minute 12; it was not known before
    assert found is not None
    assert (found.corrects.tolist(), found.served.tolist(), found.version) == ([True], [0.25], ["L1.3"])
    assert (join.counts.defaulted, join.counts.corrected, join.counts.joined) == (2, 1, 0)
    assert join.fold([labels(["a"], [1.0])]) is None
    assert join.counts.duplicates == 1


def test_a_label_s_own_time_is_believed_where_it_is_later() -> None:
    join = join_of(ZERO)
    join.fold([examples(("a", 0)), examples(("c", 12))])
    assert decided(join.fold([labels(["a"], [1.0], [NOW_MS + 14 * MINUTE])])) == [("a", 1.0, 14.0, False)]


def test_a_label_that_says_it_was_known_after_the_window_is_late_however_soon_it_came() -> None:
    """The order of the log is chance where windows wait for labels; what a label says of itself is not."""
    join = join_of(ZERO)
    found = join.fold([examples(("a", 0)), labels(["a"], [1.0], [NOW_MS + 11 * MINUTE]), examples(("b", 20))])
    assert decided(found) == [("a", 0.0, 10.0, True), ("a", 1.0, 20.0, False)]
    assert found is not None
    assert found.corrects.tolist() == [False, True]


def test_a_late_label_that_agrees_changes_nothing() -> None:
    join = join_of(ZERO)
    join.fold([examples(("a", 0)), examples(("c", 12))])
    assert join.fold([labels(["a"], [0.0])]) is None
    assert (join.counts.late, join.counts.corrected) == (1, 0)


@pytest.mark.parametrize("made", [IGNORE, DROP])
def test_where_late_labels_are_not_wanted_they_are_counted(made: Task) -> None:
    join = join_of(made)
    join.fold([examples(("a", 0), made=made), examples(("c", 12), made=made)])
    assert join.fold([labels(["a"], [1.0])]) is None
    assert (join.counts.late, join.early) == (1, 0)


def test_what_was_decided_is_forgotten_after_a_while() -> None:
    join = join_of(SHORT)
    join.fold([examples(("a", 0), made=SHORT), examples(("c", 14.9), made=SHORT)])
    assert join.remembered == 2
    join.fold([examples(("d", 15), made=SHORT)])
    assert join.remembered == 2  # a is gone
    assert join.fold([labels(["a"], [1.0])]) is None
    assert join.early == 1  # for all that is known, its event is yet to come


def test_a_late_correction_takes_the_missing_value_back_from_the_label_rates() -> None:
    join = join_of(ZERO)
    found = join.fold(
        [examples(("a", 0), ("b", 0)), labels(["b"], [1.0]), examples(("c", 12)), labels(["a"], [1.0])]
    )
    assert found is not None
    feedback = feedback_of(ZERO, found, 0)
    known = ((feedback.known_ms - NOW_MS) / MINUTE).tolist()
    assert list(zip(known, feedback.label.tolist(), feedback.back.tolist(), strict=True)) == [
        (10.0, 0.0, True), (10.0, 0.0, False), (1.0, 1.0, False), (12.0, 1.0, False),
    ]  # fmt: skip
    assert set(feedback.keys.tolist()) == {HIDDEN.one("driver", "Anna")}


def test_further_labels_are_duplicates_or_contradictions_before_and_after_the_decision() -> None:
    for made in (ZERO, DROP):
        join = join_of(made)
        early = join.fold([labels(["a", "a", "a"], [1.0, 1.0, 0.0])])
        assert early is None
        assert join.refused == [Refused("contradiction", "a", 0.0, 3, 72)]
        found = join.fold(
            [examples(("a", 0), made=made), labels(["a"], [1.0]), examples(("b", 12), made=made)]
        )
        assert decided(found) == [("a", 1.0, 1.0, False)]
        assert join.fold([labels(["a", "a"], [0.0, 1.0])]) is None
        assert [label.reason for label in join.refused] == ["contradiction"]
        assert (join.counts.duplicates, join.counts.contradictions) == (3, 2)


def test_an_orphan_is_set_aside_with_its_place() -> None:
    join = join_of(ZERO)
    join.fold([labels(["x"], [1.0])])
    join.fold([examples(("a", 15))])
    assert join.refused == []
    join.fold([examples(("b", 15.1))])
    assert join.refused == [Refused("orphan", "x", 1.0, 3, 70)]
    assert join.counts.orphans == 1


def test_an_id_that_is_used_again_is_another_event() -> None:
    join = join_of(ZERO)
    join.fold([examples(("a", 0)), examples(("b", 12))])
    again = [examples(("a", 14)), labels(["a"], [1.0]), examples(("c", 25))]
    assert ("a", 1.0, 15.0, False) in decided(join.fold(again))
    assert (join.counts.repeated, join.counts.corrected) == (0, 0)


def test_the_share_of_late_labels_is_counted_and_weighs_the_defaults() -> None:
    join, count = join_of(ZERO), 300
    first = [(f"a-{i}", 0.0) for i in range(count)]
    join.fold([examples(*first), labels([i for i, _ in first[:100]], [1.0] * 100), examples(("b", 12))])
    join.fold([labels([i for i, _ in first[100:150]], [1.0] * 50)])
    found = join.fold([examples(("c", 30))])
    assert found is not None
    assert 0.25 < float(found.late_share[0]) < 0.35  # a third, drawn towards none while few were seen
    assert found.batch().weight.tolist() == real_share(found.label, found.served, found.late_share).tolist()
    assert float(found.batch().weight[0]) == pytest.approx(0.75 / (0.75 + found.late_share[0] * 0.25))


def test_the_weight_is_the_chance_that_a_default_is_real() -> None:
    served = np.array([0.5, 0.5, 0.2, 0.9, np.nan, 1.0], np.float32)
    share = np.array([0.0, 1.0, 0.5, 0.5, 0.5, 0.5], np.float32)
    zeros, ones = np.zeros(6, np.float32), np.ones(6, np.float32)
    last = (1 - LARGEST) / (1 - LARGEST + 0.5 * LARGEST)
    wanted = [1.0, 0.5, 0.8 / 0.9, 0.1 / 0.55, 1.0, last]
    np.testing.assert_allclose(real_share(zeros, served, share), wanted, rtol=1e-4)
    mirrored = real_share(ones, (1 - served).astype(np.float32), share)
    np.testing.assert_allclose(mirrored, wanted, rtol=1e-4)


def test_the_lesson_is_that_of_labels_without_delay() -> None:
    """Expected sums of weights: p positives against 1 - p negatives, whatever share of the positives comes late."""
    for p in (0.05, 0.3, 0.8):
        for q in (0.1, 0.5, 0.9):
            weight = real_share(np.zeros(1), np.array([p], np.float32), np.array([q], np.float32))[0]
            assert (1 - p + q * p) * weight == pytest.approx(1 - p, rel=1e-5)


def small(made: Task, most: int) -> Task:
    """The task with room for fewer entries than a task file may ask for."""
    return replace(made, label=replace(made.label, in_memory=most))


@settings(max_examples=60)
@given(st.sampled_from([ZERO, DROP, IGNORE, SHORT]), STEPS, st.integers(1, 4))
def test_a_join_without_memory_decides_the_same_in_the_same_order(made: Task, steps: Any, most: int) -> None:
    log = log_of(steps, made)
    large, tiny = join_of(made), join_of(small(made, most))
    for record in log:
        assert results([tiny.fold([record])]) == results([large.fold([record])])
        assert tiny.refused == large.refused
        assert len(tiny._store.entries) <= most
    assert tiny.counts == large.counts
    assert (len(tiny), tiny.early, tiny.remembered) == (len(large), large.early, large.remembered)


def long_steps(seed: int) -> list[Any]:
    """Sixty records of three ids each; what labels say of their time lies before and after the window's end."""
    rng, steps = np.random.default_rng(seed), list[Any]()
    for _ in range(60):
        kind, most = ("labels", 20) if rng.random() < 0.5 else ("examples", 4)
        ids, values = rng.choice(40, 3, replace=False).tolist(), rng.integers(0, most, 3).tolist()
        steps.append((kind, list(zip(ids, values, strict=True)), 0))
    return steps


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([ZERO, DROP, IGNORE, SHORT]), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_join_without_memory_decides_the_same_of_a_long_log(made: Task, seed: int, most: int) -> None:
    log = log_of(long_steps(seed), made)
    assert results([join_of(small(made, most)).fold(log)]) == results([join_of(made).fold(log)])


@settings(max_examples=40)
@given(st.sampled_from([ZERO, DROP]), STEPS, st.integers(0, 14), st.integers(1, 4), st.integers(1, 50))
def test_a_snapshot_has_what_lies_on_disk_and_fits_another_memory(
    made: Task, steps: Any, saved: int, most: int, other: int
) -> None:
    log, saved = log_of(steps, made), min(saved, len(steps))
    first, second = join_of(small(made, most)), JoinPartition(small(made, other))
    first.fold(log[:saved])
    second.restore(load_state(save_state(first.snapshot())))
    assert results([second.fold(log[saved:])]) == results([first.fold(log[saved:])])
    assert second.remembered == first.remembered


def test_a_row_that_is_decided_is_not_taken_for_one_that_comes_back_from_disk_to_be_forgotten() -> None:
    join, found = join_of(small(ZERO, 1)), []
    for record in (
        examples(("old", 0)),
        examples(("x", 11)),
        labels(
            ["x"], [0.0], [NOW_MS + 25 * MINUTE]
        ),  # it agrees with silence, and was known after the window
        examples(("end", 22)),  # x is decided, and "old", which lies on disk, is forgotten
    ):
        found += decided(join.fold([record]))
    assert found == [("old", 0.0, 10.0, True), ("x", 0.0, 21.0, True)]


def test_thousands_wait_on_disk_and_come_back_in_order() -> None:
    join, events = join_of(small(ZERO, 500)), [(f"e-{i:05}", i / 1000) for i in range(6_000)]
    for a, b in pairwise(range(0, 6_001, 500)):
        assert join.fold([examples(*events[a:b])]) is None
    assert (join.remembered, join.spilled) == (6_000, 6_000 - len(join._store.entries))
    assert len(join._store.entries) <= 500
    late = join.fold([labels([i for i, _ in events[::7]], [1.0] * len(events[::7])), examples(("end", 30))])
    assert late is not None
    assert [i for i, *_ in decided(late)] == [i for i, _ in events]
    assert late.label.sum() == len(events[::7])


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ('"drop"\nlate = "correct"', "label.late has no effect"),
        ('0\nlate = "never"', "label.late"),
        ("0\nin_memory = 10", "label.in_memory"),
        ('0\nlate_for = "soon"', "label.late_for"),
    ],
)
def test_a_task_file_that_asks_for_something_else_is_refused(missing: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        task(missing=missing)


def test_the_keys_of_late_labels_have_defaults() -> None:
    label = ZERO.label
    assert (label.late, label.late_for_ms, label.in_memory) == ("correct", WINDOW, 200_000)
    assert JoinPartition(ZERO).fingerprint != JoinPartition(IGNORE).fingerprint
    assert JoinPartition(ZERO).fingerprint == JoinPartition(small(ZERO, 7)).fingerprint
    assert IDLE > NOW_MS
