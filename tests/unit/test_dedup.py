"""Seen ids against a slow reference; duplicates within the horizon are always found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dedup import SeenIds
from featurestore.snapshot import CorruptSnapshot

HORIZON = 100

IDS = st.sampled_from([0, 1, 2, -1, 2**62, 1024, 2048])
# Times that mostly go on, with some that come late or leap ahead.
STREAMS = st.lists(st.tuples(IDS, st.integers(-40, 60) | st.sampled_from([250, -250])), max_size=60).map(
    lambda steps: [(key, 1000 + sum(step for _, step in steps[: i + 1])) for i, (key, _) in enumerate(steps)]
)


def check(seen: SeenIds, stream: list[tuple[int, int]]) -> list[bool]:
    ids = np.array([key for key, _ in stream], np.int64)
    return [bool(first) for first in seen.check_and_add(ids, np.array([at for _, at in stream], np.int64))]


class Reference:
    """The two generations as sets."""

    def __init__(self) -> None:
        self.generation: int | None = None
        self.sets: dict[int, set[int]] = {}

    def check(self, key: int, at: int) -> bool:
        own = at // HORIZON
        self.generation = own if self.generation is None else max(own, self.generation)
        kept = (self.generation, self.generation - 1)
        self.sets = {g: ids for g, ids in self.sets.items() if g in kept}
        if any(key in ids for ids in self.sets.values()):
            return False
        self.sets.setdefault(max(own, self.generation - 1), set()).add(key)
        return True


@settings(max_examples=200)
@given(STREAMS, st.data())
def test_answers_are_those_of_the_reference_however_batched(
    stream: list[tuple[int, int]], data: st.DataObject
) -> None:
    reference, seen = Reference(), SeenIds(HORIZON)
    wanted = [reference.check(key, at) for key, at in stream]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    found = []
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += check(seen, stream[a:b])
        seen = SeenIds.restore(HORIZON, seen.snapshot())
    assert found == wanted
    assert len(seen) == sum(len(ids) for ids in reference.sets.values())


@settings(max_examples=200)
@given(STREAMS)
def test_a_duplicate_within_the_horizon_is_always_found(stream: list[tuple[int, int]]) -> None:
    added_at: dict[int, int] = {}
    newest = -(10**9)
    for (key, at), first in zip(stream, check(SeenIds(HORIZON), stream), strict=True):
        newest = max(newest, at)
        if key in added_at and newest < added_at[key] + HORIZON:
            assert not first
        if first:
            added_at[key] = at


def test_memory_is_bounded_by_two_horizons() -> None:
    seen = SeenIds(HORIZON)
    for start in range(0, 5000, 50):
        times = np.arange(start, start + 50)
        assert seen.check_and_add(times * 31, times).all()
        assert len(seen) <= 2 * HORIZON


def test_many_ids_in_one_batch() -> None:
    ids = np.arange(-50_000, 50_000)
    seen = SeenIds(HORIZON)
    assert seen.check_and_add(ids, np.full(len(ids), 5)).all()
    assert not seen.check_and_add(ids, np.full(len(ids), 5)).any()
    assert len(seen) == len(ids)


def test_a_snapshot_of_another_horizon_or_shape_is_refused() -> None:
    good = SeenIds(HORIZON).snapshot()
    with pytest.raises(CorruptSnapshot, match="not for 7 ms"):
        SeenIds.restore(7, good)
    with pytest.raises(CorruptSnapshot, match="newer"):
        SeenIds.restore(HORIZON, {name: array for name, array in good.items() if name != "newer"})
    with pytest.raises(CorruptSnapshot, match="malformed"):
        SeenIds.restore(HORIZON, {**good, "older": np.zeros(3)})


def test_no_rows_and_wrong_rows() -> None:
    assert len(SeenIds(HORIZON).check_and_add(np.empty(0, np.int64), np.empty(0, np.int64))) == 0
    with pytest.raises(ValueError, match="differ"):
        SeenIds(HORIZON).check_and_add(np.arange(2), np.arange(3))
    with pytest.raises(ValueError, match="horizon"):
        SeenIds(0)
