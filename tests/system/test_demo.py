"""`driftline demo` in small forms: with a drift and a swap, and with a serve worker that is killed in the middle."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.clickhouse import open_archive
from infra.kafka import end_offsets
from streams.demo import EVENTS
from tests.system import run_support as runs

DRIFTING = ("--task", "clicks")  # as `make demo` runs it
STEADY = ("--task", "clicks", "--drift", "none", "--events", "12000")


@dataclass
class Demo:
    """A demo that has ended."""

    run: runs.Run
    out: Path
    exit_code: int
    summary: dict[str, Any] = field(default_factory=dict)

    def tails(self) -> Iterator[tuple[str, str]]:
        return self.run.tails()


def demo(folder: Path, *options: str, kill: str = "") -> Iterator[Demo]:
    """Run a demo to its end; the role `kill` dies as soon as it has answered something."""
    data, out = folder / "data", folder / "out"
    with runs.running(data, "demo", *options, "--out", str(out)) as run:
        if kill:
            run.wait_for("events sent")
            runs.until(
                lambda: sum(end_offsets(run.kafka, "clicks.predictions").values()) > 3_000, "predictions"
            )
            run.kill_role(kill)
        done = Demo(run, out, run.ended(2 * runs.PATIENCE_S))
        if (out / "summary.json").exists():
            done.summary = json.loads((out / "summary.json").read_text())
        yield done


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    yield from demo(tmp_path_factory.mktemp("drifting"), *DRIFTING)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    yield from demo(tmp_path_factory.mktemp("crashed"), *STEADY, kill="serve")


def check_counts(done: Demo, events: int) -> None:
    """Every event was accepted and predicted once, as the summary says and as the history says."""
    assert done.exit_code == 0, done.run.output
    summary = done.summary
    assert [summary[name] for name in ("events", "accepted", "predictions")] == [events] * 3
    assert (summary["doubled"], summary["dead_letters"], summary["failures"]) == (0, 0, [])
    archive = open_archive(f"chdb://{done.run.data}/demo/archive")
    try:
        query = "SELECT count(), count(DISTINCT event_id), count(DISTINCT version) FROM predictions FINAL"
        rows, ids, versions = archive.query(query)[0]
    finally:
        archive.close()
    assert (rows, ids) == (events, events)
    assert versions > 1


def check_clean_end(done: Demo) -> None:
    """A report, no trace of an error, no process left."""
    page = (done.out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "Traceback" not in done.run.output
    logs = {path.name: path.read_text() for path in (done.run.data / "demo" / "logs").glob("*.log")}
    assert set(logs) >= {"archive.log", "join.log", "learn.log", "serve-1.log"}
    assert [name for name, text in logs.items() if "Traceback" in text] == []
    assert runs.processes(done.run.data) == {}


def test_a_drift_ends_in_a_swap_and_a_report(drifting: Demo) -> None:
    check_counts(drifting, EVENTS["clicks"])
    check_clean_end(drifting)
    summary = drifting.summary
    assert summary["swaps"] >= 1
    assert summary["alerts"] >= 1
    name = "auc_after_drift"
    assert summary[f"{name}_continuous"] > summary[f"{name}_frozen"]


def test_a_crash_of_serve_loses_and_doubles_nothing(crashed: Demo) -> None:
    check_counts(crashed, 12_000)
    check_clean_end(crashed)
    log = (crashed.run.data / "demo" / "logs" / "serve-1.log").read_text()
    assert log.count("'clicks.events', partition=0) ready at offset") == 2
