"""`driftline lineage` finds an event by the id that its producer sent, also where the task hides ids."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.settings import Settings, load_secret
from streams import evidence
from streams.cli import app
from streams.evidence import Event
from streams.privacy import Pseudonymiser
from streams.task import Task
from tests.stream_records import TRIPS

HIDES = '[privacy]\npseudonymise = ["trip"]\n'


@pytest.mark.parametrize("more", ["", HIDES], ids=["open", "hidden"])
def test_an_event_is_found_by_its_id_or_by_what_predictions_call_it(
    more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path))
    settings = Settings.from_env({"DRIFTLINE_DATA": str(tmp_path)})
    hidden = Pseudonymiser(load_secret(settings.secret)).text("trip", "t-1")
    known = hidden if more else "t-1"

    def find(task: Task, settings: Settings, event_id: str) -> Event:
        return Event(None, None, [(0, 0, 0)] if event_id == known else [], {})

    monkeypatch.setattr(evidence, "find_event", find)
    file = tmp_path / "trips.toml"
    file.write_text(TRIPS + more)
    where = ["--task", str(file), "--kafka", "nowhere:1"]
    for typed in ("t-1", known):
        done = CliRunner().invoke(app, ["lineage", typed, *where, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["event_id"] == known
    unknown = CliRunner().invoke(app, ["lineage", "t-2", *where])
    assert "trips knows no event 't-2'" in str(unknown.exception)
