"""A snapshot is the whole state, and nothing else is taken for one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurestore.snapshot import CorruptSnapshot, load_state, save_state
from featurestore.spec import View, parse_views
from featurestore.state import EntityState


def view(window: str = "80ms") -> View:
    table = {
        "entity": "card",
        "value": "amount",
        "windows": [window],
        "aggregates": ["count", "mean", "std"],
        "time_since_last": True,
        "label_rate": ["40ms"],
    }
    return parse_views(["card"], {"amount"}, [table])["card"]


def fold(
    state: EntityState, rng: np.random.Generator, rows: int, entities: int, start: int = 0
) -> NDArray[np.float32]:
    keys = rng.integers(0, entities, rows) * 7919 - 5
    times = start + np.sort(rng.integers(0, 500, rows))
    state.add_labels(keys[::3], times[::3] + 50, (keys[::3] % 2).astype(np.float64))
    return state.update(keys, times, {"amount": rng.normal(size=rows)})


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    state = EntityState(view())
    fold(state, rng, rows=2000, entities=300)
    restored = EntityState.restore(view(), load_state(save_state(state.snapshot())))
    assert len(restored) == len(state) == 300
    one = fold(state, np.random.default_rng(2), rows=2000, entities=400, start=300)
    other = fold(restored, np.random.default_rng(2), rows=2000, entities=400, start=300)
    assert one.tobytes() == other.tobytes()
    assert save_state(state.snapshot()) == save_state(restored.snapshot())


def test_an_empty_state_has_a_snapshot_too() -> None:
    restored = EntityState.restore(view(), load_state(save_state(EntityState(view()).snapshot())))
    assert len(restored) == 0
    assert fold(restored, np.random.default_rng(0), rows=10, entities=3).shape == (10, len(view().features))


def test_a_snapshot_is_a_copy() -> None:
    rng = np.random.default_rng(1)
    state = EntityState(view())
    fold(state, rng, rows=100, entities=10)
    snapshot = state.snapshot()
    before = save_state(snapshot)
    fold(state, rng, rows=100, entities=10)
    assert save_state(snapshot) == before
    EntityState.restore(view(), snapshot).update(*one_row(key=-5, time=400))
    assert save_state(snapshot) == before


@settings(max_examples=200)
@given(st.data())
def test_damaged_or_cut_bytes_are_never_loaded(data: st.DataObject) -> None:
    whole = save_state({"a": np.arange(20), "b": np.zeros((0, 3)), "c": np.frombuffer(b"text", np.uint8)})
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        damaged = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    with pytest.raises(CorruptSnapshot):
        load_state(damaged)


def test_arrays_come_back_as_they_were() -> None:
    arrays: dict[str, NDArray[Any]] = {
        "a": np.arange(20),
        "b": np.zeros((0, 3), np.float32),
        "c": np.array([[True], [False]]),
    }
    back = load_state(save_state(arrays))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)
        assert back[name].flags.writeable


def test_a_snapshot_of_another_definition_is_refused() -> None:
    snapshot = EntityState(view("80ms")).snapshot()
    with pytest.raises(CorruptSnapshot, match="another definition"):
        EntityState.restore(view("160ms"), snapshot)


@pytest.mark.parametrize("name", ["view", "keys", "cells"])
def test_a_snapshot_without_one_of_its_arrays_is_refused(name: str) -> None:
    snapshot = EntityState(view()).snapshot()
    del snapshot[name]
    with pytest.raises(CorruptSnapshot, match=name):
        EntityState.restore(view(), snapshot)


def test_a_snapshot_that_does_not_fit_together_is_refused() -> None:
    state = EntityState(view())
    fold(state, np.random.default_rng(1), rows=100, entities=10)
    good = state.snapshot()
    with pytest.raises(CorruptSnapshot, match="shape"):
        EntityState.restore(view(), {**good, "cells": good["cells"][1:]})
    with pytest.raises(CorruptSnapshot, match="different"):
        EntityState.restore(view(), {**good, "keys": np.zeros_like(good["keys"])})


def test_many_entities_keep_their_own_rows() -> None:
    # More entities than one kernel call takes rows, with keys that differ only in their high bits.
    keys = (np.arange(70_000) << 40).astype(np.int64)
    state = EntityState(view())
    times = np.full(len(keys), 100)
    state.update(keys, times, {"amount": keys.astype(np.float64)})
    rows = state.update(keys, times + 1, {"amount": keys.astype(np.float64)})
    mean = rows[:, view().columns.index("card_amount_mean_80ms")]
    assert len(state) == len(keys)
    assert np.array_equal(mean, keys.astype(np.float32))


def test_expired_entities_are_forgotten_and_the_others_are_not() -> None:
    state = EntityState(view())
    state.update(np.array([1, 2, 3]), np.array([100, 200, 300]), {"amount": np.ones(3)})
    state.add_labels(np.array([1]), np.array([250]), np.array([1.0]))
    assert state.expire(before_ms=250) == 1
    assert len(state) == 2
    count = view().columns.index("card_amount_count_80ms")
    rows = state.update(np.array([2, 3]), np.array([301, 301]), {"amount": np.ones(2)})
    assert rows[:, count].tolist() == [0.0, 1.0]


def test_an_entity_of_three_windows_takes_less_than_a_kilobyte() -> None:
    table = {
        "entity": "card",
        "value": "amount",
        "windows": ["1d", "7d", "30d"],
        "aggregates": ["count", "sum", "mean", "ratio"],
    }
    assert EntityState(parse_views(["card"], {"amount"}, [table])["card"]).bytes_per_entity <= 1024


def test_decayed_means_last_values_and_sketches_take_what_the_documents_say() -> None:
    def words(**table: Any) -> int:
        made = parse_views(["card"], {"amount"}, [{"entity": "card", "value": "amount", **table}])["card"]
        return EntityState(made).bytes_per_entity // 8 - 3  # the key and two times

    assert words(windows=["1d"], aggregates=["distinct"]) == 8 * 9
    assert words(decay=["1h", "1d"]) == 4 + 2 * 2
    assert words(last=5) == 2 * 6


def test_columns_of_other_lengths_and_missing_values_are_refused() -> None:
    state = EntityState(view())
    with pytest.raises(ValueError, match="3 rows"):
        state.update(np.arange(3), np.arange(2), {"amount": np.ones(3)})
    with pytest.raises(KeyError, match="amount"):
        state.update(np.arange(3), np.arange(3), {})


def one_row(
    key: int, time: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    return np.array([key]), np.array([time]), {"amount": np.ones(1)}
