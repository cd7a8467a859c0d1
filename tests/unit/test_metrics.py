"""What a process counts of itself; names that the list lacks are errors, also in code that no test runs."""

import ast
from pathlib import Path

import pytest

from infra.metrics import NAMES, Metrics

ROOT = Path(__file__).parents[2]


def test_counters_grow_and_the_others_keep_the_latest_value() -> None:
    metrics = Metrics()
    metrics.note("batch_events", 7)
    metrics.count("predictions_total", 2)
    metrics.count("events_total")
    metrics.count("predictions_total", 3)
    metrics.note("batch_events", 5)
    assert metrics.snapshot() == {"events_total": 1, "predictions_total": 5, "batch_events": 5}
    assert list(metrics.snapshot()) == ["events_total", "predictions_total", "batch_events"]  # as in NAMES


def test_a_snapshot_is_a_copy() -> None:
    metrics = Metrics()
    before = metrics.snapshot()
    metrics.count("events_total")
    assert before == {}


def test_names_are_those_of_the_list_and_used_as_what_they_are() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="no_such_total is not in"):
        metrics.count("no_such_total")
    with pytest.raises(ValueError, match="batch_events is no counter"):
        metrics.count("batch_events")
    with pytest.raises(ValueError, match="events_total is a counter"):
        metrics.note("events_total", 1)
    assert metrics.snapshot() == {}


def names(argument: ast.expr) -> list[str]:
    match argument:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.IfExp(body=one, orelse=other):
            return [*names(one), *names(other)]
    raise AssertionError(f"line {argument.lineno}: {ast.unparse(argument)} cannot be checked")


def used() -> set[tuple[str, str]]:
    """(count or note, name) of every call on something called metrics in streams."""
    found = set[tuple[str, str]]()
    for path in (ROOT / "streams").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        attr="count" | "note" as how,
                        value=ast.Name(id=owner) | ast.Attribute(attr=owner),
                    ),
                    args=[name, *_],
                ) if owner.strip("_") == "metrics":
                    found.update((how, one) for one in names(name))
    return found


def test_every_name_that_is_used_is_listed_and_the_other_way_round() -> None:
    assert {name for _, name in used()} == set(NAMES)
    assert [name for how, name in used() if (how == "count") != name.endswith("_total")] == []
