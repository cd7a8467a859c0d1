"""All aggregates together look at nothing that comes later; decayed means and last values one by one."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurestore.snapshot import load_state, save_state
from featurestore.spec import View, parse_views
from featurestore.state import EntityState
from tests.feature_streams import (
    AMOUNTS,
    KEYS,
    SHOPS,
    VIEW,
    Event,
    Label,
    Stream,
    assert_equal_snapshots,
    fold,
    fold_stream,
    streams,
)

LARGEST_HOP = max(f.window_ms for f in VIEW.features if f.windowed) // VIEW.tiles


def rows_of(stream: Stream) -> NDArray[np.float32]:
    return fold_stream(EntityState(VIEW), stream)


# ---------------------------------------------------------------- no look-ahead


@settings(max_examples=60)
@given(streams(30), streams(15), streams(15))
def test_what_comes_later_in_the_log_changes_no_row(past: Stream, future: Stream, other: Stream) -> None:
    alone, one, two = rows_of(past), rows_of(past + future), rows_of(past + other)
    assert one[: len(alone)].tobytes() == alone.tobytes()
    assert two[: len(alone)].tobytes() == alone.tobytes()


@settings(max_examples=60)
@given(streams(30), KEYS, st.integers(-100, 700), st.data())
def test_what_a_label_says_does_not_matter_before_it_is_known(
    stream: Stream, key: int, time: int, data: st.DataObject
) -> None:
    # Such a label may already have pushed an old tile out of the window: the third condition of docs/features.md.
    def changed(item: Event | Label) -> Event | Label:
        if isinstance(item, Event) or item.known <= time:
            return item
        return replace(item, label=data.draw(st.sampled_from([0.0, 1.0, math.nan])))

    row = Event(key, time, 1.0)
    assert rows_of([*stream, row])[-1].tobytes() == rows_of([*map(changed, stream), row])[-1].tobytes()


@settings(max_examples=60)
@given(streams(30), KEYS, st.integers(-100, 700), st.data())
def test_a_late_row_learns_nothing_from_the_values_of_newer_events(
    stream: Stream, key: int, time: int, data: st.DataObject
) -> None:
    def changed(after: int) -> Stream:
        def new(event: Event) -> Event:
            return replace(event, amount=data.draw(finite), tip=data.draw(finite), shop=data.draw(SHOPS))

        return [new(item) if isinstance(item, Event) and item.time > after else item for item in events]

    # Whether there is a value decides which tiles and how many newer values there are, so all have one.
    finite = AMOUNTS.filter(math.isfinite)
    events = [replace(i, amount=1.0, tip=1.0) if isinstance(i, Event) else i for i in stream]
    row = Event(key, time, 1.0, 1.0)
    plain, recent = rows_of([*events, row])[-1], [i for i, f in enumerate(VIEW.features) if not f.windowed]
    assert rows_of([*changed(time), row])[-1][recent].tobytes() == plain[recent].tobytes()
    # A window ends with the tile of its row.
    assert rows_of([*changed(time + LARGEST_HOP), row])[-1].tobytes() == plain.tobytes()


# ---------------------------------------------------------------- snapshots


@settings(max_examples=60)
@given(streams(), st.data())
def test_a_snapshot_at_any_point_goes_on_bit_for_bit(stream: Stream, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(stream)))
    undisturbed, before = EntityState(VIEW), EntityState(VIEW)
    rows = fold_stream(undisturbed, stream)
    first = fold_stream(before, stream[:at])
    after = EntityState.restore(VIEW, load_state(save_state(before.snapshot())))
    second = fold_stream(after, stream[at:])
    assert np.concatenate([first, second]).tobytes() == rows.tobytes()
    assert_equal_snapshots(after, undisturbed)


# ---------------------------------------------------------------- decayed means


def view(**table: object) -> View:
    made = parse_views(["card"], {"amount"}, [{"entity": "card", "value": "amount", **table}], ["shop"])
    return made["card"]


HOUR = 3_600_000
DECAY = view(decay=["1h"])


def folded(of: View, *events: tuple[int, float]) -> list[list[float]]:
    """The rows of events (time, amount) of one entity."""
    times, amounts = np.array([t for t, _ in events]), np.array([x for _, x in events], np.float64)
    rows: list[list[float]] = (
        EntityState(of).update(np.ones(len(events), np.int64), times, {"amount": amounts}).tolist()
    )
    return rows


def test_a_value_has_half_its_weight_after_a_half_life() -> None:
    rows = folded(DECAY, (0, 10.0), (HOUR, 20.0), (HOUR, 40.0), (3 * HOUR, 0.0))
    assert np.isnan(rows[0][0])
    # The second of two events at one time sees the first: it was processed before.
    assert [row[0] for row in rows[1:]] == pytest.approx([10.0, 25 / 1.5, 65 / 2.5])


def test_a_late_value_gets_the_weight_of_its_own_time() -> None:
    in_order = folded(DECAY, (0, 8.0), (HOUR, 2.0), (2 * HOUR, 4.0), (3 * HOUR, 0.0))
    late = folded(DECAY, (2 * HOUR, 4.0), (HOUR, 2.0), (0, 8.0), (3 * HOUR, 0.0))
    assert in_order[-1] == late[-1] == pytest.approx([(8 / 4 + 2 / 2 + 4) / (1 / 4 + 1 / 2 + 1)])


def test_one_clock_that_runs_ahead_takes_no_mean_away() -> None:
    rows = folded(DECAY, (0, 10.0), (900 * HOUR, 99.0), (1, 20.0), (2, 0.0))
    assert rows[2:] == [[10.0], pytest.approx([15.0])]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**52), 2**52) | st.integers(0, 5), st.floats(-1e308, 1e308) | st.just(math.inf)
        ),
        min_size=1,
        max_size=20,
    )
)
@example([(0, 1e308), (0, 1e308), (0, 1e308), (2**52, -1e308), (2**52, -1e308)])
def test_no_jump_and_no_value_spoils_a_mean_for_good(events: Sequence[tuple[int, float]]) -> None:
    end = max(time for time, _ in events)
    rows = np.array(folded(view(decay=["1ms", "1h", "3650d"], last=2), *events, (end, 1.0), (end, 1.0)))
    assert not np.isinf(rows).any()
    assert np.isfinite(rows[-1][:4]).all()


# ---------------------------------------------------------------- last values


LAST = view(last=2)


def same(rows: list[list[float]], wanted: list[list[float]]) -> bool:
    return np.array_equal(np.array(rows), np.array(wanted), equal_nan=True)


def test_the_last_values_come_newest_first() -> None:
    none = math.nan
    rows = folded(LAST, (0, 1.0), (1, 2.0), (2, none), (3, 3.0), (4, 0.0))
    assert same(rows, [[none, none], [1.0, none], [2.0, 1.0], [2.0, 1.0], [3.0, 2.0]])


def test_of_equal_times_the_one_processed_later_is_the_newer() -> None:
    assert folded(LAST, (5, 1.0), (5, 2.0), (5, 3.0), (5, 0.0))[-1] == [3.0, 2.0]


def test_late_values_go_to_their_place_and_late_rows_see_nothing_newer() -> None:
    none = math.nan
    rows = folded(LAST, (10, 1.0), (30, 3.0), (20, 2.0), (5, 9.0), (25, 4.0), (40, 0.0))
    assert same(rows[2:], [[1.0, none], [none, none], [2.0, 1.0], [3.0, 4.0]])


def test_one_clock_that_runs_ahead_hides_no_value() -> None:
    rows = folded(LAST, (10, 1.0), (11, 2.0), (10**15, 99.0), (12, 3.0), (13, 0.0))
    assert rows[3:] == [[2.0, 1.0], [3.0, 2.0]]


def test_the_longest_sequence() -> None:
    rows = folded(view(last=32), *[(i, float(i)) for i in range(50)])
    assert rows[-1] == [float(i) for i in range(48, 16, -1)]


# ---------------------------------------------------------------- together


def test_the_same_value_in_two_tables_shares_its_state() -> None:
    tables = [{"entity": "card", "value": "amount", "decay": [d]} for d in ("1h", "1d")]
    apart = parse_views(["card"], {"amount"}, tables)["card"]
    together = view(decay=["1h", "1d"])
    assert apart == together
    assert EntityState(apart).bytes_per_entity == 8 * (2 + 4 + 2 * 2) + 8


def test_rows_that_are_only_read_know_no_one() -> None:
    state = EntityState(VIEW)
    row = fold(state, [Event(1, 5, 1.0, 1.0, 3, add=False)])[0]
    known = [f.name for f, x in zip(VIEW.features, row, strict=True) if np.isfinite(x) and x != 0]
    assert (len(state), known) == (0, [])
