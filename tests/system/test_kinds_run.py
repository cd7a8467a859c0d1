"""Tasks that are not binary, from a file of past events through a whole run on Kafka to the archive and the report."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.clickhouse import open_archive
from streams.task import Task, load_task
from streams.task_parse import parse_task
from tests.kind_streams import PACES, START_MS, STEP_MS, Rides, pace, paces, rides
from tests.system import run_support as runs

COUNT = 2_500


def written(folder: Path, task: Task, label: Callable[[float], object], broken: object) -> tuple[Path, Path]:
    """The task file, and the rides as a Parquet file with the label in a column, one label of them broken."""
    path, file = folder / "rides.toml", folder / "rides.parquet"
    path.write_text(task.text)
    rows = [
        {
            "ride": f"r-{n}",
            "at": START_MS + n * STEP_MS,
            **fields,
            task.label.field: broken if n == 7 else label(minutes),
        }
        for n, fields, minutes in Rides(COUNT).rides()
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return path, file


def replayed(folder: Path, task: Path, file: Path) -> tuple[runs.Run, str]:
    """A run of its own that ended well, and its report."""
    data, out = folder / "data", folder / "out"
    runs.register(data, load_task(str(task)))
    with runs.running(data, "replay", str(file), "--task", str(task), "--out", str(out)) as run:
        assert run.ended(2 * runs.PATIENCE_S) == 0, run.output
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["predictions"], summary["doubled"], summary["dead_letters"]) == (COUNT, 0, 1)
    return run, (out / "report.html").read_text()


def test_a_regression_task_from_a_file_to_the_report(tmp_path: Path) -> None:
    text = rides().text.replace('missing = "drop"', 'missing = "drop"\nmin = 0')
    task = parse_task(text, "rides.toml", tmp_path / "rides.toml")
    run, page = replayed(tmp_path, *written(tmp_path, task, lambda minutes: minutes, -1.0))
    assert "rolling mae at the end:" in run.output
    assert "mean absolute error" in page
    with closing(open_archive(f"chdb://{run.data}/archive")) as archive:
        rows = archive.query("SELECT label FROM labels FINAL WHERE task = 'rides'")
        letters = archive.query("SELECT reason FROM dead_letters FINAL WHERE task = 'rides'")
        [(mae, rmse, r2, auc)] = archive.query(
            "SELECT mae, rmse, r2, auc FROM metrics FINAL WHERE arm = 'champion' ORDER BY event_ms DESC LIMIT 1"
        )
        [(predicted,)] = archive.query("SELECT avg(score) FROM predictions FINAL WHERE task = 'rides'")
    assert letters == [("invalid",)]
    label = np.array([row[0] for row in rows])
    assert len(label) == COUNT - 1
    assert label.std() > 4.0
    assert 0.0 < mae < rmse
    assert (
        mae < 0.7 * label.mean()
    )  # that of a model that has learned nothing, as it was for the first of them
    assert r2 < 1.0
    assert np.isnan(auc)
    assert np.isfinite(predicted)


def test_a_task_of_classes_from_a_file_to_the_report(tmp_path: Path) -> None:
    run, page = replayed(tmp_path, *written(tmp_path, paces(), pace, "slow"))
    assert "rolling accuracy at the end:" in run.output
    assert "accuracy" in page
    with closing(open_archive(f"chdb://{run.data}/archive")) as archive:
        labels = dict(archive.query("SELECT label, count() FROM labels FINAL GROUP BY label"))
        letters = archive.query("SELECT reason FROM dead_letters FINAL WHERE task = 'rides'")
        [(accuracy, f1, loss, auc)] = archive.query(
            "SELECT accuracy, macro_f1, log_loss, auc FROM metrics FINAL WHERE arm = 'champion'"
            " ORDER BY event_ms DESC LIMIT 1"
        )
        predicted = archive.query("SELECT class, min(score) FROM predictions FINAL GROUP BY class")
    assert letters == [("invalid",)]
    assert sum(labels.values()) == COUNT - 1
    assert set(labels) == {0.0, 1.0, 2.0}
    assert 1 / 3 < accuracy <= 1.0
    assert 0.0 < f1 <= 1.0
    assert 0.0 < loss < np.log(3)
    assert np.isnan(auc)
    assert {name for name, _ in predicted} <= set(PACES)
    assert all(least >= 1 / 3 - 1e-6 for _, least in predicted)
