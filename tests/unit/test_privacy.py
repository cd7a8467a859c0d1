"""Pseudonyms: the same for the same value, different for another field or secret, and never the raw value."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.privacy import MISSING, Pseudonymiser

ONE, OTHER = Pseudonymiser(b"a" * 32), Pseudonymiser(b"b" * 32)
VALUES = st.text(max_size=30) | st.integers() | st.floats(allow_nan=False) | st.booleans()


@given(VALUES, st.text(min_size=1, max_size=40))
def test_a_value_has_one_pseudonym_that_depends_on_field_and_secret(value: object, field: str) -> None:
    found = ONE.one(field, value)
    assert found == Pseudonymiser(b"a" * 32).one(field, value)
    assert found != MISSING
    assert found != OTHER.one(field, value)
    assert found != ONE.one(field + "x", value)
    assert int(ONE.text(field, value), 16) == found % 2**64


def test_a_column_is_its_values_one_by_one() -> None:
    values = ["a", "b", None, "a", 5, "5", 5.0, 5.5, True, "True", ""]
    column = ONE.column("f", values)
    assert column.dtype == np.int64
    assert column.tolist() == [ONE.one("f", value) for value in values]
    assert column[2] == MISSING
    assert column[0] == column[3] != column[1]
    assert column[4] == column[5] == column[6] != column[7]  # a label may name as text what was a number
    assert ONE.texts("f", ["a", "b"]) == [ONE.text("f", "a"), ONE.text("f", "b")]
    assert len(ONE.column("f", [])) == 0


def test_true_and_one_are_different_whichever_came_first() -> None:
    one, true = Pseudonymiser(b"a" * 32).column("g", [1, True]).tolist()
    assert ONE.column("g", [True, 1, "1"]).tolist() == [true, one, one]
    assert one != true


def test_the_cache_forgets_and_the_pseudonyms_stay() -> None:
    small = Pseudonymiser(b"a" * 32)
    small.remember = 3
    first = small.column("f", ["a", "b", "c", "d"])
    assert (small.column("f", ["d", "c", "b", "a"])[::-1] == first).all()
    assert small.cached <= 4


@given(st.lists(st.text("abcdefgh", min_size=4, max_size=8), min_size=1, max_size=5))
def test_no_raw_text_is_in_a_pseudonym(values: list[str]) -> None:
    out = ONE.column("f", values).tobytes() + "".join(ONE.texts("f", values)).encode("utf-16")
    assert not any(value.encode() in out for value in values if len(value) > 5)
