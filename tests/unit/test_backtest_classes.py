"""A task of several classes, from its file through features, join, learner and decisions to the figures."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from infra.errors import UserError
from streams import wire
from streams.backtest import Options, chosen, figures, make_settings, run_backtest
from streams.backtest_engine import Backtest
from streams.events import EventDecoder, LabelDecoder, label_value
from streams.feed import Item
from streams.gate import label_mark
from streams.joining import JoinPartition
from streams.predictions import recorder
from streams.rows import Labelled
from streams.task import Task
from tests.kind_streams import PACES, Rides, paces
from tests.stream_records import HIDDEN, NOW_MS, Record


def ran(source: Rides, *policies: str, task: Task | None = None) -> Backtest:
    made, options = task or paces(), Options(policies, within="5m")
    settings = make_settings(made, source, options)  # type: ignore[arg-type]
    backtest = Backtest(made, HIDDEN, chosen(policies), source.events, settings)
    backtest.run(source.items())
    return backtest


def test_a_change_ends_in_a_swap_to_a_better_model() -> None:
    eager = paces("[drift]\nfalse_alarms_per = 10000\n")
    backtest = ran(Rides(9_000, change_at=0.6, named=True), "static", "full", task=eager)
    found = figures(backtest, "rides", Options())
    static, full = (backtest.metrics(lane, np.arange(8_000, 9_000)) for lane in backtest.lanes)
    assert full["accuracy"] > 0.75
    assert full["accuracy"] > static["accuracy"] + 0.1
    assert found["full_swaps"] >= 1
    promotion = next(d for d in backtest.lanes[1].policy.decisions if d.action == "promote")
    assert promotion.evidence["challenger_log_loss"] < promotion.evidence["champion_log_loss"]
    assert promotion.evidence["challenger_accuracy"] > promotion.evidence["champion_accuracy"]


def test_twice_is_the_same_and_a_missing_label_is_a_class(tmp_path: Path) -> None:
    source = Rides(1_200, named=True)
    silent = Silent(source)
    task = paces(missing="middle")
    options = Options(
        ("continuous", "drift"), warmup=0.0, within="1m", out=tmp_path, predictions=tmp_path / "p.parquet"
    )
    found = [
        run_backtest(task, silent, "rides", tmp_path / "none", options, as_json=True, console=Console())  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert found[0]["continuous_log_loss"] == found[1]["continuous_log_loss"]
    assert {"drift_macro_f1", "drift_log_loss", "drift_ece"} <= found[0].keys()
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert len(table["continuous_score"][-1]) == 3
    assert {0.0, 1.0, 2.0} <= set(table["label"])
    assert "macro F1" in (tmp_path / "backtest.html").read_text()


class Silent:
    """Rides whose middle pace is not told."""

    def __init__(self, rides: Rides) -> None:
        self.events, self.span_ms, self._rides = rides.events, rides.span_ms, rides
        self.total = len(list(self.items()))

    def items(self) -> Iterator[Item]:
        for item in self._rides.items():
            if not (item.kind == "label" and isinstance(item.value, dict) and item.value["pace"] == "middle"):
                yield item


def test_labels_are_names_and_others_are_dead_letters() -> None:
    task = paces()
    records = [
        Record(json.dumps({"ride": f"r-{i}", "pace": p}).encode(), timestamp=NOW_MS)
        for i, p in enumerate([*PACES, "slow", 1, 1.5, None])
    ]
    labels, broken = LabelDecoder(task, HIDDEN).decode(records)
    assert labels.label.tolist() == [0.0, 1.0, 2.0]
    assert [label_value(task, value) for value in labels.label.tolist()] == list(PACES)
    assert [letter.reason for letter in broken] == ["invalid"] * 4
    assert broken[0].detail == "label pace is 'slow', which is none of task.classes"


def test_names_that_are_numbers_or_truth_values_may_be_written_so() -> None:
    task = replace(paces(), classes=("1", "true", "x"))
    records = [
        Record(json.dumps({"ride": "r", "pace": p}).encode(), timestamp=NOW_MS)
        for p in (1, "1", True, "true")
    ]
    labels, broken = LabelDecoder(task, HIDDEN).decode(records)
    assert (labels.label.tolist(), broken) == ([0.0, 0.0, 1.0, 1.0], [])


def test_scores_of_classes_travel_between_the_steps() -> None:
    task = paces()
    event = {"at": NOW_MS, "driver": "d", "km": 1.0, "stops": 2, "zone": "z"}
    events = [Record(json.dumps({"ride": f"r-{i}", **event}).encode(), offset=i) for i in range(9)]
    rows, _ = EventDecoder(task, HIDDEN).decode(events)
    served = np.random.default_rng(0).dirichlet((1, 1, 1), 9).astype(np.float32)
    _, again, _ = wire.decode_examples(wire.encode_examples(rows, served, "L1.0"))
    assert again.tobytes() == served.tobytes()
    nothing = np.zeros(9, np.bool_)
    label = np.arange(9, dtype=np.float32) % 3
    labelled = Labelled(rows, served, ["L1.0"] * 9, label, rows.event_ms, nothing, label * 0, nothing)
    back = wire.decode_labelled(wire.encode_labelled(labelled))
    assert back.served.tobytes() == served.tobytes()
    assert back.told.tolist() == served[np.arange(9), np.arange(9) % 3].tolist()
    assert back.batch().served.shape == (9, 3)


@pytest.mark.parametrize("in_memory", [100, 200_000])
def test_the_join_gives_back_what_was_served(in_memory: int) -> None:
    """Also of rows that waited on disk, and after a restart."""
    task = paces()
    task = replace(task, label=replace(task.label, in_memory=in_memory))
    event = {"at": NOW_MS, "driver": "d", "km": 1.0, "stops": 2, "zone": "z"}
    events = [Record(json.dumps({"ride": f"r-{i}", **event}).encode(), offset=i) for i in range(400)]
    rows, _ = EventDecoder(task, HIDDEN).decode(events)
    served = np.random.default_rng(0).dirichlet((1, 1, 1), 400).astype(np.float32)
    join, again = JoinPartition(task), JoinPartition(task)
    join.fold([Record(wire.encode_examples(rows, served, "L1.0"), headers=((wire.KIND, wire.EXAMPLES),))])
    again.restore(join.snapshot())
    told = [
        Record(json.dumps({"ride": f"r-{i}", "pace": PACES[i % 3]}).encode(), offset=i) for i in range(400)
    ]
    labels, _ = LabelDecoder(task, HIDDEN).decode(told)
    mark = tuple(label_mark(0, 1, NOW_MS))
    record = Record(wire.encode_labels(labels), headers=((wire.KIND, wire.LABELS), *mark))
    for each in (join, again):
        found = each.fold([record])
        assert found is not None
        at = [int(event_id[2:]) for event_id in found.rows.ids]
        assert sorted(at) == list(range(400))
        assert found.served.tobytes() == served[at].tobytes()
        assert found.label.tolist() == [i % 3 for i in at]


def test_a_prediction_names_the_winner() -> None:
    made = recorder(paces().schema.target)(
        "e",
        "rides",
        [0.2, 0.5, 0.3],
        "L1.1",
        1,
        2,
        3,
        False,
        "canary",
        False,
        1.0,
        {"partition": 0, "offset": 4},
    )
    found = json.loads(msgspec.json.encode(made))
    assert (found["class"], found["score"], found["arm"]) == ("middle", 0.5, "canary")
    assert found["scores"] == {"short": 0.2, "middle": 0.5, "long": 0.3}


def test_label_rates_are_refused() -> None:
    with pytest.raises(UserError, match="label_rate has no meaning in a multiclass task"):
        paces('[[features]]\nentity = "driver"\nlabel_rate = ["1h"]\n')
