"""Real Feast on the embedded archive: what a stock client learns of the past, and what it is told when it cannot."""

import math
import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import feast
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.data_source import PushMode
from feast.types import Float32, Int64
from hypothesis import given
from hypothesis import strategies as st

from featurestore.history import newest_until
from featurestore.offline import ArchiveOfflineStore, ArchiveSource
from featurestore.repository import FeatureWriter
from featurestore.spec import parse_views
from infra.clickhouse import create_tables, open_archive
from infra.errors import UserError

ROOT = Path(__file__).parents[2]
TABLES = [
    {"entity": "card", "value": "amount", "windows": ["1d"], "aggregates": ["mean", "max"]},
    {"entity": "shop", "windows": ["1d"], "aggregates": ["count"]},
]
VIEWS = parse_views(["card", "shop"], {"amount"}, TABLES)
MEAN, MAX = VIEWS["card"].columns
START = pd.Timestamp("2026-01-01T00:00:00.500Z")
START_MS = START.value // 1_000_000
BIG = 2**62 + 1  # no float has this key
NAMES = ["entity_key", "event_ms", "source_partition", "source_offset"]


def store_past(
    data: Path, entity: str, rows: list[tuple[int, int, int, int]], values: list[list[float]]
) -> None:
    """What the archive role stores: (key, ms after START, partition, offset) and the features of each event."""
    archive = open_archive(f"chdb://{data}/archive")
    create_tables(archive)
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[1] = [START_MS + ms for ms in columns[1]]
    same = [[text] * len(rows) for text in ("card-fraud", entity, VIEWS[entity].fingerprint)]
    archive.insert("features", ["task", "entity", "view_hash", *NAMES, "values"], [*same, *columns, values])
    archive.close()


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which a task ran for a few events."""
    data = tmp_path_factory.mktemp("past")
    FeatureWriter(data, "sqlite", "card-fraud", VIEWS).apply()
    rows = [(BIG, 0, 0, 4), (BIG, 1000, 0, 5), (BIG, 1000, 0, 6), (7, 500, 1, 0)]
    store_past(data, "card", rows, [[1.0, 1.5], [2.0, 2.5], [3.0, math.nan], [4.0, 4.5]])
    store_past(data, "shop", [(9, 200, 0, 4)], [[11.0]])
    return data


@pytest.fixture
def data(past: Path, tmp_path: Path) -> Path:
    """A copy of it: nothing in a data folder says where it is."""
    return Path(shutil.copytree(past, tmp_path / "data", symlinks=True))


def opened(data: Path) -> feast.FeatureStore:
    return feast.FeatureStore(repo_path=str(data / "feast"))


def asked(data: Path, keys: Any, times: Any, features: Any = None, **more: Any) -> pa.Table:
    """The features of cards at these times, in ms after START or as they are."""
    stamps = [START + pd.Timedelta(milliseconds=t) if isinstance(t, int) else t for t in times]
    frame = pd.DataFrame({"card_key": keys, "event_timestamp": stamps})
    refs = features or [f"card_fraud_card:{MEAN}", f"card_fraud_card:{MAX}"]
    return opened(data).get_historical_features(frame, refs, **more).to_arrow()


def test_each_row_gets_the_newest_row_that_is_not_after_its_time(data: Path) -> None:
    found = asked(data, [7, BIG, BIG, BIG, 7, BIG, 8], [10**9, 999, 1000, 0, 499, -1, 5])
    assert found.column_names == ["card_key", "event_timestamp", MEAN, MAX]
    assert found.column("card_key").to_pylist() == [7, BIG, BIG, BIG, 7, BIG, 8]
    assert found.schema.field(MEAN).type == pa.float32()
    # Of two events in one millisecond the later one counts; unknown then is null, and not known at all is NaN.
    assert found.column(MEAN).to_pylist() == [4.0, 1.0, 3.0, 1.0, None, None, None]
    assert found.column(MAX).to_pylist()[:2] == [4.5, 1.5]
    assert math.isnan(found.column(MAX)[2].as_py())
    assert found.column(MAX).to_pylist()[3:] == [1.5, None, None, None]


@pytest.mark.parametrize(
    ("at", "seen"),
    [
        (START, True),
        (START - pd.Timedelta(1, "ns"), False),
        (START.as_unit("us") - pd.Timedelta(1, "us"), False),
        (START.as_unit("s") + pd.Timedelta(1, "s"), True),
        (START.as_unit("s"), False),
        (START.tz_convert("Asia/Tokyo"), True),
        (START.tz_localize(None), True),
        (START.to_pydatetime() - timedelta(microseconds=1), False),
        (START.isoformat(), True),
    ],
)
def test_times_of_any_kind_are_exact(data: Path, at: Any, seen: bool) -> None:
    assert asked(data, [BIG], [at]).column(MEAN).is_valid().to_pylist() == [seen]


def test_a_frame_of_pandas_and_a_service_of_two_views(data: Path) -> None:
    store = opened(data)
    frame = pd.DataFrame(
        {
            "at": [START + pd.Timedelta(1, "s")] * 3,
            "card_key": pd.array([BIG, None, 7], "Int64"),
            "shop_key": [9, 9, 10],
            "label": [1, 0, 0],
        },
        index=[5, 5, 6],
    )
    job = store.get_historical_features(
        frame, store.get_feature_service("card_fraud"), full_feature_names=True
    )
    found = job.to_df()
    assert found[f"card_fraud_card__{MEAN}"].dtype == np.float32
    assert found[f"card_fraud_card__{MEAN}"].fillna(-1).tolist() == [3.0, -1.0, 4.0]
    assert found["card_fraud_shop__shop_count_1d"].fillna(-1).tolist() == [11.0, 11.0, -1.0]
    assert found["label"].tolist() == [1, 0, 0]
    assert found["card_key"].tolist()[0] == BIG
    assert job.metadata
    assert job.metadata.keys == ["card_key", "shop_key", "label"]
    assert list(frame.columns) == ["at", "card_key", "shop_key", "label"]


def test_the_key_may_have_another_name(data: Path) -> None:
    store = opened(data)
    view = store.get_feature_view("card_fraud_card").with_join_key_map({"card_key": "other"})[[MEAN]]
    service = feast.FeatureService(name="renamed", features=[view])
    store.apply([service])
    frame = pd.DataFrame({"other": [7], "event_timestamp": [START + pd.Timedelta(1, "s")]})
    assert store.get_historical_features(frame, service).to_df()[MEAN].tolist() == [4.0]


def test_a_row_older_than_the_ttl_does_not_count(data: Path) -> None:
    store = opened(data)
    card = store.get_feature_view("card_fraud_card")
    short = feast.FeatureView(
        name="short",
        entities=[store.get_entity("card")],
        schema=[feast.Field(name="card_key", dtype=Int64), feast.Field(name=MEAN, dtype=Float32)],
        ttl=timedelta(milliseconds=300, microseconds=500),
        source=card.batch_source,
        online=False,
    )
    store.apply([short])
    half = pd.Timedelta(500, "us")
    times = [START + pd.Timedelta(300, "ms") + half, START + pd.Timedelta(301, "ms"), START + half]
    times += [
        START + pd.Timedelta(300, "ms") + half + pd.Timedelta(1, "ns"),
        START + pd.Timedelta(1000, "ms"),
    ]
    found = asked(data, [BIG] * 5, times, [f"short:{MEAN}"]).column(MEAN)
    assert found.to_pylist() == [1.0, None, 1.0, None, 3.0]


KEY, MS = st.sampled_from([-(2**63), -1, 0, 2**63 - 1]), st.one_of(st.integers(0, 5), st.just(2**62))


@given(st.lists(st.tuples(KEY, MS), max_size=20), st.lists(st.tuples(KEY, MS), max_size=20))
def test_the_newest_row_of_a_key_is_found_in_memory(
    stored: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    def search(key: int, until: int) -> int:
        fitting = [(ms, place) for place, (k, ms) in enumerate(stored) if k == key and ms <= until]
        return max(fitting, default=(0, -1))[1]

    [keys, times] = np.array(stored, np.int64).reshape(-1, 2).T
    [asked_keys, until] = np.array(wanted, np.int64).reshape(-1, 2).T
    assert newest_until(keys, times, asked_keys, until).tolist() == [search(*one) for one in wanted]


def test_the_past_can_fill_the_online_store(data: Path) -> None:
    store = opened(data)
    store.materialize(START.to_pydatetime(), START.to_pydatetime() + timedelta(milliseconds=1000))
    found = store.get_online_features(
        [f"card_fraud_card:{MEAN}", "card_fraud_shop:shop_count_1d"],
        [{"card_key": BIG, "shop_key": 9}, {"card_key": 7, "shop_key": 8}],
    ).to_dict()
    assert found[MEAN] == [3.0, 4.0]
    assert found["shop_count_1d"] == [11.0, None]


@pytest.mark.parametrize("newest_only", [True, False])
def test_rows_of_a_span_of_time(data: Path, newest_only: bool) -> None:
    store, offline = opened(data), ArchiveOfflineStore()
    source = store.get_feature_view("card_fraud_card").batch_source
    assert source
    pull = offline.pull_latest_from_table_or_query if newest_only else offline.pull_all_from_table_or_query
    first = datetime.fromtimestamp(START_MS / 1000, UTC).replace(tzinfo=None) + timedelta(microseconds=1)
    last = START.to_pydatetime() + timedelta(milliseconds=1000)
    found = pull(store.config, source, ["card_key"], [MEAN], "event_timestamp", None, first, last).to_arrow()
    rows = sorted(zip(*(column.to_pylist() for column in found.columns), strict=True))
    assert found.column_names == ["card_key", MEAN, "event_timestamp"]
    at = [START.to_pydatetime() + timedelta(milliseconds=ms) for ms in (500, 1000)]
    both = [(7, 4.0, at[0]), (BIG, 2.0, at[1]), (BIG, 3.0, at[1])]
    assert rows == ([both[0], both[2]] if newest_only else both)


BAD: list[tuple[Any, str, str]] = [
    ("SELECT 1", "not of an SQL query", "pass a DataFrame"),
    (None, "not of a span of time", "pass a DataFrame"),
    ({"event_timestamp": [START]}, "no column 'card_key'", "add the keys"),
    ({"event_timestamp": [START], "card_key": [0.5]}, "card_key holds floats", "Int64"),
    (
        {"event_timestamp": [START], "card_key": ["x"]},
        "card_key holds values that are no 64-bit",
        "pseudonyms",
    ),
    (
        {"event_timestamp": [START], "card_key": [2**63]},
        "card_key holds values that are no 64-bit",
        "pseudonyms",
    ),
    ({"event_timestamp": [START], "card_key": [-(2**70)]}, "the DataFrame cannot be read", "one type"),
    ({"event_timestamp": [START] * 2, "card_key": [1, "x"]}, "the DataFrame cannot be read", "one type"),
    ([], "not of a list", "pass a DataFrame"),
    ({"event_timestamp": [pd.NaT], "card_key": [1]}, "lacks the time of 1 rows", "drop"),
    ({"event_timestamp": ["soon"], "card_key": [1]}, "event_timestamp holds no times", "datetimes"),
    ({"event_timestamp": [START], "card_key": [1], MEAN: [1]}, f"has a column '{MEAN}' already", "rename"),
]


@pytest.mark.parametrize(("given", "says", "fix"), BAD, ids=[says for _, says, _ in BAD])
def test_what_cannot_be_looked_up_is_said(data: Path, given: Any, says: str, fix: str) -> None:
    frame = pd.DataFrame(given) if isinstance(given, dict) else given
    with pytest.raises(UserError) as caught:
        opened(data).get_historical_features(frame, [f"card_fraud_card:{MEAN}"]).to_df()
    assert says in caught.value.message
    assert fix in caught.value.fix


def test_views_of_another_source_are_refused(data: Path) -> None:
    store = opened(data)
    view = feast.FeatureView(
        name="file",
        entities=[store.get_entity("card")],
        schema=[feast.Field(name="card_key", dtype=Int64), feast.Field(name="x", dtype=Float32)],
        source=feast.FileSource(name="mine", path=str(data / "none.parquet"), timestamp_field="at"),
        online=False,
    )
    store.apply([view])
    with pytest.raises(UserError, match="source 'mine' is not in Driftline's archive"):
        asked(data, [7], [1], ["file:x"])


def test_the_past_cannot_be_written_through_feast(data: Path) -> None:
    frame = pd.DataFrame({"card_key": [1], "event_timestamp": [START], MEAN: [1.0], MAX: [1.0]})
    with pytest.raises(UserError, match="past rows of card_fraud_card cannot be written"):
        opened(data).push("card_fraud_card_rows", frame, to=PushMode.OFFLINE)


def test_an_archive_that_another_process_has_open_names_it(data: Path) -> None:
    program = f"""
