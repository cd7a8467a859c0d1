"""A real Redis in Feast's own layout: rows that we write are read by a stock client of Feast."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import feast
import numpy as np
import pandas as pd
import pytest

from featurestore.repository import FeatureWriter
from featurestore.spec import parse_views
from infra.errors import UserError

TABLE = {"entity": "card", "value": "amount", "windows": ["1d", "7d"], "aggregates": ["count", "mean"]}
VIEWS = parse_views(["card"], {"amount"}, [TABLE])
COLUMNS = VIEWS["card"].columns


@pytest.fixture
def task() -> str:
    """A task of its own for each test, since the server is shared."""
    return f"t{uuid4().hex[:8]}"


@pytest.fixture
def writer(redis_server: Any, tmp_path: Path, task: str) -> Iterator[FeatureWriter]:
    writer = FeatureWriter(tmp_path, f"redis://{redis_server.address}", task, VIEWS)
    writer.apply()
    yield writer
    writer.close()


def write(writer: FeatureWriter, keys: list[int], times: list[int], values: list[float]) -> None:
    rows = np.repeat(np.array(values, np.float32)[:, None], len(COLUMNS), axis=1)
    writer.write("card", np.array(keys), np.array(times), rows)


def stock_read(data: Path, task: str, keys: list[int]) -> dict[str, list[float | None]]:
    store = feast.FeatureStore(repo_path=str(data / "feast"))
    found: dict[str, list[float | None]] = store.get_online_features(
        features=[f"{task}_card:{column}" for column in COLUMNS],
        entity_rows=[{"card_key": key} for key in keys],
    ).to_dict()
    return found


def test_a_stock_client_reads_what_was_written(writer: FeatureWriter, tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63 - 1, 7000, dtype=np.int64)
    rows = rng.normal(size=(len(keys), len(COLUMNS))).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    writer.write("card", keys, np.arange(len(keys)) + 1_700_000_000_000, rows)
    some = np.arange(0, len(keys), 17)
    found = stock_read(tmp_path, task, keys[some].tolist())
    for at, column in enumerate(COLUMNS):
        assert np.array_equal(np.array(found[column], np.float32), rows[some, at], equal_nan=True)


def test_the_newest_event_wins_and_of_equal_times_the_last_row(
    writer: FeatureWriter, tmp_path: Path, task: str
) -> None:
    write(writer, [1, 1, 1, 2, 3], [50, 70, 60, 5, 5], [5.0, 7.0, 6.0, 1.0, 1.0])
    # Feast's own writer would drop the second row of 2, since its time equals the stored one.
    write(writer, [1, 2, 3], [69, 5, 6], [6.9, 2.0, 2.0])
    assert stock_read(tmp_path, task, [1, 2, 3, 4])[COLUMNS[0]] == [7.0, 2.0, 2.0, None]


def test_rows_of_feast_itself_and_ours_are_the_same_rows(
    writer: FeatureWriter, tmp_path: Path, task: str
) -> None:
    now = pd.Timestamp("2026-01-01T00:00:00.005Z")
    frame = pd.DataFrame({"card_key": [1], "event_timestamp": [now], **{column: [1.5] for column in COLUMNS}})
    feast.FeatureStore(repo_path=str(tmp_path / "feast")).write_to_online_store(f"{task}_card", frame)
    assert writer.read("card", np.array([1]))[COLUMNS[1]] == [1.5]
    now_ms = int(now.timestamp() * 1000)
    write(writer, [1], [now_ms - 1], [9.0])
    assert writer.read("card", np.array([1]))[COLUMNS[1]] == [1.5]
    write(writer, [1], [now_ms], [9.0])
    assert writer.read("card", np.array([1]))[COLUMNS[1]] == [9.0]


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, "redis://127.0.0.1:1", "cards", VIEWS)
    with pytest.raises(UserError, match="cannot write features to Redis"):
        write(writer, [1], [1], [1.0])
