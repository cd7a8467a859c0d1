"""The join: each example is decided once, by the first label in its window or by what silence means."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.snapshot import load_state, save_state
from streams import wire
from streams.gate import IDLE, IDLE_AFTER
from streams.joining import JoinPartition
from streams.rows import Labelled
from streams.stage import StagePartition
from streams.task import Task
from tests.stream_records import HIDDEN, HOUR, MINUTE, NOW_MS, Record, event, labels, sent, task

ZERO = task()  # silence for ten minutes means 0
DROP = task(missing='"drop"')  # silence teaches nothing; the first label decides at once
WINDOW, DELAY = 10 * MINUTE, MINUTE


def examples(
    *events: tuple[str, float], made: Task = ZERO, source: int = 0, sent_ms: int = 0, **place: Any
) -> Record:
    """A record of examples (id, minutes of event time); Kafka got each at its event time, or at `sent_ms`."""
    records = [
        sent(
            event(trip=trip, at=NOW_MS + round(minutes * MINUTE)),
            timestamp=sent_ms or NOW_MS + round(minutes * MINUTE), partition=source, offset=offset,
        )
        for offset, (trip, minutes) in enumerate(events)
    ]  # fmt: skip
    rows = StagePartition(made, 0, HIDDEN).fold(records).rows
    assert len(rows) == len(events)
    data = wire.encode_examples(rows, np.full(len(rows), 0.25, np.float32), "L1.3")
    return Record(data, headers=((wire.KIND, wire.EXAMPLES),), topic="trips.examples", **place)


def join_of(made: Task) -> JoinPartition:
    """A join whose labels are never behind."""
    join = JoinPartition(made)
    join.fold([labels([], [], mark=(0, 1, IDLE))])
    return join


def decided(labelled: Labelled | None) -> list[tuple[str, float, float, bool]]:
    """(id, label, minutes when it was known, is it what silence means?) of each row."""
    if labelled is None:
        return []
    known = ((labelled.known_ms - NOW_MS) / MINUTE).tolist()
    return list(
        zip(labelled.rows.ids, labelled.label.tolist(), known, labelled.default.tolist(), strict=True)
    )


def test_silence_is_decided_when_event_time_has_passed_the_window() -> None:
    join = join_of(ZERO)
    assert join.fold([examples(("a", 0), ("b", 1))]) is None
    assert join.fold([examples(("c", 9.9))]) is None
    assert decided(join.fold([examples(("d", 10))])) == [("a", 0.0, 10.0, True)]
    assert decided(join.fold([examples(("e", 30))])) == [
        ("b", 0.0, 11.0, True), ("c", 0.0, 19.9, True), ("d", 0.0, 20.0, True),
    ]  # fmt: skip
    assert (len(join), join.counts.defaulted, join.counts.joined) == (1, 4, 0)


def test_a_label_waits_for_the_negatives_of_its_minute() -> None:
    join = join_of(ZERO)
    assert join.fold([examples(("a", 0), ("b", 0.5)), labels(["b"], [1.0])]) is None
    assert decided(join.fold([examples(("c", 20))])) == [("a", 0.0, 10.0, True), ("b", 1.0, 1.5, False)]
    assert (join.early, len(join)) == (0, 1)


def test_where_silence_drops_the_first_label_decides_at_once() -> None:
    join = join_of(DROP)
    found = join.fold([examples(("a", 0), ("b", 0), made=DROP), labels(["a"], [1.0])])
    assert decided(found) == [("a", 1.0, 1.0, False)]
    assert join.fold([examples(("c", 20), made=DROP)]) is None
    assert (len(join), join.counts.dropped) == (1, 1)
    assert join.fold([labels(["b"], [0.0])]) is None  # too late


@pytest.mark.parametrize("made", [ZERO, DROP])
def test_a_label_may_come_before_its_example(made: Task) -> None:
    join = join_of(made)
    assert join.fold([labels(["a", "x"], [1.0, 1.0])]) is None
    found = decided(join.fold([examples(("a", 0), made=made), examples(("b", 15), made=made)]))
    assert found == [("a", 1.0, 1.0, False)]
    assert join.early == 1


@pytest.mark.parametrize("made", [ZERO, DROP])
def test_the_first_of_several_labels_counts(made: Task) -> None:
    join = join_of(made)
    log = [
        examples(("a", 0), made=made),
        labels(["a", "a"], [1.0, 0.0]),
        labels(["a"], [0.0]),
        examples(("b", 12), made=made),
    ]
    assert decided(join.fold(log)) == [("a", 1.0, 1.0, False)]
    assert join.counts.joined == 1


@pytest.mark.parametrize(("known", "minutes"), [(None, 1.0), (5, 5.0), (-30, 0.0)])
def test_when_a_label_counts_as_known(known: int | None, minutes: float) -> None:
    join = join_of(DROP)
    stamps = [NOW_MS + known * MINUTE] if known is not None else None
    found = join.fold([examples(("a", 0), made=DROP), labels(["a"], [1.0], stamps)])
    assert decided(found) == [("a", 1.0, minutes, False)]  # never before its event


def test_what_was_served_stays_with_the_example() -> None:
    join = join_of(DROP)
    found = join.fold([examples(("a", 0), made=DROP), labels(["a"], [1.0])])
    assert found is not None
    assert (found.served.tolist(), found.version) == ([0.25], ["L1.3"])
    wanted, _, _ = wire.decode_examples(examples(("a", 0), made=DROP).value)
    assert wire.encode_rows(found.rows) == wire.encode_rows(wanted)


def test_an_example_that_was_predicted_twice_is_decided_once() -> None:
    for made in (ZERO, DROP):
        join = join_of(made)
        again = examples(("a", 0), ("b", 0), made=made)
        found = join.fold([again, again, labels(["a", "b"], [1.0, 1.0]), examples(("c", 15), made=made)])
        assert decided(found) == [("a", 1.0, 1.0, False), ("b", 1.0, 1.0, False)]
        assert (join.counts.repeated, len(join)) == (2, 1)


def test_the_end_of_a_former_window_does_not_close_another_example() -> None:
    join = join_of(DROP)
    join.fold([examples(("a", 0), made=DROP), labels(["a"], [1.0]), examples(("a", 8), made=DROP)])
    join.fold([examples(("b", 11), made=DROP)])  # the window of the first "a" ends here
    assert decided(join.fold([labels(["a"], [0.0])])) == [("a", 0.0, 9.0, False)]


def test_the_slowest_partition_closes_the_windows() -> None:
    join = join_of(ZERO)
    join.fold([examples(("slow", 0), source=1)])
    assert join.fold([examples(("a", 5)), examples(("b", 50))]) is None
    assert join.watermark_ms == NOW_MS
    assert decided(join.fold([examples(("slow2", 16), source=1)])) == [
        ("slow", 0.0, 10.0, True), ("a", 0.0, 15.0, True),
    ]  # fmt: skip


def test_an_idle_partition_holds_nobody_up() -> None:
    join = join_of(ZERO)
    join.fold([examples(("slow", 0), source=1), examples(("a", 1))])
    busy = [labels(["x"], [0.0])] * (IDLE_AFTER - 2)
    assert join.fold([*busy, examples(("b", 20))]) is None
    assert decided(join.fold([examples(("c", 20))])) == [("slow", 0.0, 10.0, True), ("a", 0.0, 11.0, True)]


def test_a_clock_that_runs_ahead_closes_nobodys_window() -> None:
    join = join_of(ZERO)
    assert join.fold([examples(("a", 0)), examples(("ahead", 50), sent_ms=NOW_MS + MINUTE)]) is None
    assert join.watermark_ms == NOW_MS + MINUTE


def test_labels_that_run_ahead_of_a_backlog_are_kept() -> None:
    """After a standstill the labels of a day are read before the examples of its first hour are served."""
    join = join_of(ZERO)
    ids = [f"e-{hour}" for hour in range(1, 20)]
    join.fold([labels([i], [1.0], timestamp=NOW_MS + (h + 1) * HOUR) for h, i in enumerate(ids)])
    found = []
    for hour, trip in enumerate(ids):
        join.fold([Record(b"junk")] * IDLE_AFTER)  # the moment to forget old labels comes now and then
        found += decided(join.fold([examples((trip, hour * 60.0))]))
    found += decided(join.fold([examples(("end", 20 * 60.0))]))
    assert [(trip, label) for trip, label, _, default in found if not default] == [(i, 1.0) for i in ids]


def test_the_label_of_a_waiting_example_is_never_forgotten() -> None:
    join = join_of(ZERO)
    join.fold([labels(["b"], [1.0], timestamp=NOW_MS), examples(("old", 0), source=1)])
    join.fold([examples(("b", 500), sent_ms=NOW_MS + 500 * MINUTE)])
    keep_alive = [
        examples((f"o-{i}", 1 + i / 1000), source=1, sent_ms=NOW_MS + 600 * MINUTE) for i in range(3)
    ]
    join.fold([*keep_alive, *[labels(["x"], [0.0], timestamp=NOW_MS + HOUR)] * IDLE_AFTER])
    found = decided(join.fold([examples(("late", 510), source=1), examples(("end", 520))]))
    assert ("b", 1.0, 501.0, False) in found


def test_labels_that_nothing_came_for_are_forgotten() -> None:
    join = join_of(ZERO)
    join.fold([labels([f"x-{i}" for i in range(50)], [1.0] * 50)])
    join.fold([examples((f"e-{i}", i / 10)) for i in range(IDLE_AFTER)])
    assert (join.early, join.counts.orphans) == (0, 50)


def test_junk_and_rows_of_another_task_file_are_passed_over() -> None:
    join = join_of(ZERO)
    other = examples(("x", 0), made=task(windows='["16m"]'))
    log = [Record(b"junk"), other, Record(b"junk", headers=((wire.KIND, wire.LABELS),)), Record(None)]
    assert join.fold([*log, examples(("a", 0))]) is None
    assert (len(join), join.counts.damaged) == (1, 4)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["examples", "examples", "labels", "junk"]),
        st.lists(st.tuples(st.integers(0, 15), st.integers(-4, 6)), min_size=1, max_size=3),
        st.integers(0, 2),
    ),
    max_size=14,
)  # fmt: skip


def log_of(steps: Any, made: Task) -> list[Record]:
    log, now = [], 0
    for offset, (kind, items, source) in enumerate(steps):
        stamp = NOW_MS + now * MINUTE
        if kind == "labels":
            ids = [f"t-{trip}" for trip, _ in items]
            known = [NOW_MS + (now + step) * MINUTE if step > 2 else -1 for _, step in items]
            log.append(
                labels(ids, [float(step % 2) for _, step in items], known, offset=offset, timestamp=stamp)
            )
        elif kind == "junk":
            log.append(Record(b"junk", offset, stamp))
        else:
            now += max(step for _, step in items)
            fields = {f"t-{trip}": max(0, now + step) for trip, step in items}
            log.append(
                examples(*fields.items(), made=made, source=source, sent_ms=stamp + HOUR, offset=offset)
            )
    return log


def results(parts: Sequence[Labelled | None]) -> bytes:
    found = [part for part in parts if part is not None]
    return wire.encode_labelled(Labelled.concat(found)) if found else b""


def state(join: JoinPartition) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in join.snapshot().items()}


@settings(max_examples=60)
@given(st.sampled_from([ZERO, DROP]), STEPS, st.lists(st.integers(0, 14), max_size=4))
def test_cuts_into_batches_change_nothing(made: Task, steps: Any, cuts: list[int]) -> None:
    log = log_of(steps, made)
    whole, cut = join_of(made), join_of(made)
    wanted = results([whole.fold(log)])
    places = [0, *sorted(min(c, len(log)) for c in cuts), len(log)]
    assert results([cut.fold(log[a:b]) for a, b in pairwise(places)]) == wanted
    assert state(cut) == state(whole)


@settings(max_examples=60)
@given(st.sampled_from([ZERO, DROP]), STEPS, st.integers(0, 14), st.integers(0, 14))
def test_a_snapshot_and_a_replay_go_on_bit_for_bit(made: Task, steps: Any, saved: int, crashed: int) -> None:
    log = log_of(steps, made)
    saved, crashed = min(saved, crashed, len(log)), min(max(saved, crashed), len(log))
    undisturbed, first, second = join_of(made), join_of(made), join_of(made)
    undisturbed.fold(log[:crashed])
    wanted = results([undisturbed.fold(log[crashed:])])
    first.fold(log[:saved])
    arrays = load_state(save_state(first.snapshot()))
    first.fold(log[saved:])
    second.restore(arrays)
    second.fold(log[saved:crashed])
    assert results([second.fold(log[crashed:])]) == wanted
    assert state(second) == state(undisturbed)


@settings(max_examples=60)
@given(st.sampled_from([ZERO, DROP]), STEPS)
def test_every_example_is_decided_at_most_once_and_never_before_it_happened(made: Task, steps: Any) -> None:
    join, waiting, decisions = join_of(made), 0, 0
    for record in log_of(steps, made):
        found = join.fold([record])
        if found is not None:
            decisions += len(found)
            first = found.take(np.flatnonzero(~found.corrects)).rows.ids
            assert len(set(first)) == len(first)
            assert (found.known_ms >= found.rows.event_ms).all()
            assert (found.known_ms[found.default] == found.rows.event_ms[found.default] + WINDOW).all()
            assert (found.known_ms[found.corrects] >= join.watermark_ms).all()
        if dict(record.headers).get(wire.KIND) == wire.EXAMPLES:
            waiting += len(wire.decode_examples(record.value)[0])
    counts = join.counts
    assert decisions == counts.joined + counts.defaulted + counts.corrected
    assert waiting == counts.joined + counts.defaulted + counts.dropped + counts.repeated + len(join)


def test_the_fingerprint_changes_with_what_the_state_means() -> None:
    found = JoinPartition(ZERO).fingerprint
    assert found == JoinPartition(task(commit_every='"5ms"')).fingerprint
    for changed in (DROP, task(window='"11m"'), task(delay='"2m"'), task(windows='["16m"]')):
        assert JoinPartition(changed).fingerprint != found
