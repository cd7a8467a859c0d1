"""`driftline demo` in a small form: a drift, a swap and a report, although a serve worker is killed in the middle."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.clickhouse import open_archive
from infra.kafka import end_offsets
from tests.system import run_support as runs

EVENTS = 60_000  # `make demo` has 100,000 in the same day; a worker that dies early has caught up when the drift comes


@dataclass
class Demo:
    """A demo that has ended."""

    run: runs.Run
    out: Path
    exit_code: int
    summary: dict[str, Any] = field(default_factory=dict)

    def tails(self) -> Iterator[tuple[str, str]]:
        return self.run.tails()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that ran to its end; its serve worker died as soon as it had answered something."""
    folder = tmp_path_factory.mktemp("demo")
    data, out = folder / "data", folder / "out"
    with runs.running(data, "demo", "--events", str(EVENTS), "--out", str(out)) as run:
        run.wait_for("events sent")
        runs.until(lambda: sum(end_offsets(run.kafka, "clicks.predictions").values()) > 3_000, "predictions")
        run.kill_role("serve")
        demo = Demo(run, out, run.ended(2 * runs.PATIENCE_S))
        if (out / "summary.json").exists():
            demo.summary = json.loads((out / "summary.json").read_text())
        yield demo


def test_every_event_was_accepted_and_predicted_once(done: Demo) -> None:
    """As the summary says, and as the history says."""
    assert done.exit_code == 0, done.run.output
    summary = done.summary
    assert [summary[name] for name in ("events", "accepted", "predictions")] == [EVENTS] * 3
    assert (summary["doubled"], summary["dead_letters"], summary["failures"]) == (0, 0, [])
    archive = open_archive(f"chdb://{done.run.data}/demo/archive")
    try:
        query = "SELECT count(), count(DISTINCT event_id), count(DISTINCT version) FROM predictions FINAL"
        rows, ids, versions = archive.query(query)[0]
    finally:
        archive.close()
    assert (rows, ids) == (EVENTS, EVENTS)
    assert versions > 1


def test_it_ends_with_a_report_no_trace_of_an_error_and_no_process(done: Demo) -> None:
    page = (done.out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "Traceback" not in done.run.output
    logs = {path.name: path.read_text() for path in (done.run.data / "demo" / "logs").glob("*.log")}
    assert set(logs) >= {"archive.log", "join.log", "learn.log", "serve-1.log"}
    assert [name for name, text in logs.items() if "Traceback" in text] == []
    assert runs.processes(done.run.data) == {}


def test_the_drift_ended_in_a_swap(done: Demo) -> None:
    summary = done.summary
    assert summary["swaps"] >= 1
    assert summary["alerts"] >= 1
    name = "auc_after_drift"
    assert summary[f"{name}_continuous"] > summary[f"{name}_frozen"]


def test_the_killed_worker_came_back(done: Demo) -> None:
    log = (done.run.data / "demo" / "logs" / "serve-1.log").read_text()
    assert log.count("'clicks.events', partition=0) ready at offset") == 2
