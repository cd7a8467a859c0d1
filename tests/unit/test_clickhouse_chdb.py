"""The archive inside the process: the shared contract, and what only a folder can do wrong."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.clickhouse import Archive, create_tables, open_archive
from infra.errors import UserError
from tests.archive_contract import ArchiveContract, PastRowsContract


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = open_archive(f"chdb://{tmp_path}/archive")
    yield opened
    opened.close()


class TestChdb(ArchiveContract):
    pass


class TestChdbPast(PastRowsContract):
    pass


def in_another_process(folder: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    code = f"from infra.clickhouse import *; archive = open_archive('chdb://{folder}'); {then}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_rows_are_there_after_reopening(tmp_path: Path) -> None:
    for round_ in range(2):
        archive = open_archive(f"chdb://{tmp_path}/a")
        create_tables(archive)
        archive.insert("alerts", ["task", "alert_id"], [["t"], [str(round_)]])
        count = archive.query("SELECT count() FROM alerts")
        archive.close()
        assert count == [(round_ + 1,)]


def test_a_folder_in_use_names_its_owner(archive: Archive, tmp_path: Path) -> None:
    done = in_another_process(tmp_path / "archive")
    assert done.returncode == 1
    assert (
        f"infra.errors.UserError: process {os.getpid()} has the archive in {tmp_path}/archive open"
        in done.stderr
    )


def test_a_folder_is_free_after_its_owner_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    insert = "create_tables(archive); archive.insert('alerts', ['alert_id'], [['a1']])"
    done = in_another_process(folder, f"{insert}; import os; os.kill(os.getpid(), 9)")
    assert done.returncode == -9
    archive = open_archive(f"chdb://{folder}")
    try:
        assert archive.query("SELECT alert_id FROM alerts") == [("a1",)]
    finally:
        archive.close()


def test_a_config_file_of_somebody_else_is_not_obeyed(tmp_path: Path) -> None:
    # chdb takes the data path out of ./config.xml, whatever folder it is told to use.
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.xml").write_text(f"<clickhouse><path>{tmp_path}/elsewhere/</path></clickhouse>")
    code = f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\nfrom infra.clickhouse import *\n"
    code += f"create_tables(open_archive('chdb://{tmp_path}/archive'))"
    subprocess.run([sys.executable, "-c", code], cwd=home, check=True, capture_output=True)
    assert (tmp_path / "archive" / "metadata").is_dir()
    assert [path.name for path in home.iterdir()] == ["config.xml"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_closed_archive_says_so(archive: Archive) -> None:
    archive.close()
    with pytest.raises(UserError, match="is closed"):
        archive.query("SELECT 1")


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the archive's folder .*: Not a directory"):
        open_archive(f"chdb://{tmp_path}/file/archive")
    with pytest.raises(UserError, match=r"has a \? in its name"):
        open_archive(f"chdb://{tmp_path}/what?")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("chdb://", "chdb://… is not the address"),
        ("mysql://user:secret@h/db", "mysql://… is not the address"),
        ("clickhouse:///db", "clickhouse://… is not the address"),
        ("clickhouse://host:port/db", "malformed"),
        ("clickhouse://host/bad-name", "cannot be a ClickHouse database's name"),
    ],
)
def test_addresses_that_are_none(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        open_archive(url)
    assert "secret" not in str(caught.value)
