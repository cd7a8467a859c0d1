"""A backtest is one pass without look-ahead: the same input gives the same bits, and every policy does what it says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from infra.errors import UserError
from learners.prequential import metrics
from streams import replay_readers
from streams.backtest import OPEN_KEY, Options, chosen, make_settings, pseudonymiser, run_backtest
from streams.backtest_engine import Backtest
from streams.backtest_policies import POLICIES
from streams.backtest_stream import Path as Way
from streams.backtest_stream import cut
from streams.cli import app
from streams.feed import Item
from streams.privacy import Pseudonymiser
from streams.replay import Replay
from streams.rows import Rows
from streams.simulate import Simulation, parse_change, simulate
from streams.stage import StagePartition
from streams.task import Task, load_task
from streams.task_parse import parse_task
from tests.stream_records import HIDDEN, MINUTE, NOW_MS, event
from tests.stream_records import task as trips

BUILT_IN = load_task("clicks").text
SMALL = "rows = 512\nhidden = [16]\nlearning_rate = 0.005\nbatch_size = 128\n"
CLICKS = parse_task(
    BUILT_IN.replace("learning_rate = 0.0015\nbatch_size = 64\n", SMALL), "clicks.toml", Path("/x.toml")
)
EVENTS = 1_200
HOUR = 60 * MINUTE


@pytest.fixture(scope="module")
def stream() -> Simulation:
    return simulate("clicks", seed=3, events=EVENTS)


def options(*policies: str, **more: Any) -> Options:
    """Options with batches that are longer than usual, which saves time."""
    return Options(policies, **{"within": "30m", **more})


def ran(source: Any, given: Options, task: Task = CLICKS) -> Backtest:
    settings = make_settings(task, source, given)
    backtest = Backtest(task, HIDDEN, chosen(given.policies), source.events, settings)
    backtest.run(source.items())
    return backtest


def scores(backtest: Backtest) -> dict[str, bytes]:
    return {lane.name: lane.scores.tobytes() for lane in backtest.lanes}


def items(steps: list[tuple[str, int]]) -> list[Item]:
    return [Item(ms, "event" if kind == "e" else "label", "", {"at": ms}) for kind, ms in steps]


def test_a_micro_batch_ends_by_its_events_its_labels_or_its_length() -> None:
    first = [("e", 0), ("e", 1), ("l", 1), ("e", 2), ("l", 3), ("l", 4), ("l", 5)]
    found = list(cut(items([*first, ("e", 20), ("e", 29), ("e", 30), ("l", 40)]), 2, 10))
    sizes = [(len(b.events), len(b.labels), b.time_ms) for b in found]
    assert sizes == [(2, 0, 1), (1, 2, 3), (0, 2, 5), (2, 0, 29), (1, 0, 30), (0, 1, 40)]
    assert [r.offset for b in found for r in b.events] == [0, 1, 2, 3, 4, 5]
    assert all(json.loads(r.value or b"")["at"] == r.timestamp for b in found for r in (*b.events, *b.labels))


def test_bytes_go_as_they_are_and_kafka_s_clock_is_never_before_1970() -> None:
    [batch] = cut([Item(-5, "event", "", b"?"), Item(-4, "event", "", b"{}")], 9, 100)
    assert [(r.value, r.timestamp) for r in batch.events] == [(b"?", 0), (b"{}", 0)]


def test_twice_is_the_same_to_the_last_bit_and_alone_is_as_side_by_side(stream: Simulation) -> None:
    given = options(*POLICIES, every="2h")
    together = scores(ran(stream, given))
    assert together == scores(ran(stream, given))
    for name in POLICIES:
        assert scores(ran(stream, options(name, every="2h"))) == {name: together[name]}


def written(stream: Simulation, folder: Path, suffix: str) -> Path:
    """The stream as a file with one row an event, its label in it."""
    clicked = {i.value["event_id"] for i in stream.items() if i.kind == "label" and isinstance(i.value, dict)}
    rows: list[dict[str, Any]] = [
        i.value | {"click": int(i.value["event_id"] in clicked)}
        for i in stream.items()
        if i.kind == "event" and isinstance(i.value, dict)
    ]
    path = folder / f"clicks.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_how_a_file_is_read_makes_no_difference(
    stream: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = written(stream, tmp_path, "parquet"), options("full")
    whole = scores(ran(Replay(CLICKS, path), given))
    monkeypatch.setattr(replay_readers, "_BATCH", 7)
    assert scores(ran(Replay(CLICKS, path), given)) == whole
    assert scores(ran(Replay(CLICKS, written(stream, tmp_path, "jsonl")), given)) == whole


def changed(stream: Simulation, from_ms: int) -> Iterator[Item]:
    """The stream with all labels that become known from `from_ms` on turned over: a click there is none any more."""
    return (item for item in stream.items() if item.kind == "event" or item.time_ms < from_ms)


def test_no_score_depends_on_a_label_that_becomes_known_later(stream: Simulation) -> None:
    cut_ms = stream.start_ms + 12 * HOUR
    given = options("continuous", "full", warmup=0.0)
    settings = make_settings(CLICKS, stream, given)
    runs = []
    for source in (stream.items(), changed(stream, cut_ms)):
        backtest = Backtest(CLICKS, HIDDEN, ["continuous", "full"], stream.events, settings)
        backtest.run(source)
        runs.append(backtest)
    first, second = runs
    # Until the window of the first missing label has passed, nobody can know that it is missing.
    before = first.times_ms < cut_ms
    for one, other in zip(first.lanes, second.lanes, strict=True):
        assert one.scores[before].tobytes() == other.scores[before].tobytes()
        assert one.scores.tobytes() != other.scores.tobytes()


def test_the_features_are_those_of_one_pass_over_the_log() -> None:
    """Two entities, one with a label rate: the way through two stages and back equals folding everything by hand."""
    made, steps = trips(), 60
    events = [
        event(trip=f"t-{i}", at=NOW_MS + i * MINUTE, driver=f"d-{i % 3}", zone=i % 2) for i in range(steps)
    ]
    stream = [Item(NOW_MS + i * MINUTE, "event", "", fields) for i, fields in enumerate(events)]
    way, rows = Way(made, HIDDEN), []
    for batch in cut(stream, 1, 1):
        rows.append(way.features(batch.events))
        way.labelled(rows[-1], batch.labels)
    found = Rows.concat(rows)
    first = StagePartition(made, 0, HIDDEN).fold([r for b in cut(stream, 99, 10**9) for r in b.events]).rows
    rate, others = made.numbers.index("driver_label_rate_8m"), made.numbers.index("driver_fare_mean_8m")
    assert found.ids == first.ids
    assert found.keys.tobytes() == first.keys.tobytes()
    assert found.numbers[:, others].tobytes() == first.numbers[:, others].tobytes()
    assert np.isnan(first.numbers[:, rate]).all()  # nobody fed labels back there
    known = found.numbers[:, rate]
    assert np.isfinite(known).any()
    assert not np.isfinite(known[:11]).any()
    assert np.isfinite(found.numbers[:, made.numbers.index("zone_tip_sum_16m")]).all()


@pytest.mark.parametrize("size", [1, 7, 99])
def test_order_by_event_time_holds_no_row_back(size: int) -> None:
    """There is one log, in order: the same rows as by arrival, in the batch in which they came."""
    stream = [
        Item(NOW_MS + i * MINUTE, "event", "", event(trip=f"t-{i}", at=NOW_MS + i * MINUTE))
        for i in range(20)
    ]
    found = []
    for order in ('"event_time"', '"arrival"'):
        way = Way(trips(order=order), HIDDEN)
        rows = [way.features(batch.events) for batch in cut(stream, size, HOUR)]
        found.append([(part.ids, part.numbers.tobytes()) for part in rows])
    assert found[0] == found[1]
    assert sum(len(ids) for ids, _ in found[0]) == 20


def test_a_label_may_come_in_the_batch_in_which_the_window_ends() -> None:
    """The end of a window must not be seen before a label that came within it."""
    made = trips()
    stream = [
        Item(NOW_MS, "event", "", event(trip="a")),
        Item(NOW_MS + 9 * MINUTE, "label", "", {"trip": "a", "bad": 1}),
        Item(NOW_MS + 11 * MINUTE, "event", "", event(trip="b", at=NOW_MS + 11 * MINUTE)),
    ]
    for size in (1, 99):
        way, decided = Way(made, HIDDEN), []
        for batch in cut(stream, size, HOUR):
            found = way.labelled(way.features(batch.events), batch.labels)
            decided += [(found.rows.ids, found.label.tolist(), found.default.tolist())] if found else []
        assert decided == [(["a"], [1.0], [False])]


def test_static_stops_with_the_warm_up_and_continuous_does_not(stream: Simulation) -> None:
    backtest = ran(stream, options("static", "continuous", predictions=Path("x"), warmup=0.4))
    static, continuous = backtest.lanes
    assert backtest.first is not None
    assert 0.4 * EVENTS <= backtest.first < 0.8 * EVENTS
    after = slice(backtest.first, None)
    assert len(set(static.version_of[after].tolist())) == 1
    assert len(set(continuous.version_of[after].tolist())) > 5
    assert static.scores[: backtest.first].tobytes() == continuous.scores[: backtest.first].tobytes()
    assert continuous.policy.trainer.examples == backtest.labelled
    assert 0.4 * EVENTS <= static.policy.trainer.examples < 0.6 * EVENTS


def test_without_a_warm_up_static_is_the_untrained_model(stream: Simulation) -> None:
    backtest = ran(stream, options("static", warmup=0.0))
    assert backtest.first == 0
    assert backtest.lanes[0].policy.trainer.steps == 0


def test_full_is_continuous_until_a_challenger_wins(stream: Simulation) -> None:
    backtest = ran(stream, options("continuous", "full"))
    continuous, full = backtest.lanes
    assert full.swaps == 0
    assert continuous.scores.tobytes() == full.scores.tobytes()


def test_periodic_learns_at_its_times_only(stream: Simulation) -> None:
    backtest = ran(stream, options("periodic", predictions=Path("x"), every="4h"))
    [lane] = backtest.lanes
    evaluated = np.arange(EVENTS)[backtest.first :]
    moved = np.flatnonzero(np.diff(lane.version_of[evaluated])) + 1
    times = backtest.times_ms[evaluated[moved]]
    assert 2 <= len(times) <= 4
    assert (np.diff(times) >= 4 * HOUR - 30 * MINUTE).all()
    twice = ran(stream, options("periodic", every="4h", passes=2)).lanes[0].policy.trainer
    assert twice.examples > lane.policy.trainer.examples > 0.3 * EVENTS


def test_drift_learns_only_after_an_alarm() -> None:
    changes = [parse_change("sudden@0.6")]
    stream = simulate("clicks", seed=2, events=9_000, changes=changes)
    backtest = ran(stream, options("static", "drift", within="5m"))
    static, drift = backtest.lanes
    assert drift.policy.alerts
    assert not static.policy.alerts
    late = [alert for alert in drift.policy.alerts if alert.event_ms > stream.onset_ms(changes[0])]
    assert late
    calm = (np.arange(stream.events) >= (backtest.first or 0)) & (
        backtest.times_ms < min(alert.event_ms for alert in drift.policy.alerts)
    )
    assert calm.any()
    assert drift.scores[calm].tobytes() == static.scores[calm].tobytes()
    at = backtest.evaluated()
    at = at[backtest.times_ms[at] > late[0].event_ms + HOUR]
    assert backtest.metrics(drift, at)["log_loss"] < backtest.metrics(static, at)["log_loss"]


def test_a_refresh_after_every_batch_is_the_trainer_itself_and_a_rare_one_lags(stream: Simulation) -> None:
    at_once = ran(stream, options("full", predictions=Path("x")))
    by_slot = ran(stream, options("full", predictions=Path("x"), refresh="1ms"))
    rare = ran(stream, options("full", predictions=Path("x"), refresh="6h"))
    assert scores(at_once) == scores(by_slot)
    assert at_once.lanes[0].versions == by_slot.lanes[0].versions
    assert 3 <= len(rare.lanes[0].versions) <= 6 < len(by_slot.lanes[0].versions)


def test_what_counts_is_after_the_warm_up_and_labelled(stream: Simulation) -> None:
    backtest = ran(stream, options("continuous"))
    at = backtest.evaluated()
    assert backtest.first is not None
    assert at.min() >= backtest.first
    clicked = {i.value["event_id"] for i in stream.items() if i.kind == "label" and isinstance(i.value, dict)}
    truth = np.array([event_id in clicked for event_id in stream.stream.ids(at)], np.float32)
    assert metrics(truth, backtest.lanes[0].scores[at]) == backtest.metrics(backtest.lanes[0])
    # The last ten minutes are not decided: no event comes that would end their window.
    assert backtest.path.waiting == EVENTS - backtest.labelled
    assert EVENTS - backtest.labelled == int((backtest.times_ms > backtest.times_ms[-1] - 10 * MINUTE).sum())


def test_what_cannot_be_used_is_counted(stream: Simulation, tmp_path: Path) -> None:
    path = written(stream, tmp_path, "jsonl")
    lines = path.read_text().splitlines()
    lines[10], lines[20] = "{", lines[19]
    path.write_text("\n".join([*lines, json.dumps({"event_id": "x", "timestamp": "?", "click": 0})]))
    found = json.loads(invoked("clicks", str(path), "--policy", "static", "--json"))
    assert found["refused"] == found["refused_malformed"] + found["refused_invalid"] == 2
    assert (found["events"], found["duplicates"]) == (EVENTS + 1, 1)
    assert found["accepted"] == EVENTS - 2


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["backtest", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_leaves_a_table_a_page_and_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path / "data"))
    said = invoked(
        "clicks", "--simulate", "clicks", "--events", "1200", "--drift", "sudden@0.5", "--policy", "static|full",
        "--out", "out", "--predictions", "kept/p.parquet",
    )  # fmt: skip
    assert [line.split()[0] for line in said.splitlines()].count("static") == 1
    assert "full" in said
    assert not (tmp_path / "data").exists()
    page = (tmp_path / "out" / "backtest.html").read_text()
    assert "static" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    found = json.loads((tmp_path / "out" / "backtest.json").read_text())
    assert all(not isinstance(value, dict | list) for value in found.values())
    rows = pq.read_table(tmp_path / "kept" / "p.parquet")
    assert rows.num_rows == found["accepted"] == 1200
    wanted = ["event_id", "event_time", "label", "evaluated", "static_score", "static_version", "full_score"]
    assert rows.column_names == [*wanted, "full_version"]
    kept = rows.to_pydict()
    assert kept["event_id"][0] == "imp-1-0"
    assert kept["full_version"][0] == "L1.0"
    counted = [i for i, yes in enumerate(kept["evaluated"]) if yes]
    again = metrics(np.array(kept["label"], np.float64)[counted], np.array(kept["full_score"])[counted])
    assert again["auc"] == pytest.approx(found["full_auc"], abs=1e-6)


def test_a_stream_too_short_to_judge_says_so(tmp_path: Path) -> None:
    said = invoked("clicks", "--simulate", "clicks", "--events", "3", "--out", str(tmp_path))
    assert "nothing could be evaluated" in said
    assert "Nothing could be evaluated" in (tmp_path / "backtest.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs one stream"),
        (("x.parquet", "--simulate", "clicks"), "needs one stream"),
        (("x.parquet",), "no file x.parquet"),
        (("--simulate", "trips"), "no simulator"),
        (("--simulate", "clicks", "--policy", "best"), "no policy 'best'"),
        (("--simulate", "clicks", "--every", "soon"), "--every is 'soon'"),
        (("--simulate", "clicks", "--warmup", "1"), "--warmup is 1"),
        (("--simulate", "clicks", "--batch", "0"), "--batch is 0"),
        (("--simulate", "clicks", "--passes", "0"), "--passes is 0"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["backtest", "clicks", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_place_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out"
    with pytest.raises(UserError, match="cannot use"):
        run_backtest(
            CLICKS, simulate("clicks", seed=1, events=10), "x", tmp_path / "secret", options(out=place),
            as_json=True, console=None,  # type: ignore[arg-type]
        )  # fmt: skip


def test_the_data_folder_s_key_is_used_where_there_is_one(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert pseudonymiser(CLICKS, secret).one("item_id", "5") == Pseudonymiser(OPEN_KEY).one("item_id", "5")
    assert not secret.exists()
    hidden = trips('\n[privacy]\npseudonymise = ["trip"]\n')
    found = pseudonymiser(hidden, secret).one(
        "item_id", "5"
    )  # ids would leave: it gets a key that nobody knows
    assert secret.exists()
    assert pseudonymiser(CLICKS, secret).one("item_id", "5") == found


def test_the_head_of_the_real_files(data_dir: Path, tmp_path: Path) -> None:
    for task, name, count, mapping in (
        ("clicks", "clicks-open-bandit-men.parquet", 3000, ["--map", "user_id=user_feature_0"]),
        ("transactions", "transactions-2018-04_07.parquet", 4000, []),
    ):
        with pq.ParquetFile(data_dir / name) as file:
            pq.write_table(pa.Table.from_batches([next(file.iter_batches(count))]), tmp_path / name)
        found = json.loads(
            invoked(task, str(tmp_path / name), "--policy", "continuous,full", "--json", *mapping)
        )
        assert found["accepted"] == count
        assert found["refused"] == 0
        assert found["continuous_log_loss"] is None or 0 < found["continuous_log_loss"] < 1
