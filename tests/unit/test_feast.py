"""Real Feast on our SQLite store: what a worker writes is what a stock client reads."""

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import feast
import numpy as np
import pandas as pd
import pytest
from feast.types import Float32, Int64, String
from numpy.typing import NDArray

from featurestore.repository import FeatureWriter, applied_views
from featurestore.spec import View, parse_views
from infra.errors import UserError

ROOT = Path(__file__).parents[2]


def make_views(window: str = "1d") -> dict[str, View]:
    return parse_views(
        ["card", "shop"],
        {"amount"},
        [
            {"entity": "card", "value": "amount", "windows": [window, "7d"], "aggregates": ["mean", "max"]},
            {"entity": "shop", "windows": [window], "aggregates": ["count"], "label_rate": [window]},
        ],
    )


VIEWS = make_views()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[FeatureWriter]:
    writer = FeatureWriter(tmp_path, "sqlite", "card-fraud", VIEWS)
    writer.apply()
    yield writer
    writer.close()


def stock_read(data: Path, entity: str, keys: list[int], view: View = VIEWS["card"]) -> NDArray[np.float64]:
    """Rows as a client of Feast reads them that knows nothing of ours; None becomes -1."""
    store = feast.FeatureStore(repo_path=str(data / "feast"))
    found = store.get_online_features(
        features=[f"card_fraud_{entity}:{column}" for column in view.columns],
        entity_rows=[{f"{entity}_key": key} for key in keys],
    ).to_dict()
    rows = np.array([found[column] for column in view.columns], object).T
    return np.where(rows == None, -1.0, rows).astype(np.float64)  # noqa: E711


def write(writer: FeatureWriter, keys: list[int], times: list[int], values: list[float]) -> None:
    rows = np.repeat(np.array(values, np.float32)[:, None], len(VIEWS["card"].columns), axis=1)
    writer.write("card", np.array(keys), np.array(times), rows)


