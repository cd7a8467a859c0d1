"""What every benchmark promises its callers: its options, a table a person can read, a flat JSON of finite numbers."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import drift
from benchmarks._common import ROOT, environment, finish, number, parser, scratch, table, write_json
from benchmarks._drift_streams import MAKERS
from infra.errors import UserError

SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("_"))
HELPERS = sorted((ROOT / "benchmarks").glob("_*.py"))
HEAVY = ("torch", "feast", "faust", "chdb", "quixstreams")


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A program of its own that finds no more than one that is run by its path, as `make bench` does."""
    command, own = [sys.executable, "-P", "-c", program, *arguments], dict(os.environ)
    own.pop("PYTHONPATH", None)
    return subprocess.run(
        command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240, check=False
    )


def test_there_are_benchmarks() -> None:
    assert {"serve.py", "latency.py", "feast_store.py"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_names_the_common_options_and_loads_nothing_heavy(script: Path) -> None:
    program = f"""
import runpy, sys
script = sys.argv.pop(1)
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = run(program, str(script))
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--json" in done.stdout


@pytest.mark.parametrize("script", HELPERS, ids=lambda path: path.stem)
def test_a_helper_run_by_itself_does_nothing(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script), run_name="__main__")
    assert tuple(capsys.readouterr()) == ("", "")


def test_the_figures_are_written_as_one_flat_object(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"events_per_s": 38_412.5, "swaps": 3})
    assert json.loads(path.read_text()) == {"events_per_s": 38_412.5, "swaps": 3}


def test_no_file_is_written_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(None, {"rows": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, None, "1", True, {"p50": 1.0}, [1.0]])
def test_what_is_no_finite_number_is_refused(wrong: object, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with pytest.raises(ValueError, match=r"no finite number: bad$"):
        write_json(path, {"good": 1.0, "bad": wrong})  # type: ignore[dict-item]
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "missing" / "figures.json", {"rows": 1.0})


def test_what_a_user_can_mend_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> dict[str, float]:
        raise UserError("no broker", "start one")

    with pytest.raises(SystemExit) as end:
        finish(measure, None)
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: no broker\n  fix: start one\n"


def test_the_common_options(tmp_path: Path) -> None:
    args = parser("What it measures.").parse_args(["--quick", "--json", str(tmp_path / "x.json")])
    assert args.quick
    assert args.json == tmp_path / "x.json"
    args = parser("What it measures.").parse_args([])
    assert not args.quick
    assert args.json is None


def test_a_table_has_text_to_the_left_and_numbers_to_the_right() -> None:
    lines = table(["store", "rows/s"], [["ours", 220_000.0], ["Feast's own", 41.25]]).splitlines()
    assert lines == [
        "store         rows/s",
        "-----------  -------",
        "ours         220,000",
        "Feast's own     41.2",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (38_412.4, "38,412"),
        (3, "3"),
        (0, "0"),
        (41.25, "41.2"),
        (0.1534, "0.153"),
        (-0.5, "-0.5"),
        (9.996, "10"),
    ],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_scratch_folder_is_gone_afterwards() -> None:
    with scratch() as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()


def test_children_inherit_no_setting_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA", "elsewhere:9092")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    found = environment({"DRIFTLINE_DATA": "here"})
    assert found["DRIFTLINE_DATA"] == "here"
    assert not found.keys() & {"DRIFTLINE_KAFKA", "PYTHONDONTWRITEBYTECODE"}


def test_a_run_that_was_stopped_goes_on_from_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []

    def run(maker: object, seed: int, length: int) -> dict[str, object] | None:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append((seed, length))
        return {"number": len(made)} if maker in MAKERS[:2] else None  # there is no file of the real stream

    monkeypatch.setattr(drift, "MAKERS", MAKERS[:2])
    monkeypatch.setattr(drift, "run", run)
    record = tmp_path / "record"
    with pytest.raises(KeyboardInterrupt):
        list(drift.runs(2, 7, tmp_path, record))
    made.clear()
    assert [one["number"] for one in drift.runs(2, 7, tmp_path, record)] == [1, 2, 4, 5]
    assert made == [(1, 7)]  # the one that was stopped
    assert [one["number"] for one in drift.runs(1, 8, tmp_path, record)] == [2, 3]  # of another length
