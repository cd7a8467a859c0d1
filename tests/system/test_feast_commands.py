"""Feast as its users start it: its command line on our repository, and workers that register all at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import feast
import pytest

from featurestore.repository import FeatureWriter
from featurestore.spec import parse_views

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what `feast -c featurestore` reads, so that its data does not land beside the real one."""
    shutil.copytree(ROOT / "streams" / "tasks", tmp_path / "streams" / "tasks")
    (tmp_path / "featurestore").mkdir()
    for name in ("feature_store.yaml", "definitions.py", ".feastignore"):
        shutil.copy(ROOT / "featurestore" / name, tmp_path / "featurestore" / name)
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "-c", "featurestore", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_apply_registers_the_built_in_tasks_and_keeps_those_that_ran(repository: Path) -> None:
    table = {"entity": "card", "windows": ["1d"], "aggregates": ["count"]}
    views = parse_views(["card"], set(), [table])
    FeatureWriter(repository / ".driftline", "sqlite", "my-own", views).apply()
    run(repository, "apply")
    store = feast.FeatureStore(repo_path=str(repository / "featurestore"))
    names = {view.name for view in store.list_feature_views()}
    assert {
        "my_own_card",
        "transactions_customer",
        "transactions_terminal",
        "clicks_user",
        "clicks_item",
    } == names


def test_workers_that_start_together_register_once(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from featurestore.repository import FeatureWriter
from featurestore.spec import parse_views
views = parse_views(["card"], set(), [{{"entity": "card", "windows": ["1d"], "aggregates": ["count"]}}])
FeatureWriter(Path({str(tmp_path)!r}), "sqlite", "cards", views).apply()
print("feast" in sys.modules)
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    imported = sorted(worker.communicate(timeout=240)[0].strip().splitlines()[-1] for worker in workers)
    assert imported == ["False", "False", "True"]
    store = feast.FeatureStore(repo_path=str(tmp_path / "feast"))
    assert [view.name for view in store.list_feature_views()] == ["cards_card"]
