"""A column in other units is recognised, and what is no other unit is not called one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.units import Rescaled, distance, rescaled

RANDOM = np.random.default_rng(5)
AMOUNTS = np.exp(RANDOM.normal(3, 1, 2_000))
CELSIUS = RANDOM.normal(12, 8, 2_000)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (AMOUNTS, np.exp(RANDOM.normal(3, 1, 400)) * 100, "about 100 times larger"),
        (AMOUNTS, np.exp(RANDOM.normal(3, 1, 400)) / 1_000, "about 1,000 times smaller"),
        (CELSIUS, RANDOM.normal(12, 8, 400) * 1.8 + 32, "about 1.8 times what it was plus 32"),
    ],
)
def test_other_units_are_said(before: np.ndarray, after: np.ndarray, words: str) -> None:
    found = rescaled(before, np.append(after, np.nan))
    assert found is not None
    assert found.words == words


@pytest.mark.parametrize(
    "after",
    [
        np.exp(RANDOM.normal(3, 1, 400)),  # as before
        np.exp(RANDOM.normal(3, 1, 400)) * 1.1,  # too little for another unit
        np.exp(RANDOM.normal(3, 2, 400)),  # wider: no factor makes it alike
        np.full(400, 7.0),  # constant
        np.full(10, 700.0),  # too few
        np.full(400, np.nan),
    ],
)
def test_what_is_no_other_unit_is_not_called_one(after: np.ndarray) -> None:
    assert rescaled(AMOUNTS, after) is None


@given(st.floats(1.6, 1e4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_factor_is_found(factor: float, smaller: bool) -> None:
    factor = 1 / factor if smaller else factor
    found = rescaled(AMOUNTS, np.exp(np.random.default_rng(1).normal(3, 1, 600)) * factor)
    assert found is not None
    assert found.offset == 0.0
    assert found.factor == pytest.approx(factor, rel=0.2)


def test_words_and_distance() -> None:
    assert Rescaled(0.5, 0.0).words == "about 2 times smaller"
    assert Rescaled(87.0, 0.0).words == "about 100 times larger"
    assert Rescaled(70.0, 0.0).words == "about 70 times larger"
    assert Rescaled(2.54, -3.0).words == "about 2.5 times what it was minus 3"
    assert distance(np.zeros(5), np.ones(5)) == 1.0
    assert distance(np.zeros(5), np.zeros(9)) == 0.0
