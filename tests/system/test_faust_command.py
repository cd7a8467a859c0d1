"""`faust -A streams.app worker`: a serve worker as Faust's own users start one, named by the environment."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.kafka import read_all
from streams.feed import feed
from streams.simulate import simulate
from streams.task import load_task
from tests.system import run_support as runs

FAUST = [str(Path(sys.executable).with_name("faust")), "-A", "streams.app", "worker"]


def test_events_in_predictions_out_and_a_clean_end(broker: Any, tmp_path: Path) -> None:
    task, data = load_task("clicks"), tmp_path / "data"
    where = {"DRIFTLINE_ROLE": "serve", "DRIFTLINE_TASK": "clicks", "DRIFTLINE_KAFKA": broker.address}
    clicks = simulate("clicks", seed=3, events=500)
    ids = {item.value["event_id"] for item in clicks.items() if isinstance(item.value, dict)}
    with runs.running_command(data, [*FAUST, "--without-web", "-l", "info"], **where) as run:
        runs.await_serving(run, task, broker.address)
        feed(clicks.items(), clicks.total, task, broker.address)
        found = [row["event_id"] for row in runs.await_predictions(broker.address, task, ids)]
        assert sorted(found) == sorted(ids)
        assert read_all(broker.address, "clicks.dead-letters") == []
        assert run.stop(signal.SIGTERM) == 0
        assert "Traceback" not in run.output
        assert runs.processes(data) == {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"DRIFTLINE_ROLE": "serve"}, "DRIFTLINE_KAFKA is not set"),
        ({"DRIFTLINE_ROLE": "learn", "DRIFTLINE_KAFKA": "127.0.0.1:1"}, "DRIFTLINE_ROLE is 'learn'"),
        ({"DRIFTLINE_TASK": "nothing", "DRIFTLINE_KAFKA": "127.0.0.1:1"}, "nothing"),
    ],
)
def test_what_is_missing_is_said_without_a_traceback(more: dict[str, str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        FAUST,
        env=runs.environment(tmp_path / "data", **more),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=runs.PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "fix: " in done.stderr
    assert "Traceback" not in done.stderr
