"""`distinct`: what its sketch counts, and how well."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.sketch import NOTHING, SHARES, bits_of_hashes, bits_of_numbers
from featurestore.spec import View, parse_views
from featurestore.state import EntityState
from tests.feature_streams import distinct, mark

ONE = np.ones(1, np.int64)


def view(value: str) -> View:
    table = {"entity": "card", "value": value, "windows": ["80ms"], "aggregates": ["distinct"]}
    return parse_views(["card"], {"amount"}, [table], ["shop"])["card"]


def counted(shops: NDArray[np.int64], times: NDArray[np.int64], key: int = 1) -> NDArray[np.float32]:
    keys = np.full(len(shops), key)
    return EntityState(view("shop")).update(keys, times, {}, hashed={"shop": shops})[:, 0]


def test_a_value_counts_once_and_a_missing_one_not_at_all() -> None:
    shops = np.array([5, 5, 0, 6, 5, 7, 0])
    assert counted(shops, np.full(7, 100)).tolist() == [0, 1, 1, 1, 2, 2, 3]


def test_a_value_in_two_tiles_counts_once_and_leaves_with_the_last() -> None:
    shops, times = np.array([5, 6, 5, 0, 0, 0]), np.array([100, 100, 130, 131, 185, 215])
    assert counted(shops, times).tolist() == [0, 1, 2, 2, 1, 0]


def test_numbers_count_by_what_they_are() -> None:
    amounts = np.array([0.0, -0.0, 1.5, math.nan, math.inf, -1.5, 0.0])
    rows = EntityState(view("amount")).update(np.ones(7, np.int64), np.full(7, 100), {"amount": amounts})
    assert rows[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3]


def test_bits_are_those_of_the_reference_and_fall_as_often_as_they_should() -> None:
    hashes = np.random.default_rng(3).integers(-(2**63), 2**63 - 1, 400_000)
    bits = bits_of_hashes(hashes)
    places = [mark(int(h) % 2**64) for h in hashes[:500]]
    assert bits[:500].tolist() == [bit if level == 0 else 128 + 64 * level + bit for level, bit in places]
    levels = np.maximum(bits // 64 - 2, 0)
    for level, share in enumerate(SHARES):
        assert np.mean(levels >= level) == pytest.approx(share, rel=0.3), level


def test_missing_values_have_no_bit() -> None:
    assert bits_of_hashes(np.array([0, 1]))[0] == NOTHING
    assert (bits_of_numbers(np.array([math.nan, math.inf, -math.inf])) == NOTHING).all()


# Docs say 6, 8 and 15 %; 60 sketches tell that to within about a tenth of itself.
@pytest.mark.parametrize(
    ("values", "most"),
    [(1, 0.0), (5, 0.09), (30, 0.065), (200, 0.07), (600, 0.09), (3000, 0.16), (30_000, 0.16)],
)
def test_the_error_is_what_the_documents_say(values: int, most: float) -> None:
    entities = 60
    rng = np.random.default_rng(values)
    keys = np.repeat(np.arange(entities), values)
    times = np.repeat(np.sort(rng.integers(80, 150, values))[None], entities, 0).ravel()  # over all the tiles
    state = EntityState(view("shop"))
    state.update(keys, times, {}, hashed={"shop": rng.integers(1, 2**62, len(keys))})
    ends = np.full(entities, 150)
    found = state.update(np.arange(entities), ends, {}, hashed={"shop": np.zeros(entities, np.int64)})[:, 0]
    assert np.sqrt(np.mean((found / values - 1) ** 2)) <= most
    assert abs(np.mean(found / values - 1)) <= most / 2


def test_a_full_sketch_is_still_a_number() -> None:
    rng = np.random.default_rng(0)
    found = counted(rng.integers(1, 2**62, 1_500_000), np.full(1_500_000, 100))[-1]
    assert 400_000 < found < 546_000


def test_a_category_must_be_given() -> None:
    state = EntityState(view("shop"))
    with pytest.raises(KeyError, match="shop"):
        state.update(ONE, ONE, {})
    with pytest.raises(ValueError, match="1 rows"):
        state.update(ONE, ONE, {}, hashed={"shop": np.ones(2, np.int64)})


def test_the_reference_estimates_small_numbers_exactly() -> None:
    assert [distinct(range(n)) for n in range(5)] == [0, 1, 2, 3, 4]
