"""Windows close when events and labels have both come so far, however the two paths race."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.snapshot import load_state, save_state
from streams.gate import BEGINNING, IDLE, Gate
from streams.joining import JoinPartition
from tests.stream_records import MINUTE, NOW_MS, Record, labels
from tests.unit.test_joining import ZERO, decided, examples

SECOND = 1000


def at(minutes: float) -> int:
    return NOW_MS + round(minutes * MINUTE)


def mark(minutes: float, partition: int = 0, of: int = 1) -> Record:
    """Partition `partition` of the labels topic has come to a minute of Kafka's time."""
    return labels([], [], mark=(partition, of, at(minutes)))


def test_a_window_waits_for_labels_that_kafka_had_before_the_event_that_ended_it() -> None:
    join = JoinPartition(ZERO)
    assert join.fold([mark(1), examples(("a", 0)), examples(("b", 12))]) is None
    assert join.behind_ms == 0  # the event at minute 12 is the first that waits
    assert join.fold([examples(("c", 13)), mark(12)]) is None  # a label of the same millisecond may follow
    assert join.behind_ms == MINUTE
    found = join.fold([labels(["a"], [1.0]), mark(12.001)])
    assert decided(found) == [("a", 1.0, 1.0, False)]
    assert join.fold([mark(14)]) is None  # the window of b is open


def test_nothing_closes_before_every_partition_of_the_labels_has_spoken() -> None:
    join = JoinPartition(ZERO)
    assert join.fold([examples(("a", 0)), examples(("b", 12))]) is None
    assert join.fold([mark(20, 0, of=3), mark(20, 1, of=3)]) is None
    assert decided(join.fold([mark(20, 2, of=3)])) == [("a", 0.0, 10.0, True)]
    join.fold([examples(("c", 30))])
    assert join.fold([mark(40, 0, of=4), mark(40, 1, of=4), mark(40, 2, of=4)]) is None  # a fourth was added
    assert decided(join.fold([mark(40, 3, of=4)])) == [("b", 0.0, 22.0, True)]


def test_a_mark_never_goes_back_and_one_that_cannot_be_read_is_damaged() -> None:
    join = JoinPartition(ZERO)
    join.fold([mark(20), mark(5), examples(("a", 0))])
    assert decided(join.fold([examples(("b", 12))])) == [("a", 0.0, 10.0, True)]
    broken = mark(20)
    headers = tuple(
        (name, b"?" if name == "driftline.watermark" else value) for name, value in broken.headers
    )
    join.fold([Record(broken.value, headers=headers)])
    assert join.counts.damaged == 1


def test_marks_alone_do_not_make_a_partition_of_events_look_idle() -> None:
    join = JoinPartition(ZERO)
    join.fold([examples(("slow", 0), source=1), examples(("a", 1))])
    join.fold([mark(50)] * 2000)
    assert join.fold([examples(("b", 20))]) is None
    assert join.watermark_ms == at(0)


def test_one_clock_ahead_holds_windows_up_for_one_record_only() -> None:
    """A producer that stamps an event an hour ahead of Kafka: the next record closes what waits for that stamp."""
    join = JoinPartition(ZERO)
    join.fold([mark(1), examples(("a", 0)), examples(("b", 12), sent_ms=at(72))])
    assert join.fold([mark(13)]) is None
    assert decided(join.fold([examples(("c", 14)), mark(15)])) == [("a", 0.0, 10.0, True)]


def test_what_waits_for_the_labels_is_bounded_and_ends_with_the_newest() -> None:
    gate = Gate()
    for second in range(10_000):
        times = np.array([NOW_MS + second * SECOND])
        gate.heard(np.zeros(1, np.int32), times, times)
    assert len(gate._waiting) <= 4097
    assert gate.closing_ms == BEGINNING
    gate.passed(0, labels([], [], mark=(0, 1, NOW_MS + 5_000 * SECOND)).headers)
    assert NOW_MS + 4_980 * SECOND < gate.closing_ms < NOW_MS + 5_000 * SECOND
    gate.passed(0, labels([], [], mark=(0, 1, IDLE)).headers)
    assert gate.closing_ms == NOW_MS + 9_999 * SECOND


EVENTS = st.lists(
    # (event partition, labels partition, seconds since the last event, minutes to its label; more than 9: none comes)
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 400), st.integers(0, 12)),
    min_size=1, max_size=25,
)  # fmt: skip


def paths_of(events: Any) -> tuple[list[list[Record]], set[str]]:
    """A stream that was sent in its order, on paths that keep their own order only; and the ids that have a label.

    Three paths of examples and two of labels, as (moment, ...) sorted by their moment. Kafka's clock runs 100 times as
    fast as event time: the stream is replayed.
    """
    items: list[tuple[int, str, int]] = []
    now = 0
    for number, (source, place, gap, minutes) in enumerate(events):
        now += gap * SECOND
        items.append((now, f"e-{number}", source))
        if minutes <= 9:
            items.append((now + minutes * MINUTE, f"e-{number}", -1 - place))
    items.sort(key=lambda item: item[0])
    paths: list[list[Record]] = [[] for _ in range(5)]
    for moment, event_id, where in items:
        stamp = NOW_MS + moment // 100
        if where >= 0:
            record = examples((event_id, moment / MINUTE), source=where, sent_ms=stamp + 10**9)
            paths[where].append(record)
        else:
            told = (-1 - where, 2, stamp + 10**9)
            paths[2 - where].append(labels([event_id], [1.0], mark=told, timestamp=stamp + 10**9))
    return paths, {event_id for _, event_id, where in items if where < 0}


@settings(max_examples=150)
@given(EVENTS, st.data())
def test_no_label_loses_the_race_however_the_paths_are_mixed(events: Any, data: st.DataObject) -> None:
    paths, labelled = paths_of(events)
    log: list[Record] = []
    waiting = [list(path) for path in paths]
    while any(waiting):
        chosen = data.draw(st.sampled_from([i for i, path in enumerate(waiting) if path]))
        log.append(waiting[chosen].pop(0))
    log += [examples(("end", 10_000.0), source=0, sent_ms=NOW_MS + 10**10)]
    log += [labels([], [], mark=(place, 2, IDLE)) for place in (0, 1)]
    cut = data.draw(st.integers(0, len(log)))
    join, again = JoinPartition(ZERO), JoinPartition(ZERO)
    found = decided(join.fold(log[:cut]))
    again.restore(load_state(save_state(join.snapshot())))
    rest = decided(join.fold(log[cut:]))
    assert decided(again.fold(log[cut:])) == rest
    found += rest
    wrong = {event_id for event_id, label, _, _ in found if (label == 1.0) != (event_id in labelled)}
    assert wrong == set()
    assert join.counts.corrected == 0
    assert len(found) == join.counts.joined + join.counts.defaulted
