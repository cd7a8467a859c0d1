"""Byte strings by name: what every kind of store does alike, and that half a blob is never seen."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.blobs import BlobMissing, Blobs
from infra.errors import UserError

ROOT = Path(__file__).parents[2]

# A folder and a blob never have the same name here: the letter at the front says which it is.
PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=20)
NAMES = st.builds(
    lambda folders, leaf: "/".join([*(f"d{part}" for part in folders), f"f{leaf}"]),
    st.lists(PART, max_size=2),
    PART,
)
CHANGES = st.lists(st.tuples(NAMES, st.binary(max_size=50) | st.none()), max_size=8)


@pytest.fixture(params=["file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/a store" if request.param == "file" else f"memory://{uuid4().hex}")


def apply(changes: Sequence[tuple[str, bytes | None]], blobs: Blobs) -> dict[str, bytes]:
    """Put and delete on the store, and in the dictionary that it should be like."""
    model = dict[str, bytes]()
    for name, data in changes:
        if data is None:
            blobs.delete(name)
            model.pop(name, None)
        else:
            blobs.put(name, data)
            model[name] = data
    return model


@pytest.mark.parametrize("kind", ["file", "memory"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(changes=CHANGES)
def test_it_is_like_a_dictionary(kind: str, tmp_path: Path, changes: list[tuple[str, bytes | None]]) -> None:
    place = uuid4().hex
    blobs = Blobs(f"file://{tmp_path}/{place}" if kind == "file" else f"memory://{place}")
    model = apply(changes, blobs)
    assert blobs.list() == sorted(model)
    assert {name: blobs.get(name) for name in model} == model
    for name, _ in changes:
        for length in range(len(name) + 1):
            prefix = name[:length]
            assert blobs.list(prefix) == sorted(n for n in model if n.startswith(prefix))


def test_what_was_put_is_there_for_another_who_opens_the_store(tmp_path: Path) -> None:
    Blobs(f"file://{tmp_path}/store/").put("a/b", b"1")
    assert Blobs(f"file://{tmp_path}/store").get("a/b") == b"1"
    assert (tmp_path / "store" / "a" / "b").read_bytes() == b"1"


def test_what_is_not_there(blobs: Blobs) -> None:
    assert blobs.list() == []
    assert blobs.list("folder/x") == []
    blobs.put("folder/x", b"")
    for name in ("nothing", "folder", "folder/y", "folder/x/y"):
        with pytest.raises(BlobMissing, match=f"there is no blob '{name}'"):
            blobs.get(name)
        blobs.delete(name)
    assert blobs.list() == ["folder/x"]


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.draft-x"])
def test_names_that_lead_elsewhere_are_refused(blobs: Blobs, name: str) -> None:
    for use in (blobs.get, blobs.delete, blobs.uri, lambda name: blobs.put(name, b"")):
        with pytest.raises(ValueError, match="not a blob name"):
            use(name)


def test_uri_is_what_fsspec_opens(tmp_path: Path) -> None:
    import fsspec

    blobs = Blobs(f"file://{tmp_path}")
    blobs.put("models/m", b"weights")
    with fsspec.open(blobs.uri("models/m")) as file:
        assert file.read() == b"weights"


@pytest.mark.parametrize("url", ["nothing-we-know://x", "s4://bucket"])
def test_a_store_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(UserError, match=url) as caught:
        Blobs(url)
    assert "file://" in caught.value.fix


DIES_BEFORE_THE_RENAME = """
import os, signal, sys
from infra.blobs import Blobs
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
Blobs(sys.argv[1]).put("model", b"new" * 1000)
"""

MAY_WRITE_LITTLE = """
import resource, sys
from infra.blobs import Blobs
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Blobs(sys.argv[1]).put("model", b"new" * 1000)
except OSError as error:
    sys.exit(f"refused: {error.strerror}")
"""


def put_in_a_process(script: str, url: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script, url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_put_that_was_killed_is_not_seen(tmp_path: Path, before: bytes | None) -> None:
    url = f"file://{tmp_path}"
    blobs = Blobs(url)
    if before is not None:
        blobs.put("model", before)
    assert put_in_a_process(DIES_BEFORE_THE_RENAME, url).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".draft-*"))) == 1  # it really was half-way
    assert blobs.list() == ([] if before is None else ["model"])
    if before is not None:
        assert blobs.get("model") == before
    blobs.put("model", b"after")
    assert blobs.get("model") == b"after"


def test_a_put_that_the_disk_refuses_leaves_the_old_bytes_and_no_rubbish(tmp_path: Path) -> None:
    blobs = Blobs(f"file://{tmp_path}")
    blobs.put("model", b"old")
    assert "refused: File too large" in put_in_a_process(MAY_WRITE_LITTLE, blobs.url).stderr
    assert blobs.get("model") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_reader_sees_old_or_new_and_nothing_between(tmp_path: Path) -> None:
    blobs, done = Blobs(f"file://{tmp_path}"), Event()
    blobs.put("model", b"0" * 100_000)

    def write() -> None:
        for digit in b"123456789":
            blobs.put("model", bytes([digit]) * 100_000)
        done.set()

    writer = Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(blobs.get("model"))
    writer.join()
    assert all(len(data) == 100_000 and len(set(data)) == 1 for data in [*seen, blobs.get("model")])
