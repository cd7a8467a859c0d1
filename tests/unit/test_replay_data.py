"""Replays of the head of two real files; their columns are those of the built-in tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from streams.feed import Item
from streams.replay import Replay
from streams.task import load_task


def record(item: Item) -> dict[str, Any]:
    assert isinstance(item.value, dict)
    return item.value


def of(kind: str, items: list[Item]) -> list[dict[str, Any]]:
    return [record(item) for item in items if item.kind == kind]


def head(source: Path, target: Path, count: int) -> Iterator[dict[str, Any]]:
    """The first rows of a Parquet file, also written to `target`."""
    with pq.ParquetFile(source) as file:
        table = pa.Table.from_batches([next(file.iter_batches(count))])
    pq.write_table(table, target)
    return iter(table.to_pylist())


def test_the_head_of_the_handbook_s_transactions(tmp_path: Path, data_dir: Path) -> None:
    path = tmp_path / "transactions.parquet"
    wanted = list(head(data_dir / "transactions-2018-04_07.parquet", path, 3000))
    replay = Replay(load_task("transactions"), path)
    items = list(replay.items())
    assert len(items) == replay.total == 6000
    assert [value["TRANSACTION_ID"] for value in of("event", items)] == [
        row["TRANSACTION_ID"] for row in wanted
    ]
    assert {v["TRANSACTION_ID"]: v["TX_FRAUD"] for v in of("label", items)} == {
        row["TRANSACTION_ID"]: row["TX_FRAUD"] for row in wanted
    }
    assert set(of("event", items)[0]) == {
        "TRANSACTION_ID",
        "TX_DATETIME",
        "CUSTOMER_ID",
        "TERMINAL_ID",
        "TX_AMOUNT",
    }
    assert of("event", items)[0]["TX_DATETIME"] == "2018-04-01T00:00:31.000+00:00"
    at = {record(item)["TRANSACTION_ID"]: item.time_ms for item in items if item.kind == "event"}
    for item in items:
        if item.kind == "label":
            assert item.time_ms == at[record(item)["TRANSACTION_ID"]] + 7 * 86_400_000


def test_the_head_of_the_open_bandit_clicks(tmp_path: Path, data_dir: Path) -> None:
    path = tmp_path / "clicks.parquet"
    wanted = list(head(data_dir / "clicks-open-bandit-men.parquet", path, 2000))
    with pytest.raises(UserError, match=r"no column user_id[\s\S]*--map user_id=COLUMN"):
        Replay(load_task("clicks"), path)  # the data set has no id of a user
    replay = Replay(load_task("clicks"), path, {"user_id": "user_feature_0"})
    items = list(replay.items())
    assert len(of("event", items)) == len(of("label", items)) == 2000
    assert {value["event_id"] for value in of("event", items)} == {f"clicks-{i}" for i in range(2000)}
    assert sum(value["click"] for value in of("label", items)) == sum(row["click"] for row in wanted)
    assert not any({"click", "policy", "propensity_score"} & set(value) for value in of("event", items))
    assert any("clicks-0" in note for note in replay.notes)
    assert [item.time_ms for item in items] == sorted(item.time_ms for item in items)
