"""A task of values, from its file through features, join, learner and decisions to the figures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from streams.backtest import Options, chosen, figures, make_settings, run_backtest
from streams.backtest_engine import Backtest
from streams.backtest_stream import Record as PathRecord
from streams.events import LabelDecoder
from streams.task import Task
from streams.task_parse import parse_task
from tests.kind_streams import START_MS, Rides, rides
from tests.stream_records import HIDDEN, NOW_MS, Record

NOISE = 2.0 * np.sqrt(2.0 / np.pi)  # mean absolute error of who knows all that can be known


def ran(source: Rides, *policies: str, task: Task | None = None) -> Backtest:
    made, options = task or rides(), Options(policies, within="5m")
    backtest = Backtest(
        made,
        HIDDEN,
        chosen(policies),
        source.events,
        make_settings(made, source, options),  # type: ignore[arg-type]
    )
    backtest.run(source.items())
    return backtest


def test_a_change_is_noticed_and_ends_in_a_swap_to_a_better_model() -> None:
    source = Rides(9_000, change_at=0.6)
    backtest = ran(source, "static", "full", task=rides("[drift]\nfalse_alarms_per = 10000\n"))
    found = figures(backtest, "rides", Options())
    late = np.arange(8_000, 9_000)
    static, full = (backtest.metrics(lane, late) for lane in backtest.lanes)
    assert full["mae"] < 1.4 * NOISE
    assert full["mae"] < 0.7 * static["mae"]
    assert found["full_swaps"] >= 1
    promotion = next(d for d in backtest.lanes[1].policy.decisions if d.action == "promote")
    assert promotion.evidence["challenger_scaled_error"] < promotion.evidence["champion_scaled_error"]
    assert promotion.evidence["challenger_mae"] < promotion.evidence["champion_mae"]
    assert "scaled error" in promotion.reason
    alarm = backtest.lanes[1].policy.alerts[0]
    assert (alarm.level, alarm.event_ms > backtest.times_ms[5_400]) == ("loss", True)


def test_without_a_change_nothing_is_swapped() -> None:
    backtest = ran(Rides(3_000), "drift", "full")
    assert [lane.swaps for lane in backtest.lanes] == [0, 0]
    assert backtest.metrics(backtest.lanes[1])["r2"] > 0.2  # the champion learns slowly


def test_twice_is_the_same_to_the_last_bit() -> None:
    first, second = (ran(Rides(1_500, change_at=0.5), "drift", "full") for _ in range(2))
    for one, other in zip(first.lanes, second.lanes, strict=True):
        assert one.scores.tobytes() == other.scores.tobytes()


def test_the_report_and_the_table_speak_of_values(tmp_path: Path) -> None:
    said = io.StringIO()
    options = Options(("static", "continuous"), within="5m", out=tmp_path, predictions=tmp_path / "p.parquet")
    found = run_backtest(
        rides(), Rides(1_500), "rides", tmp_path / "none", options,  # type: ignore[arg-type]
        as_json=False, console=Console(file=said, width=200),
    )  # fmt: skip
    assert {"continuous_rmse", "continuous_mae", "continuous_r2"} <= found.keys()
    assert not any("auc" in key or "log_loss" in key for key in found)
    assert "RMSE" in said.getvalue()
    assert "positive" not in said.getvalue()
    page = (tmp_path / "backtest.html").read_text()
    assert "mean absolute error" in page.lower()
    assert "ROC" not in page
    assert json.loads((tmp_path / "backtest.json").read_text()) == found


def test_a_label_rate_is_the_mean_of_values() -> None:
    made = rides('[[features]]\nentity = "driver"\nlabel_rate = ["1h"]\n')
    source = Rides(200)
    backtest = ran(source, "static", task=made)
    at = START_MS + 30 * 60_000  # everything is known
    event = {"ride": "next", "at": at, "km": 1.0, "stops": 0, "zone": "z0", "driver": "d3"}
    rows = backtest.path.features([PathRecord(json.dumps(event).encode(), 200, at)])
    mean = np.mean([round(minutes, 3) for _, fields, minutes in source.rides() if fields["driver"] == "d3"])
    assert rows.numbers[0, made.numbers.index("driver_label_rate_1h")] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("true", "Expected `float`, got `bool`"),
        ('"12"', "Expected `float`, got `str`"),
        ("null", "Expected `float`, got `null`"),
        ("1e16", "label minutes is 1e+16; a regression task takes a number of at most 1e+15 in size"),
        ("-1", "label minutes is -1, below min 0"),
        ("601", "label minutes is 601, above max 600"),
    ],
)
def test_a_broken_label_is_a_dead_letter_with_a_reason(value: str, detail: str) -> None:
    text = rides().text.replace('missing = "drop"', 'missing = "drop"\nmin = 0\nmax = 600')
    decoder = LabelDecoder(parse_task(text, "rides.toml", Path("/r.toml")), HIDDEN)
    good, bad = (
        Record(f'{{"ride": "r-1", "minutes": {v}}}'.encode(), timestamp=NOW_MS) for v in ("12.5", value)
    )
    labels, broken = decoder.decode([good, bad])
    assert labels.label.tolist() == [12.5]
    assert [(letter.reason, letter.detail.startswith(detail)) for letter in broken] == [("invalid", True)]
