"""The set-up that `make` runs before anything is installed: what it says on failure, and what it keeps."""

import ast
import sys
from pathlib import Path

import pytest

from infra import bootstrap

ROOT = Path(__file__).parents[2]


def test_imports_only_what_a_bare_python_has() -> None:
    source = ast.parse((ROOT / "infra" / "bootstrap.py").read_text())
    names = {alias.name for node in ast.walk(source) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_uv_is_installed_by_the_hashes_of_the_lock() -> None:
    lines = bootstrap.pinned("uv", (ROOT / "requirements.lock").read_text()).splitlines()
    assert lines[0].startswith("uv==")
    assert len(lines) > 1
    assert all(line.strip().startswith("--hash=sha256:") for line in lines[1:])
    assert all(line.endswith("\\") for line in lines[:-1])
    assert not lines[-1].endswith("\\")


def test_pinned_takes_neither_neighbours_nor_names_that_only_begin_alike() -> None:
    blocks = [
        f"{pin} \\\n    --hash=sha256:{pin[-1]}a\n    # via x\n" for pin in ("uv-extra==9", "uv==1.2", "z==3")
    ]
    lock = "".join(blocks)
    assert bootstrap.pinned("uv", lock) == "uv==1.2 \\\n    --hash=sha256:2a\n"
    with pytest.raises(bootstrap.SetupError, match="does not name torch"):
        bootstrap.pinned("torch", lock)


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        ("ERROR: No matching distribution found for uv==0.13.9", "check the network"),
        ("NewConnectionError: [Errno -3] Temporary failure in name resolution", "check the network"),
        ("error: Failed to fetch x\n  Caused by: operation timed out", "check the network"),
        ("OSError: [Errno 28] No space left on device", "free about"),
        ("Because torch==2 has no wheels with a matching platform tag", "use x86-64 Linux"),
        ("error: Hash mismatch for `torch==2`", "a download differs"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "a download differs"),
        ("Traceback: something new", ""),
    ],
)
def test_advice(output: str, fix: str) -> None:
    assert bootstrap.advice(output).startswith(fix)
    assert bool(bootstrap.advice(output)) == bool(fix)


def test_a_failed_tool_is_quoted_with_its_log_and_a_fix(tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    script = "print('first\\n' * 20 + 'dns error: no such host'); raise SystemExit(7)"
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap._run("uv", [sys.executable, "-c", script], log)
    told = str(caught.value)
    assert told.startswith("uv failed (exit code 7)")
    assert "| dns error: no such host" in told
    assert told.count("first") < 20
    assert f"log: {log}" in told
    assert "fix: check the network" in told
    assert log.read_text().count("first") == 20 + 1  # the output in full, and the command


def test_large_downloads_are_shown_and_small_ones_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "print('Downloading torch (514.2MiB)\\nDownloading six (1.1MiB)\\nDownloading all (1.5GiB)')"
    bootstrap._run("uv", [sys.executable, "-c", script], tmp_path / "setup.log")
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown == ["Downloading torch (514.2MiB)", "Downloading all (1.5GiB)"]


def test_an_environment_is_kept_only_in_the_folder_where_it_was_made(tmp_path: Path) -> None:
    here = Path(sys.prefix)
    assert bootstrap._works(here)
    assert not bootstrap._works(tmp_path / "nothing")
    moved = tmp_path / "moved" / "bin"
    moved.mkdir(parents=True)
    (moved / "python").symlink_to(here / "bin" / "python")
    assert not bootstrap._works(moved.parent)
