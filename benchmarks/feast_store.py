"""Feature rows a second into and out of Feast's online store: our writers beside Feast's own stores.

The same rows of the clicks task's users go through every way in turn, in batches such as a serve worker writes about
once a second: first as new entities, then again with newer times, which is what a running stream does.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    from featurestore.spec import View

ENTITY, TASK = "user", "clicks"
NOW_MS = 1_767_225_600_000  # 2026-01-01; the times of rows are no clock's business
READ_AT_ONCE = 100
NOTES = """\
driftline writes one packed row an entity, without Feast's client: SQLite in WAL mode, synchronous = NORMAL (a power
cut loses the last rows, which the stream writes again); Redis in the layout of Feast's own store. "through Feast" is
our SQLite store as any Feast client writes it. Feast's own stores are called by write_to_online_store with a data
frame that is ready; its SQLite keeps a row for each feature and syncs every commit. Reads are get_online_features of
100 entities at a time, through Feast for all."""

Write = Callable[[Any, Any, Any], None]
Read = Callable[[Any], object]


@dataclass(frozen=True)
class Way:
    """A way into an online store and out of it; `read` is None where another way has the same."""

    name: str
    write: Write
    read: Read | None


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--rows", type=int, default=0, help="entities; default: 20,000, quick 5,000")
    made.add_argument("--batch", type=int, default=1000, help="rows a write (default: 1000)")
    made.add_argument("--rounds", type=int, default=0, help="passes over all rows; default: 5, quick 3")
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run every way in turn, print the table, return the figures."""
    from streams.task import load_task

    count = args.rows or (5_000 if args.quick else 20_000)
    rounds = args.rounds or (3 if args.quick else 5)
    view = load_task(TASK).views[ENTITY]
    with scratch() as home, ExitStack() as stack:
        ways = _sqlite_ways(home, view) + _redis_ways(home, view, stack)
        writes: dict[str, list[float]] = {way.name: [] for way in ways}
        reads: dict[str, list[float]] = {way.name: [] for way in ways if way.read}
        for number in range(rounds):
            for way in ways:
                writes[way.name].append(_written(way, view, count, args.batch, number))
            for way in ways:
                if way.read:
                    reads[way.name].append(_read(way.read, count))
    print(f"{count:,} rows of {len(view.columns)} features, {args.batch:,} a write, {rounds} rounds\n")
    return _report(writes, reads)


def _report(
    writes: Mapping[str, Sequence[float]], reads: Mapping[str, Sequence[float]]
) -> Mapping[str, float]:
    rate = {name: median(found) for name, found in writes.items()}
    rows = [
        [name, rate[name], min(found), max(found), median(reads[name]) if name in reads else "as above"]
        for name, found in writes.items()
    ]
    print(table(["store", "rows/s written", "least", "most", "rows/s read"], rows))
    print(f"\n{NOTES}")
    figures = {
        "write_rows_per_s": rate["sqlite, driftline"],
        "ratio_stock_sqlite": rate["sqlite, driftline"] / rate["sqlite, Feast's own"],
        "read_rows_per_s": median(reads["sqlite, driftline"]),
        "read_ratio_stock_sqlite": median(reads["sqlite, driftline"]) / median(reads["sqlite, Feast's own"]),
    }
    if "redis, driftline" in rate:
        figures["redis_write_rows_per_s"] = rate["redis, driftline"]
        figures["ratio_stock_redis"] = rate["redis, driftline"] / rate["redis, Feast's own"]
    return figures


def _sqlite_ways(home: Path, view: "View") -> list[Way]:
    ours = _writer(home / "ours", "sqlite", view)
    own = _stock_store(home / "stock", {"type": "sqlite", "path": str(home / "stock" / "online.db")}, view)
    through = _through_feast(_opened(home / "ours"), view)
    return [
        Way("sqlite, driftline", *ours),
        Way("sqlite, through Feast", through[0], None),
        Way("sqlite, Feast's own", *_through_feast(own, view)),
    ]


def _redis_ways(home: Path, view: "View", stack: ExitStack) -> list[Way]:
    from benchmarks._redis import redis_server

    address = stack.enter_context(redis_server(home))
    if address is None:
        print("Redis is left out: redis-server is not installed\n")
        return []
    ours = _writer(home / "redis", f"redis://{address}", view)
    own = _stock_store(home / "stock-redis", {"type": "redis", "connection_string": address}, view)
    return [Way("redis, driftline", *ours), Way("redis, Feast's own", *_through_feast(own, view))]


