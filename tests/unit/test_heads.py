"""Whole models in the store: of many the newest few stay, and the newest is the one that was written last."""

from pathlib import Path

import pytest

from infra.blobs import Blobs
from streams.heads import KEPT, Head, Heads

NOW = 1_764_000_000_000


def head(number: int, created_ms: int) -> Head:
    meta = {"created_ms": created_ms, "version": f"L1.{number}", "lineage": "L1"}
    return Head(meta, f"weights {number}".encode(), number)


@pytest.mark.parametrize("step_ms", [1_000, 0, -1_000])
def test_what_was_written_last_is_found_whatever_the_clock_says(step_ms: int, tmp_path: Path) -> None:
    blobs = Blobs(f"file://{tmp_path}")
    heads = Heads(blobs, "t")
    for number in range(KEPT + 3):
        newest = head(number, NOW + number * step_ms)
        heads.put(newest)
        heads.put_canary(newest)
        heads.keep(newest)
        version = newest.meta["version"]
        assert heads.get() == heads.canary() == heads.kept_model(version) == newest
    assert len(heads.kept()) == KEPT
    assert [len(blobs.list(f"models/t/{folder}/")) for folder in ("whole", "canary", "kept")] == [
        3,
        3,
        2 * KEPT,
    ]
