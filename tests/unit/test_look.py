"""`driftline models`: the registry in words and as JSON."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.blobs import Blobs
from infra.errors import UserError
from infra.settings import Settings
from learners.batch import ModelConfig
from learners.registry import Lineage, Live, Quarantine, Registry
from streams.cli import app

CONFIG = ModelConfig(learning_rate=0.25).to_dict()
RUN = CliRunner()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose second model is live."""
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path))
    registry = Registry(
        Blobs(Settings.from_env({"DRIFTLINE_DATA": str(tmp_path)}).blobs), "models/clicks/registry"
    )
    registry.record(Lineage("L1", None, CONFIG, 7, "s", "the first model", 0, 1_700_000_000_000))
    registry.record(Lineage("L2", "L1.9", CONFIG, 8, "s", "L2 [warm]: the loss rose", 5, 1_700_000_060_000))
    registry.set_live(Live("L1", "L1.0", 1_700_000_000_000, 0, "a", "the first model"))
    registry.set_live(Live("L2", "L2.1", 1_700_000_090_000, 9, "b", "L2 is [better]"))
    return tmp_path


def test_models_are_listed_with_the_live_one_marked(data: Path) -> None:
    done = RUN.invoke(app, ["models", "list"])
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert " ".join(first.split()) == "L1 2023-11-14 22:13:20 new dcn, adam 0.25: the first model"
    said = "live L2 2023-11-14 22:14:20 from L1.9 dcn, adam 0.25: L2 [warm]: the loss rose"
    assert " ".join(second.split()) == said


def test_models_as_json(data: Path) -> None:
    rows = [json.loads(line) for line in RUN.invoke(app, ["models", "list", "--json"]).stdout.splitlines()]
    assert [(row["lineage"], row["live"], row["parent"]) for row in rows] == [
        ("L1", False, None),
        ("L2", True, "L1.9"),
    ]
    assert rows[1]["live_because"] == ["L2 is [better]"]
    assert rows[1]["config"] == CONFIG
    assert [json.loads(RUN.invoke(app, ["models", "show", "L2", "--json"]).stdout)] == rows[1:]


def test_one_model_is_shown_with_why_it_was_live(data: Path) -> None:
    text = RUN.invoke(app, ["models", "show", "L2"]).stdout
    assert "L2 from L1.9, born 2023-11-14 22:14:20, seed 8" in text
    assert "live since 2023-11-14 22:14:50: L2 is [better]" in text
    assert "learning_rate  0.25" in text


def test_a_model_that_did_harm_says_why_it_went(data: Path) -> None:
    registry = Registry(
        Blobs(Settings.from_env({"DRIFTLINE_DATA": str(data)}).blobs), "models/clicks/registry"
    )
    facts = {"canary": {"loss": 0.9}}
    registry.quarantine(Quarantine("L1", "L1 does [harm] where it serves", facts, 9, 1_700_000_120_000))
    first, why, second = RUN.invoke(app, ["models", "list"]).stdout.splitlines()
    assert (first.split()[0], why.strip()) == ("L1", "quarantined: L1 does [harm] where it serves")
    assert second.split()[:2] == ["live", "L2"]
    said = RUN.invoke(app, ["models", "show", "L1"]).stdout
    assert "quarantined since 2023-11-14 22:15:20: L1 does [harm] where it serves" in said
    row = json.loads(RUN.invoke(app, ["models", "show", "L1", "--json"]).stdout)
    assert row["quarantined_evidence"] == facts
    other = json.loads(RUN.invoke(app, ["models", "show", "L2", "--json"]).stdout)
    assert other["quarantined_because"] is None


def test_an_unknown_model_is_named_with_those_there_are(data: Path) -> None:
    done = RUN.invoke(app, ["models", "show", "L9"])
    assert isinstance(done.exception, UserError)
    assert "lineages are L1, L2" in done.exception.fix


def test_no_models_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_DATA", str(tmp_path))
    done = RUN.invoke(app, ["models", "list"])
    assert isinstance(done.exception, UserError)
    assert "there are no models" in done.exception.message
    assert RUN.invoke(app, ["models", "list", "--json"]).stdout == ""