def test_a_stock_client_reads_what_was_written(writer: FeatureWriter, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63 - 1, 700, dtype=np.int64)
    rows = rng.normal(size=(700, 4)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    writer.write("card", keys, np.arange(700), rows)
    found = stock_read(tmp_path, "card", keys.tolist())
    assert np.array_equal(found.astype(np.float32), rows, equal_nan=True)


def test_the_service_of_the_task_reads_all_its_views(writer: FeatureWriter, tmp_path: Path) -> None:
    write(writer, [7], [1], [0.5])
    writer.write("shop", np.array([9]), np.array([1]), np.array([[3.0, 0.25]], np.float32))
    store = feast.FeatureStore(repo_path=str(tmp_path / "feast"))
    service = store.get_feature_service("card_fraud")
    found = store.get_online_features(
        features=service, entity_rows=[{"card_key": 7, "shop_key": 9}]
    ).to_dict()
    assert found["card_amount_mean_1d"] == [0.5]
    assert found["shop_count_1d"] == [3.0]
    assert found["shop_label_rate_1d"] == [0.25]


def test_the_newest_event_wins_and_of_equal_times_the_last_row(writer: FeatureWriter, tmp_path: Path) -> None:
    write(writer, [1, 1, 1, 2, 3], [50, 70, 60, 5, 5], [5.0, 7.0, 6.0, 1.0, 1.0])
    write(writer, [1, 2, 3], [69, 5, 6], [6.9, 2.0, 2.0])
    assert stock_read(tmp_path, "card", [1, 2, 3])[:, 0].tolist() == [7.0, 2.0, 2.0]
    write(writer, [1, 1], [70, 70], [8.0, 9.0])
    assert stock_read(tmp_path, "card", [1])[:, 0].tolist() == [9.0]


def test_read_is_the_same_as_a_client(writer: FeatureWriter) -> None:
    write(writer, [1], [50], [5.0])
    found = writer.read("card", np.array([1, 4]))
    assert list(found) == list(VIEWS["card"].columns)
    assert found["card_amount_max_7d"] == [5.0, None]


def test_what_is_not_registered_cannot_be_read(writer: FeatureWriter, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features of another are not registered"):
        FeatureWriter(tmp_path, "sqlite", "another", VIEWS).read("card", np.array([7]))


def test_clients_write_through_feast_too(writer: FeatureWriter, tmp_path: Path) -> None:
    store = feast.FeatureStore(repo_path=str(tmp_path / "feast"))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    frame = pd.DataFrame({"card_key": [1, 2], "event_timestamp": [now, now + timedelta(milliseconds=1)]})
    for column in VIEWS["card"].columns:
        frame[column] = [1.5, math.nan]
    store.write_to_online_store("card_fraud_card", frame)
    store.push("card_fraud_card_rows", frame.assign(card_key=[3, 4]))
    assert stock_read(tmp_path, "card", [1, 3])[:, 0].tolist() == [1.5, 1.5]
    # The times went through as well, to the millisecond.
    write(writer, [1, 3], [int(now.timestamp() * 1000) - 1, int(now.timestamp() * 1000)], [9.0, 9.0])
    assert stock_read(tmp_path, "card", [1, 3])[:, 0].tolist() == [1.5, 9.0]


def test_two_processes_write_the_same_entities(writer: FeatureWriter, tmp_path: Path) -> None:
    # One writes the odd times, the other the even ones, in many small batches: the newest must stay.
    program = f"""
import sys
from pathlib import Path
import numpy as np
from featurestore.repository import FeatureWriter, applied_views
first, views = int(sys.argv[1]), applied_views(Path({str(tmp_path / "feast")!r}))["card-fraud"]
writer = FeatureWriter(Path({str(tmp_path)!r}), "sqlite", "card-fraud", views)
keys = np.arange(50)
for time in range(first, 300, 2):
    writer.write("card", keys, np.full(50, time + keys), np.full((50, 4), time, np.float32) + keys[:, None])
assert "feast" not in sys.modules
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, str(first)], cwd=ROOT) for first in (0, 1)]
    assert [process.wait(timeout=240) for process in writers] == [0, 0]
    found = stock_read(tmp_path, "card", list(range(50)))
    assert found[:, 0].tolist() == [299.0 + key for key in range(50)]


def test_tasks_share_a_registry(writer: FeatureWriter, tmp_path: Path) -> None:
    FeatureWriter(tmp_path, "sqlite", "other", {"card": VIEWS["card"]}).apply()
    store = feast.FeatureStore(repo_path=str(tmp_path / "feast"))
    names = sorted(view.name for view in store.list_feature_views())
    assert names == ["card_fraud_card", "card_fraud_shop", "other_card"]
    assert applied_views(tmp_path / "feast") == {"card-fraud": VIEWS, "other": {"card": VIEWS["card"]}}


def test_a_changed_definition_starts_without_rows(writer: FeatureWriter, tmp_path: Path) -> None:
    write(writer, [1], [50], [5.0])
    changed = make_views(window="2d")
    other = FeatureWriter(tmp_path, "sqlite", "card-fraud", changed)
    other.apply()
    assert stock_read(tmp_path, "card", [1], changed["card"]).tolist() == [[-1.0] * 4]
    other.write("card", np.array([1]), np.array([10]), np.full((1, 4), 3.0, np.float32))
    assert stock_read(tmp_path, "card", [1], changed["card"]).tolist() == [[3.0] * 4]
    # A worker that has not heard of the change goes on undisturbed and does not disturb.
    write(writer, [1], [60], [6.0])
    assert stock_read(tmp_path, "card", [1], changed["card"]).tolist() == [[3.0] * 4]


@pytest.mark.parametrize(
    ("key", "value", "message"), [(String, Float32, "not one INT64"), (Int64, String, "card:x")]
)
def test_a_view_that_cannot_be_packed_is_refused(
    writer: FeatureWriter, tmp_path: Path, key: Any, value: Any, message: str
) -> None:
    kind = feast.ValueType.STRING if key == String else feast.ValueType.INT64
    entity = feast.Entity(name="other", join_keys=["other_key"], value_type=kind)
    view = feast.FeatureView(
        name="card",
        entities=[entity],
        schema=[feast.Field(name="other_key", dtype=key), feast.Field(name="x", dtype=value)],
        source=feast.FileSource(path=str(tmp_path / "none.parquet"), timestamp_field="at"),
    )
    store = feast.FeatureStore(repo_path=str(tmp_path / "feast"))
    with pytest.raises(UserError, match=message):
        store.apply([entity, view])


def test_rows_of_another_width_are_refused(writer: FeatureWriter) -> None:
    with pytest.raises(ValueError, match="4 columns"):
        writer.write("card", np.array([1]), np.array([1]), np.zeros((1, 3), np.float32))
