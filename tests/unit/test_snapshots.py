"""Snapshots of a partition: the newest whole one at or below what is committed, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from infra.blobs import Blobs
from streams.snapshots import Snapshots


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path.as_uri())


def snapshots(blobs: Blobs, fingerprint: str = "f1") -> Snapshots:
    return Snapshots(blobs, "state/trips/trips.events/0", fingerprint)


def put(of: Snapshots, *offsets: int) -> None:
    of.put(offsets, {"mark": np.array(offsets, np.int64), "empty": np.zeros((0, 3))})


def found(of: Snapshots, *committed: int) -> list[int] | None:
    newest = of.newest(committed)
    if newest is None:
        return None
    offsets, arrays = newest
    assert arrays["mark"].tolist() == offsets
    assert sorted(arrays) == ["empty", "mark"]
    assert arrays["empty"].shape == (0, 3)
    return offsets


def names(of: Snapshots) -> list[str]:
    return [name.rsplit("/", 1)[1] for name in of.blobs.list(of.prefix + "/")]


def test_the_newest_at_or_below_the_committed_offset(blobs: Blobs) -> None:
    mine = snapshots(blobs)
    assert found(mine, 100) is None
    for offset in (5, 9, 11):
        put(mine, offset)
    assert found(mine, 11) == [11]
    assert found(snapshots(Blobs(blobs.url)), 100) == [11]


def test_only_three_are_kept(blobs: Blobs) -> None:
    mine = snapshots(blobs)
    for offset in (5, 100, 30, 1000, 40):
        put(mine, offset)
    assert [int(name.removesuffix(".state")) for name in names(mine)] == [40, 100, 1000]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_one_is_passed_over_and_the_one_before_it_used(blobs: Blobs, damage: str) -> None:
    mine = snapshots(blobs)
    put(mine, 5)
    put(mine, 9)
    path = blobs.list(mine.prefix + "/")[-1]
    whole = blobs.get(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    blobs.put(
        path, {"cut": whole[: len(whole) // 2], "flip": bytes(flipped), "empty": b"", "other": b"{}"}[damage]
    )
    assert found(mine, 9) == [5]


def test_every_length_of_a_half_written_one_is_refused(blobs: Blobs) -> None:
    mine = snapshots(blobs)
    put(mine, 9)
    path = blobs.list(mine.prefix + "/")[0]
    whole = blobs.get(path)
    for length in range(0, len(whole), 7):
        blobs.put(path, whole[:length])
        assert found(mine, 9) is None
    blobs.put(path, whole)
    assert found(mine, 9) == [9]


def test_one_that_is_ahead_is_removed_for_good(blobs: Blobs) -> None:
    """The topic was made anew: its old snapshots must not be taken for ours once we have come that far."""
    mine = snapshots(blobs)
    put(mine, 5)
    put(mine, 9)
    assert found(mine, 7) == [5]
    assert found(mine, 100) == [5]


def test_all_inputs_must_have_been_committed(blobs: Blobs) -> None:
    mine = snapshots(blobs)
    put(mine, 5, 20)
    put(mine, 9, 30)
    assert found(mine, 9, 29) == [5, 20]
    assert found(mine, 9) is None  # one input fewer: the snapshot has another meaning


def test_one_of_another_meaning_is_not_used(blobs: Blobs) -> None:
    put(snapshots(blobs), 5)
    changed = snapshots(blobs, "f2")
    assert found(changed, 9) is None
    put(changed, 6)
    assert found(changed, 9) == [6]
    assert found(snapshots(blobs), 9) == [5]


def test_files_of_others_are_no_snapshots(blobs: Blobs) -> None:
    mine = snapshots(blobs)
    for name in ("note.txt", "x.state", "7.state", "1-2.state", "a/00000000000000000003.state"):
        blobs.put(f"{mine.prefix}/{name}", b"x")
    put(mine, 5)
    assert found(mine, 9) == [5]