def _writer(data: Path, online: str, view: "View") -> tuple[Write, Read]:
    """What a serve worker writes with; read as any Feast client does."""
    from featurestore.repository import FeatureWriter

    writer = FeatureWriter(data, online, TASK, {ENTITY: view})
    writer.apply()

    def write(keys: Any, times: Any, rows: Any) -> None:
        writer.write(ENTITY, keys, times, rows)

    return write, lambda keys: writer.read(ENTITY, keys)


def _opened(data: Path) -> Any:
    from feast import FeatureStore

    return FeatureStore(repo_path=str(data / "feast"))


def _stock_store(home: Path, online: Mapping[str, str], view: "View") -> Any:
    """A Feast of its own with the same view and one of Feast's own online stores."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32, Int64

    from featurestore.repository import view_name

    home.mkdir()
    key = f"{ENTITY}_key"
    entity = Entity(name=ENTITY, join_keys=[key], value_type=ValueType.INT64)
    feature_view = FeatureView(
        name=view_name(TASK, ENTITY),
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=key, dtype=Int64), *(Field(name=name, dtype=Float32) for name in view.columns)],
        source=FileSource(path=_no_history(home, view), timestamp_field="event_timestamp"),
    )
    config = RepoConfig(
        project="stock",
        provider="local",
        registry=str(home / "registry.db"),
        online_store=dict(online),
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
        repo_path=home,
    )
    store = FeatureStore(config=config)
    store.apply([entity, feature_view])
    return store


def _no_history(home: Path, view: "View") -> str:
    """An empty file of past rows: Feast wants one for every view."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = [("event_timestamp", pa.timestamp("us", "UTC")), (f"{ENTITY}_key", pa.int64())]
    schema = pa.schema([*fields, *((column, pa.float32()) for column in view.columns)])
    parquet.write_table(schema.empty_table(), home / "history.parquet")
    return str(home / "history.parquet")


def _through_feast(store: Any, view: "View") -> tuple[Write, Read]:
    """Writing and reading by Feast's own calls."""
    from featurestore.repository import view_name

    name = view_name(TASK, ENTITY)
    features = [f"{name}:{column}" for column in view.columns]

    def write(frame: Any, _: Any, __: Any) -> None:
        store.write_to_online_store(name, frame)

    def read(keys: Any) -> object:
        rows = {f"{ENTITY}_key": keys.tolist()}
        return store.get_online_features(features=features, entity_rows=rows).to_dict()

    return write, read


def _batches(view: "View", count: int, batch: int, number: int) -> Iterator[tuple[Any, Any, Any]]:
    """Keys, times and rows of one pass; each pass is newer than the one before."""
    import numpy as np

    keys = _keys(count)
    rows = np.random.default_rng(number).normal(size=(count, len(view.columns))).astype(np.float32)
    times = NOW_MS + number * 1000 + np.arange(count) % 1000
    for start in range(0, count, batch):
        some = np.s_[start : start + batch]
        yield keys[some], times[some], rows[some]


def _keys(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count, dtype=np.int64)


def _frame(view: "View", keys: Any, times: Any, rows: Any) -> Any:
    import pandas as pd

    columns = {name: rows[:, i] for i, name in enumerate(view.columns)}
    return pd.DataFrame(
        {f"{ENTITY}_key": keys, "event_timestamp": pd.to_datetime(times, unit="ms", utc=True), **columns}
    )


def _written(way: Way, view: "View", count: int, batch: int, number: int) -> float:
    """Rows a second of one pass. Data frames are made before the clock starts."""
    arguments = list(_batches(view, count, batch, number))
    if not way.name.endswith("driftline"):
        arguments = [(_frame(view, *each), None, None) for each in arguments]
    start = time.perf_counter()
    for each in arguments:
        way.write(*each)
    return count / (time.perf_counter() - start)


def _read(read: Read, count: int) -> float:
    """Rows a second of reading a part of the entities, 100 at a time."""
    keys = _keys(count)[: 20 * READ_AT_ONCE]
    read(keys[:1])  # opens what is opened once
    start = time.perf_counter()
    for first in range(0, len(keys), READ_AT_ONCE):
        read(keys[first : first + READ_AT_ONCE])
    return len(keys) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
