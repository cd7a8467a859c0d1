"""Tasks that are not binary, from a file of past events through a whole run on Kafka to the archive and the report."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.clickhouse import open_archive
from tests.kind_streams import START_MS, STEP_MS, Rides, rides
from tests.system import run_support as runs

COUNT = 2_500


def written(folder: Path) -> tuple[Path, Path]:
    """The task file, and the rides as a Parquet file with the label in a column, one label of them broken."""
    task, path = folder / "rides.toml", folder / "rides.parquet"
    task.write_text(rides().text.replace('missing = "drop"', 'missing = "drop"\nmin = 0'))
    rows = [
        {"ride": f"r-{n}", "at": START_MS + n * STEP_MS, **fields, "minutes": -1.0 if n == 7 else minutes}
        for n, fields, minutes in Rides(COUNT).rides()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return task, path


def test_a_regression_task_from_a_file_to_the_report(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    task, path = written(tmp_path)
    where = ("--task", str(task), "--out", str(out))
    with runs.running(data, "replay", str(path), *where) as run:
        assert run.ended(2 * runs.PATIENCE_S) == 0, run.output
    assert "rolling mae at the end:" in run.output
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["predictions"], summary["doubled"], summary["dead_letters"]) == (COUNT, 0, 1)
    page = (out / "report.html").read_text()
    assert "mean absolute error" in page
    with closing(open_archive(f"chdb://{data}/archive")) as archive:
        rows = archive.query("SELECT label, served, version FROM labels FINAL WHERE task = 'rides'")
        letters = archive.query("SELECT reason FROM dead_letters FINAL WHERE task = 'rides'")
        last = archive.query(
            "SELECT mae, rmse, r2, auc FROM metrics FINAL WHERE arm = 'champion' ORDER BY event_ms DESC LIMIT 1"
        )
        predicted = archive.query("SELECT avg(score) FROM predictions FINAL WHERE task = 'rides'")
    assert letters == [("invalid",)]
    assert len(rows) == COUNT - 1
    label = np.array([row[0] for row in rows])
    assert label.min() > 0.0
    assert label.std() > 4.0
    [(mae, rmse, r2, auc)] = last
    assert 0.0 < mae < rmse
    assert r2 > 0.0
    assert np.isnan(auc)
    assert np.isfinite(predicted[0][0])
