"""The archive role meets what someone else wrote into its topics: it is counted and left out, the rest is stored."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP
from hypothesis import example, given
from hypothesis import strategies as st

from infra.clickhouse import Archive, create_tables, open_archive
from infra.errors import UserError
from infra.metrics import Metrics
from infra.tables import arrow_rows
from streams.archive import PREDICTIONS, ArchiveStep, ArchiveWriter, Row
from streams.topics import Topics
from streams.transaction import Outputs
from tests.stream_records import Record, task

TRIPS = task()
TOPICS = Topics.of(TRIPS)
GOOD: dict[str, Any] = {
    "event_id": "a", "task": "trips", "score": 0.5, "version": "L1.1", "event_time": 1, "received_at": 1,
    "processed_at": 1, "late": False, "arm": "champion", "explored": False, "propensity": 1.0,
    "source": {"partition": 0, "offset": 0},
}  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = open_archive(f"chdb://{tmp_path}/archive")
    create_tables(opened)
    yield opened
    opened.close()


def sent(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def rows_of(topic: str, values: list[bytes | None], metrics: Metrics, **more: Any) -> list[Row]:
    """What the archive role makes of records of a topic."""
    outputs, source = Outputs(), TP(topic, 0)
    records = [Record(value, offset, **more) for offset, value in enumerate(values)]
    ArchiveStep(TRIPS, topic, 0, metrics).process({source: records}, outputs)
    return [row for _, _, rows in outputs.rows for row in rows]


def not_archived(metrics: Metrics) -> float:
    return sum(sample.value for sample in metrics.samples() if sample.name == "not_archived_total")


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        (TOPICS.predictions, sent(version=3)),
        (TOPICS.predictions, b"[" * 100_000),
        (TOPICS.predictions, None),
        (TOPICS.drift_alerts, b"[]"),
        (TOPICS.metrics, b"[]"),
        (TOPICS.feature_drift, b'{"task": "a", "psi": [], "event_time": 1, "created_at": 1}'),
    ],
)
def test_a_record_that_cannot_be_read_is_left_out(topic: str, value: bytes | None) -> None:
    metrics = Metrics()
    assert rows_of(topic, [value], metrics) == []
    assert not_archived(metrics) == 1


def test_headers_that_cannot_be_read_are_left_out() -> None:
    metrics = Metrics()
    assert rows_of(TOPICS.dead_letters, [b"x"], metrics, headers=(("driftline.task", None),)) == []
    assert not_archived(metrics) == 1


ODD: list[dict[str, Any]] = [
    {"event_time": "2024-01-01"}, {"event_time": 1.5}, {"event_time": None}, {"event_time": 2**63},
    {"propensity": "high"}, {"propensity": 10**400}, {"propensity": [1]}, {"event_id": 5}, {"event_id": None},
    {"event_id": ["a"]}, {"arm": {}}, {"source": {"partition": 2**40, "offset": 0}},
    {"source": {"partition": 0, "offset": [0]}},
]  # fmt: skip


def store(archive: Archive, rows: list[Row], metrics: Metrics) -> None:
    async def act() -> None:
        with ThreadPoolExecutor(1) as executor:
            writer = ArchiveWriter(archive, executor, metrics, every_s=0.0)
            await writer.stored("predictions", PREDICTIONS, rows)

    asyncio.run(act())


def test_rows_that_do_not_fit_are_left_out_and_the_others_stored(archive: Archive) -> None:
    metrics = Metrics()
    good = [sent(event_id=name, source={"partition": 0, "offset": i}) for i, name in enumerate("abc")]
    rows = rows_of(TOPICS.predictions, [*good[:2], *(sent(**odd) for odd in ODD), good[2]], metrics)
    assert len(rows) == len(ODD) + 3
    store(archive, rows, metrics)
    assert archive.query("SELECT event_id FROM predictions ORDER BY event_id") == [("a",), ("b",), ("c",)]
    assert not_archived(metrics) == len(ODD)
    store(archive, rows_of(TOPICS.predictions, [sent(event_id=5)], metrics), metrics)  # nothing is left of it
    assert not_archived(metrics) == len(ODD) + 1


def test_what_is_wrong_with_the_archive_is_raised(archive: Archive) -> None:
    metrics = Metrics()
    archive.execute("DROP TABLE predictions")
    with pytest.raises(UserError, match="predictions"):
        store(archive, rows_of(TOPICS.predictions, [sent()], metrics), metrics)
    assert not_archived(metrics) == 0


ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.just("\ud800"),
    st.lists(st.integers()),
)


@example([("a", 0.5, -1, 0), ("b", 0.5, 2**63, 0)])
@given(st.lists(st.tuples(ANY, ANY, ANY, ANY), min_size=1, max_size=4))
def test_rows_that_fit_one_by_one_fit_together(rows: list[Row]) -> None:
    names = ["event_id", "score", "event_ms", "late"]

    def fit(some: list[Row]) -> bool:
        try:
            arrow_rows("predictions", names, [list(column) for column in zip(*some, strict=True)])
        except Exception:
            return False
        return True

    if fitting := [row for row in rows if fit([row])]:
        assert fit(fitting)
