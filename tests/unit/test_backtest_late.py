"""A backtest over labels that come late, and what only a simulation knows: what could have been had."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from learners.prequential import log_loss
from streams.backtest import figures, make_settings
from streams.backtest_engine import Backtest
from streams.feed import Item
from streams.regret import excess_log_loss
from streams.simulate import Simulation, simulate
from streams.task import Task
from tests.stream_records import HIDDEN, MINUTE
from tests.unit.test_backtest import CLICKS, HOUR, options

LATE = 25 * MINUTE  # the window is ten minutes
IGNORE = replace(CLICKS, label=replace(CLICKS.label, late="ignore"))
KEPT = replace(CLICKS, label=replace(CLICKS.label, late_for_ms=HOUR))


@pytest.fixture(scope="module")
def stream() -> Simulation:
    return simulate("clicks", seed=5, events=1_500)


def number(item: Item) -> int:
    assert isinstance(item.value, dict)
    return int(item.value["event_id"].rsplit("-", 1)[1])


def delayed(stream: Simulation, chosen: Callable[[int], bool]) -> list[Item]:
    """The stream with the clicks on chosen events later than their window."""
    moved = [
        item._replace(time_ms=item.time_ms + LATE) if item.kind == "label" and chosen(number(item)) else item
        for item in stream.items()
    ]
    return sorted(moved, key=lambda item: item.time_ms)


def ran(stream: Simulation, items: Iterator[Item] | list[Item], task: Task, *policies: str) -> Backtest:
    settings = make_settings(task, stream, options(*policies, warmup=0.0, within="5m"))
    backtest = Backtest(task, HIDDEN, policies, stream.events, settings)
    backtest.run(iter(items))
    return backtest


def test_late_clicks_are_learned_counted_once_and_the_truth_in_the_end(stream: Simulation) -> None:
    late = delayed(stream, lambda event: event % 2 == 0)
    plain, corrected = (ran(stream, items, KEPT, "continuous") for items in (stream.items(), late))
    ignored = ran(stream, late, IGNORE, "continuous")
    known = np.isfinite(plain.labels) & np.isfinite(corrected.labels)
    last = stream.start_ms + stream.span_ms - LATE - HOUR  # of the newest, the late label is not there yet
    old = known & (plain.times_ms < last)
    assert (corrected.labels[old] == plain.labels[old]).all()
    assert ignored.labels[old].sum() < plain.labels[old].sum()
    assert corrected.labelled == plain.labelled  # an event that is corrected is no further event
    lessons = corrected.lanes[0].policy.trainer.examples
    assert lessons > corrected.labelled
    mean = [np.nanmean(each.lanes[0].scores[750:]) for each in (plain, corrected, ignored)]
    assert abs(mean[1] - mean[0]) < abs(mean[2] - mean[0])


def test_no_score_and_no_feature_depends_on_a_label_before_it_is_known(stream: Simulation) -> None:
    """Late clicks that become known from the middle on are turned over: all before the middle stays, to the bit."""
    late, middle = delayed(stream, lambda event: event % 3 == 0), stream.start_ms + stream.span_ms // 2
    turned = [
        item._replace(value={**item.value, "click": 0})
        if item.kind == "label" and item.time_ms >= middle and isinstance(item.value, dict)
        else item
        for item in late
    ]
    assert turned != late
    one, other = (ran(stream, items, KEPT, "continuous", "full") for items in (late, turned))
    before = one.times_ms < middle
    for first, second in zip(one.lanes, other.lanes, strict=True):
        assert first.scores[before].tobytes() == second.scores[before].tobytes()
        assert first.scores.tobytes() != second.scores.tobytes()


def test_regret_is_what_scores_lose_to_the_true_probabilities(stream: Simulation) -> None:
    backtest = ran(stream, stream.items(), CLICKS, "continuous")
    truth = stream.truth()
    found = figures(backtest, "simulated", options("continuous"), truth)
    at = backtest.evaluated()
    oracle = float(log_loss(backtest.labels[at], truth[at]).mean())
    assert found["continuous_excess_log_loss"] == pytest.approx(
        found["continuous_log_loss"] - oracle, abs=2e-6
    )
    assert found["continuous_excess_log_loss"] > 0
    assert excess_log_loss(backtest.labels[at], truth[at], truth[at]) == 0.0
    assert excess_log_loss(np.zeros(0), np.zeros(0, np.float32), np.zeros(0)) is None
    assert "continuous_excess_log_loss" not in figures(backtest, "a file", options("continuous"))
    # Entry n of the truth is that of event n: clicks are as frequent as they say, also where they are not.
    often = truth > np.quantile(truth, 0.8)
    decided = np.isfinite(backtest.labels)
    assert backtest.labels[decided & often].mean() > 1.5 * backtest.labels[decided & ~often].mean()
