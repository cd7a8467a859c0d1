"""Where a key of a task file stands, and that any junk is a task or a message, never anything else."""

import re
import string
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from streams import task_parse
from streams.task import Task
from streams.task_parse import build_task, parse_task
from streams.task_toml import Source
from streams.toml_lines import key_lines

HERE = Path(__file__).parent
SMALLEST = (HERE / "rides_smallest.toml").read_text(encoding="utf-8")
FULL = (HERE / "rides.toml").read_text(encoding="utf-8")


def parse(text: str) -> Task:
    return parse_task(text, "my.toml", Path("/somewhere/my.toml"))


def test_key_lines_finds_every_key() -> None:
    text = '''\
# comment
a = 1
"b c" = """
x = 1
[not.a.table]
"quoted\\""""
'l.1' = \'\'\'
]]\'\'\'
n = { x = 1, y = [1, { z = 2 }] }   # }
[t . u]
m = [
  "a",  # [
  [2,
   3],
]
d.e = 2020-01-01T00:00:00Z
[[f]]
g = "x ] } # y"
[[f]]
g = '\\'
[f.h]
i = true
[[f.k]]
j = 1
'''
    assert key_lines(text) == {
        (): 1,
        ("a",): 2,
        ("b c",): 3,
        ("l.1",): 7,
        ("n",): 9,
        ("n", "x"): 9,
        ("n", "y"): 9,
        ("n", "y", 0): 9,
        ("n", "y", 1): 9,
        ("n", "y", 1, "z"): 9,
        ("t",): 10,
        ("t", "u"): 10,
        ("t", "u", "m"): 11,
        ("t", "u", "m", 0): 12,
        ("t", "u", "m", 1): 13,
        ("t", "u", "m", 1, 0): 13,
        ("t", "u", "m", 1, 1): 14,
        ("t", "u", "d"): 16,
        ("t", "u", "d", "e"): 16,
        ("f",): 17,
        ("f", 0): 17,
        ("f", 0, "g"): 18,
        ("f", 1): 19,
        ("f", 1, "g"): 20,
        ("f", 1, "h"): 21,
        ("f", 1, "h", "i"): 22,
        ("f", 1, "k"): 23,
        ("f", 1, "k", 0): 23,
        ("f", 1, "k", 0, "j"): 24,
    }


def outcome_of(build: Callable[[], Task]) -> Task | UserError:
    """The task or the one error that a user may see; anything else fails the test."""
    try:
        return build()
    except UserError as error:
        return error


def paths(data: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every key path of parsed TOML."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return {at}.union(*(paths(value, (*at, key)) for key, value in inner))


@given(
    st.lists(
        st.sampled_from([*FULL.splitlines(), "x = [", "]", '"""', "'", "{", "}", "\\", "a.b=1"]), max_size=25
    )
)
@settings(max_examples=300)
def test_any_text_is_a_task_or_a_user_error_and_every_key_has_a_line(rows: list[str]) -> None:
    text = "\n".join(rows)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        data = None
    else:
        lines = key_lines(text)
        assert paths(data) == set(lines)
        assert all(1 <= line <= len(rows) or not rows for line in lines.values())
    outcome = outcome_of(lambda: parse(text))
    if isinstance(outcome, UserError):
        assert re.match(r"my\.toml:\d+: ", outcome.message)
        assert outcome.fix
    else:
        assert data is not None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes()
    | st.sampled_from(["1h", "7d", "fare", "driver", "%Y", "number", "category", "drop", "better"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_lowercase, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """The full task with a few of its values replaced, its keys removed, or keys added."""
    data = tomllib.loads(FULL)
    for _ in range(draw(st.integers(1, 4))):
        inner: Any = data
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and draw(st.booleans()):
                inner = inner[key]
                continue
            inner[key] = draw(VALUES)
            if isinstance(inner, dict) and draw(st.integers(0, 9)) == 0:
                del inner[key]
            break
    return data


@given(spoilt() | st.dictionaries(st.sampled_from([*task_parse.TOP, "junk"]), VALUES))
@settings(max_examples=300)
def test_junk_is_a_task_or_a_user_error(data: dict[str, Any]) -> None:
    outcome = outcome_of(lambda: build_task(data, Source("junk", {}), Path("junk")))
    if isinstance(outcome, UserError):
        assert outcome.message.startswith("junk:1: ")
        assert outcome.fix
    else:
        assert outcome.numbers or outcome.categories


def test_nesting_beyond_reason_is_a_user_error() -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        parse("a = " + "[" * 100_000 + "]" * 100_000)


def test_a_model_needs_something_to_look_at() -> None:
    with pytest.raises(UserError) as caught:
        parse(SMALLEST[: SMALLEST.index("[[features]]")])
    assert str(caught.value) == (
        "my.toml:3: the model has nothing to look at: no field, no feature, no calendar\n"
        "  fix: declare a field under [event.fields], or add [[features]]"
    )
