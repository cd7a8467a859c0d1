"""The kernels against a slow reference that recomputes each value from the raw events (docs/features.md)."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.state import EntityState
from tests.feature_streams import (
    KEYS,
    VIEW,
    Event,
    Label,
    Stream,
    assert_equal_snapshots,
    expected,
    fold,
    fold_labels,
    streams,
)

# Only these may round differently; all else must agree to the last bit.
TOLERANCE = np.array(
    [{"std": 1e-5, "ratio": 1e-5, "decayed": 1e-6}.get(f.aggregate, 0.0) for f in VIEW.features]
)


@settings(max_examples=200)
@given(streams())
@example([Event(0, 79, 1.0), Event(0, 80, 2.0), Event(0, 0, 4.0), Event(0, 80, 8.0), Event(0, 79, 1.0)])
@example([Label(0, 10, 1.0), Event(0, 9), Event(0, 10), Label(0, 11, 0.0), Event(0, 11), Event(0, 15)])
def test_every_value_is_what_the_raw_events_say(stream: Stream) -> None:
    state = EntityState(VIEW)
    past: list[Event] = []
    labels: list[Label] = []
    for item in stream:
        if isinstance(item, Label):
            fold_labels(state, [item])
            labels.append(item)
            continue
        found = fold(state, [item])[0]
        wanted = np.array([expected(f, VIEW, past, labels, item) for f in VIEW.features], np.float32)
        wrong = ~np.isclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        where = [(VIEW.columns[i], found[i], wanted[i]) for i in np.flatnonzero(wrong)]
        assert not where, f"{where} of {item} after {past} and {labels}"
        past.append(item)


@settings(max_examples=60)
@given(streams(), st.data())
def test_batches_do_not_matter(stream: Stream, data: st.DataObject) -> None:
    events = [item for item in stream if isinstance(item, Event)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=6)))
    whole, cut = EntityState(VIEW), EntityState(VIEW)
    rows = fold(whole, events)
    parts = [fold(cut, events[a:b]) for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    assert rows.tobytes() == np.concatenate(parts).tobytes()
    assert_equal_snapshots(whole, cut)


@settings(max_examples=60)
@given(streams())
def test_events_and_labels_commute(stream: Stream) -> None:
    events = [item for item in stream if isinstance(item, Event)]
    labels = [item for item in stream if isinstance(item, Label)]
    as_it_came, events_first, labels_first = EntityState(VIEW), EntityState(VIEW), EntityState(VIEW)
    for item in stream:
        if isinstance(item, Event):
            fold(as_it_came, [item])
        else:
            fold_labels(as_it_came, [item])
    fold(events_first, events)
    fold_labels(events_first, labels)
    fold_labels(labels_first, labels)
    fold(labels_first, events)
    assert_equal_snapshots(as_it_came, events_first)
    assert_equal_snapshots(as_it_came, labels_first)


@settings(max_examples=200)
@given(st.lists(st.tuples(KEYS, st.integers(0, 600))), KEYS, st.integers(0, 600))
@example([(7, 41)], 7, 40)
@example([(7, 40), (7, 41)], 7, 40)
def test_no_label_counts_before_it_is_known(known: list[tuple[int, int]], key: int, time: int) -> None:
    # A label from the future says 1 and any other 0: every rate above 0 has looked ahead.
    state = EntityState(VIEW)
    fold_labels(state, [Label(of, at, float(at > time)) for of, at in known])
    row = fold(state, [Event(key, time)])[0]
    rates = [row[i] for i, feature in enumerate(VIEW.features) if feature.aggregate == "label_rate"]
    assert not any(rate > 0 for rate in rates)


def test_an_event_is_not_in_its_own_window() -> None:
    first, second = fold(EntityState(VIEW), [Event(1, 100, 5.0), Event(1, 100, 7.0)])
    at = VIEW.columns.index("card_amount_sum_80ms")
    assert first[at] == 0.0
    assert second[at] == 5.0


def test_a_window_holds_all_of_its_length_less_a_hop_and_never_more_than_its_length() -> None:
    at = VIEW.columns.index("card_amount_count_80ms")  # tiles of 10 ms
    for now in range(200, 220):
        ages = range(100)
        state = EntityState(VIEW)
        fold(state, [Event(age, now - age, 1.0) for age in ages])
        for age, row in zip(ages, fold(state, [Event(age, now, 1.0) for age in ages]), strict=True):
            if age <= 70:
                assert row[at] == 1.0, (now, age)
            if age >= 80:
                assert row[at] == 0.0, (now, age)


def test_a_row_that_is_not_added_leaves_no_trace() -> None:
    state = EntityState(VIEW)
    fold(state, [Event(1, 100, 5.0)])
    before = state.snapshot()
    fold(state, [Event(1, 101, 6.0, add=False), Event(2, 101, 6.0, add=False)])
    assert len(state) == 1
    assert all(np.array_equal(before[name], array) for name, array in state.snapshot().items())


def test_values_beyond_float32_stay_finite() -> None:
    row = fold(EntityState(VIEW), [Event(1, 100, 1e300), Event(1, 100, -1e300), Event(1, 101, 1.0)])[1]
    assert row[VIEW.columns.index("card_amount_sum_80ms")] == np.finfo(np.float32).max


def test_nothing_known_is_zero_for_counts_and_sums_and_otherwise_missing() -> None:
    row = fold(EntityState(VIEW), [Event(1, 100, 5.0)])[0]
    for feature, value in zip(VIEW.features, row, strict=True):
        if feature.aggregate in ("count", "sum", "distinct"):
            assert value == 0.0, feature.name
        else:
            assert np.isnan(value), feature.name
