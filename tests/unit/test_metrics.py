"""What a process counts of itself; names that the list lacks are errors, also in code that no test runs."""

import ast
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from infra.metrics import BUCKETS, NAMES, Metrics

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


def test_values_of_a_name_are_told_apart_by_its_label() -> None:
    metrics = Metrics()
    metrics.count("dead_letters_total", 2, of="malformed")
    metrics.count("dead_letters_total", of="invalid")
    metrics.count("dead_letters_total", of="malformed")
    assert metrics.snapshot() == {"dead_letters_total{invalid}": 1, "dead_letters_total{malformed}": 3}


def test_observed_values_are_counted_by_size() -> None:
    metrics = Metrics()
    metrics.observe("prediction_latency_ms", np.array([5, 6, 70_000, -3]))  # a producer's clock may run ahead
    metrics.observe("prediction_latency_ms", 5.5)
    (found,) = metrics.histograms()
    assert found.counts == (2, 2, *[0] * 10, 1)
    assert found.sum == 70_016.5
    assert metrics.snapshot() == {}


def test_a_probe_is_asked_when_somebody_looks() -> None:
    metrics, lags = Metrics(), {"a.events": 3}
    metrics.probe("lag_records", lambda: lags)
    metrics.probe("online_waiting_ms", lambda: 7.0)
    lags["a.items"] = 2
    expected = {"lag_records{a.events}": 3, "lag_records{a.items}": 2, "online_waiting_ms": 7}
    assert metrics.snapshot() == expected


def test_no_count_is_lost_between_threads() -> None:
    metrics, together = Metrics(), Barrier(4)

    def work() -> None:
        together.wait()
        for _ in range(2_000):
            metrics.count("snapshots_total")
            metrics.observe("update_latency_ms", 1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work) for _ in range(4)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert metrics.snapshot() == {"snapshots_total": 8_000}
    assert metrics.histograms()[0].counts[0] == 8_000


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
    with pytest.raises(ValueError, match="update_latency_ms is a histogram"):
        metrics.note("update_latency_ms", 1)
    with pytest.raises(ValueError, match="batch_events is no histogram"):
        metrics.observe("batch_events", 1)
    with pytest.raises(ValueError, match="events_total cannot be asked for"):
        metrics.probe("events_total", lambda: 1)
    with pytest.raises(ValueError, match="dead_letters_total has the label reason"):
        metrics.count("dead_letters_total")
    with pytest.raises(ValueError, match="events_total has no label"):
        metrics.count("events_total", of="malformed")
    assert metrics.snapshot() == {}


def names(argument: ast.expr) -> list[str]:
    match argument:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.IfExp(body=one, orelse=other):
            return [*names(one), *names(other)]
    raise AssertionError(f"line {argument.lineno}: {ast.unparse(argument)} cannot be checked")


def used() -> set[tuple[str, str]]:
    """(count, note, observe or probe, name) of every call on something called metrics in streams."""
    found = set[tuple[str, str]]()
    for path in (ROOT / "streams").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        attr="count" | "note" | "observe" | "probe" as how,
                        value=ast.Name(id=owner) | ast.Attribute(attr=owner),
                    ),
                    args=[name, *_],
                ) if owner.strip("_") == "metrics":
                    found.update((how, one) for one in names(name))
    return found


def test_every_name_that_is_used_is_listed_and_the_other_way_round() -> None:
    assert {name for _, name in used()} == set(NAMES)
    assert [name for how, name in used() if (how == "count") != name.endswith("_total")] == []
    assert {name for how, name in used() if how == "observe"} == set(BUCKETS)