from infra.clickhouse import open_archive
archive = open_archive("chdb://{data}/archive")
print("open", flush=True)
input()
archive.close()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout
        assert owner.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=f"process {owner.pid} has the archive in .* open") as caught:
            asked(data, [7], [1])
    finally:
        owner.communicate("\n")
    assert "stop that one" in caught.value.fix
    assert "ClickHouse server" in caught.value.fix
    assert asked(data, [7], [500]).column(MEAN).to_pylist() == [4.0]


def test_an_archive_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    FeatureWriter(tmp_path, "sqlite", "card-fraud", VIEWS).apply()
    with pytest.raises(UserError, match=f"there is no archive in {tmp_path}/archive"):
        asked(tmp_path, [7], [1])
    assert not (tmp_path / "archive").exists()


def test_the_source_keeps_what_it_is_through_the_registry(data: Path) -> None:
    source = opened(data).get_feature_view("card_fraud_card").batch_source
    assert isinstance(source, ArchiveSource)
    assert source.past.task == "card-fraud"
    assert source.past.view_hash == VIEWS["card"].fingerprint
    assert source.past.columns == VIEWS["card"].columns
    assert dict(source.get_table_column_names_and_types(opened(data).config))["card_key"] == "Int64"


def test_the_settings_follow_the_archive(data: Path) -> None:
    settings = data / "feast" / "feature_store.yaml"
    assert '"archive": "chdb://../archive"' in settings.read_text()
    assert opened(data).config.offline_store.archive == "chdb://../archive"
    assert settings.stat().st_mode & stat.S_IRGRP
    address = "clickhouse://me:secret@host:9000/db"
    FeatureWriter(data, "sqlite", "card-fraud", VIEWS, archive=address).apply()
    assert opened(data).config.offline_store.archive == address
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    FeatureWriter(data, "sqlite", "card-fraud", VIEWS, archive="chdb:///elsewhere").apply()
    assert opened(data).config.offline_store.archive == "chdb:///elsewhere"
    assert os.access(settings, os.R_OK)
