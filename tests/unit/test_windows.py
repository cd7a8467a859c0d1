"""The kernels against a slow reference that recomputes each value from the raw events (docs/features.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurestore.spec import Feature, View, parse_views
from featurestore.state import EntityState

VIEW = parse_views(
    ["card"],
    {"amount", "tip"},
    [
        {
            "entity": "card",
            "value": "amount",
            "windows": ["8ms", "80ms", "400ms"],
            "aggregates": ["count", "sum", "mean", "min", "max", "std", "ratio"],
        },
        {"entity": "card", "value": "tip", "windows": ["80ms"], "aggregates": ["mean", "std"]},
        {
            "entity": "card",
            "windows": ["16ms", "80ms"],
            "aggregates": ["count"],
            "time_since_last": True,
            "label_rate": ["40ms", "400ms"],
        },
    ],
)["card"]


@dataclass(frozen=True)
class Event:
    key: int
    time: int
    amount: float = math.nan
    tip: float = math.nan
    add: bool = True


@dataclass(frozen=True)
class Label:
    key: int
    known: int
    label: float


# ---------------------------------------------------------------- the reference


def held(tiles_seen: Sequence[int], tile: int, now: int, tiles: int) -> bool:
    """Does the window at tile `now` hold an event of `tile`, after events of `tiles_seen` were processed?"""
    in_window = now - tiles < tile <= now
    taken = any(seen > tile and (seen - tile) % tiles == 0 for seen in tiles_seen)
    return in_window and not taken


def expected(
    feature: Feature, view: View, past: Sequence[Event], labels: Sequence[Label], row: Event
) -> float:
    """One feature of a row from all that was processed before it."""
    mine = [event for event in past if event.key == row.key and event.add]
    if feature.aggregate == "time_since_last":
        newest = max((event.time for event in mine), default=None)
        return math.nan if newest is None or newest > row.time else (row.time - newest) / 1000
    hop = feature.window_ms // view.tiles
    now = row.time // hop
    if feature.aggregate == "label_rate":
        known = [label for label in labels if label.key == row.key]
        seen = [math.ceil(label.known / hop) for label in known]
        xs = [k.label for k, tile in zip(known, seen, strict=True) if held(seen, tile, now, view.tiles)]
        xs = [x for x in xs if math.isfinite(x)]
        return sum(xs) / len(xs) if xs else math.nan
    seen = [event.time // hop for event in mine]
    inside = [e for e, tile in zip(mine, seen, strict=True) if held(seen, tile, now, view.tiles)]
    if feature.value is None:
        return len(inside)
    xs = [x for x in (getattr(event, feature.value) for event in inside) if math.isfinite(x)]
    return aggregate(feature.aggregate, xs, getattr(row, feature.value))


def aggregate(name: str, xs: list[float], own: float) -> float:
    if name in ("count", "sum"):
        return len(xs) if name == "count" else sum(xs)
    if not xs:
        return math.nan
    mean = sum(xs) / len(xs)
    if name == "ratio":
        return own / mean if mean and math.isfinite(own) else math.nan
    if name == "std":
        return math.sqrt(sum((x - mean) ** 2 for x in xs) / len(xs))
    return {"mean": mean, "min": min(xs), "max": max(xs)}[name]


# ---------------------------------------------------------------- streams


Columns = tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.float64]]]


def columns(events: Sequence[Event]) -> Columns:
    values = {name: np.array([getattr(e, name) for e in events], np.float64) for name in ("amount", "tip")}
    return np.array([e.key for e in events], np.int64), np.array([e.time for e in events], np.int64), values


def fold(state: EntityState, events: Sequence[Event]) -> NDArray[np.float32]:
    return state.update(*columns(events), np.array([e.add for e in events], np.bool_))


def fold_labels(state: EntityState, labels: Sequence[Label]) -> None:
    state.add_labels(
        np.array([label.key for label in labels], np.int64),
        np.array([label.known for label in labels], np.int64),
        np.array([label.label for label in labels], np.float64),
    )


# Eighths add up without rounding, so that the reference may add in any order and still agree to the last bit.
AMOUNTS = st.integers(-4000, 4000).map(lambda n: n / 8) | st.sampled_from([math.nan, math.inf, 0.0, 0.125])
KEYS = st.sampled_from([0, -1, 7, 2**62])


@st.composite
def streams(draw: st.DrawFn) -> list[Event | Label]:
    """Mostly small steps forward; also equal times, late rows, repetitions, and jumps of the clock."""
    now, stream = draw(st.sampled_from([0, -50, 1_543_000_000_000])), list[Event | Label]()
    for _ in range(draw(st.integers(1, 40))):
        kind = draw(st.sampled_from(["step", "step", "step", "equal", "late", "jump", "again"]))
        if kind == "again" and stream:
            stream.append(draw(st.sampled_from(stream)))
            continue
        if kind in ("step", "jump"):
            now += draw(
                st.integers(0, 30) if kind == "step" else st.sampled_from([500, -500, 10_000, -10_000])
            )
        time = now - (draw(st.integers(0, 600)) if kind == "late" else 0)
        if draw(st.integers(0, 3)):
            stream.append(Event(draw(KEYS), time, draw(AMOUNTS), draw(AMOUNTS), draw(st.integers(0, 5)) > 0))
        else:
            stream.append(Label(draw(KEYS), time, draw(st.sampled_from([0.0, 1.0, 0.5, math.nan]))))
    return stream


# ---------------------------------------------------------------- tests


@settings(max_examples=200, deadline=None)
@given(streams())
@example([Event(0, 79, 1.0), Event(0, 80, 2.0), Event(0, 0, 4.0), Event(0, 80, 8.0), Event(0, 79, 1.0)])
@example([Label(0, 10, 1.0), Event(0, 9), Event(0, 10), Label(0, 11, 0.0), Event(0, 11), Event(0, 15)])
def test_every_value_is_what_the_raw_events_say(stream: list[Event | Label]) -> None:
    state = EntityState(VIEW)
    past: list[Event] = []
    labels: list[Label] = []
    for item in stream:
        if isinstance(item, Label):
            fold_labels(state, [item])
            labels.append(item)
            continue
        found = fold(state, [item])[0]
        for feature, value in zip(VIEW.features, found, strict=True):
            wanted = np.float32(expected(feature, VIEW, past, labels, item))
            # Only std and ratio may round differently; all else must agree to the last bit.
            tolerance = 1e-5 if feature.aggregate in ("std", "ratio") else 0.0
            message = f"{feature.name} of {item} after {past} and {labels}"
            assert value == pytest.approx(wanted, rel=tolerance, abs=tolerance, nan_ok=True), message
        past.append(item)


@settings(max_examples=60, deadline=None)
@given(streams(), st.data())
def test_batches_do_not_matter(stream: list[Event | Label], data: st.DataObject) -> None:
    events = [item for item in stream if isinstance(item, Event)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=6)))
    whole, cut = EntityState(VIEW), EntityState(VIEW)
    rows = fold(whole, events)
    parts = [fold(cut, events[a:b]) for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    assert rows.tobytes() == np.concatenate(parts).tobytes()
    assert_equal_snapshots(whole, cut)


@settings(max_examples=60, deadline=None)
@given(streams())
def test_events_and_labels_commute(stream: list[Event | Label]) -> None:
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


@settings(max_examples=200, deadline=None)
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
        for age in range(100):
            row = fold(EntityState(VIEW), [Event(1, now - age, 1.0), Event(1, now, 1.0)])[1]
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
        if feature.aggregate in ("count", "sum"):
            assert value == 0.0, feature.name
        else:
            assert np.isnan(value), feature.name


def assert_equal_snapshots(a: EntityState, b: EntityState) -> None:
    one, other = a.snapshot(), b.snapshot()
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
