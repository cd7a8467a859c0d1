"""The archive role: what leaves the stream is kept in ClickHouse. Faust agents over the batch transport.

At least once: rows are inserted first and offsets committed afterwards, and the tables replace a row that comes twice
(same id, or same topic, partition and offset), so the history has everything once. All partitions share one writer that
inserts about once a second, a few large blocks instead of many small ones.
"""

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from faust.types import TP

from infra.clickhouse import Archive
from infra.clock import now_ms
from infra.metrics import Metrics
from infra.tables import arrow_rows
from streams.feature_columns import FeatureColumns
from streams.membership import Membership
from streams.parts import ended
from streams.predictions import score_of
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Outputs, committed_offsets
from streams.wire import EXAMPLES, KIND, decode_examples, decode_labelled

log = logging.getLogger(__name__)
Row = tuple[Any, ...]
# What a record that someone else wrote may make of our reading it, and a row of it of the insert.
_FOREIGN = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    pa.ArrowException,
)

PREDICTIONS = (
    "task", "event_id", "score", "version", "lineage", "event_ms", "received_ms", "processed_ms", "archived_ms", "late",
    "source_partition", "source_offset", "class", "arm", "explored", "propensity",
)  # fmt: skip
FEATURES = (
    "task", "entity", "view_hash", "entity_key", "event_ms", "source_partition", "source_offset", "late", "received_ms",
    "archived_ms", "values",
)  # fmt: skip
LABELS = ("task", "event_id", "label", "event_ms", "known_ms", "served", "version", "source", "joined_ms")
VERSIONS = ("task", "version", "lineage", "refresh", "kind", "bytes", "sha256", "event_ms", "created_ms")
ALERTS = (
    "task", "alert_id", "detector", "level", "subject", "strength", "threshold", "since_event_id", "since_ms",
    "event_ms", "created_ms", "version", "message", "severity", "features", "evidence",
)  # fmt: skip
DECISIONS = (
    "task", "decision_id", "action", "lineage", "champion", "reason", "evidence", "event_ms", "created_ms",
)  # fmt: skip
METRICS = (
    "task", "arm", "lineage", "event_ms", "created_ms", "n", "positives", "auc", "average_precision", "log_loss", "ece",
    "rmse", "mae", "r2", "accuracy", "macro_f1", "segment", "segment_value",
)  # fmt: skip
FEATURE_DRIFT = ("task", "subject", "psi", "event_ms", "created_ms")
DEAD_LETTERS = ("task", "topic", "partition", "offset", "reason", "bytes_len", "sha256", "created_ms")


def prediction_rows(record: Any) -> list[Row]:
    """One prediction record as a row of `predictions`."""
    p = json.loads(record.value)
    source, lineage = p["source"], p["version"].partition(".")[0]
    return [
        (
            p["task"], p["event_id"], score_of(p), p["version"], lineage, p["event_time"], p["received_at"],
            p["processed_at"], now_ms(), int(p["late"]), source["partition"], source["offset"], p.get("class", ""),
            p["arm"], int(p["explored"]), p["propensity"],
        )
    ]  # fmt: skip


def feature_rows(task: Task) -> Callable[[Any], list[Row]]:
    """What makes one batch of examples rows of `features`: each event has one for each of its entities with features.

    Records of labels, which lie in the same topic, have none.
    """
    found = [
        (index, (task.name, entity.name, view.fingerprint), FeatureColumns(task, view))
        for index, entity in enumerate(task.entities)
        if (view := task.views.get(entity.name))
    ]

    def rows_of(record: Any) -> list[Row]:
        if dict(record.headers).get(KIND, EXAMPLES) != EXAMPLES:
            return []
        rows, _, _ = decode_examples(record.value, task.rows_hash)
        places = (rows.event_ms, rows.partition, rows.offset, rows.late.astype(int), rows.received_ms)
        event_ms, partition, offset, late, received_ms = (column.tolist() for column in places)
        made: list[Row] = []
        for index, names, columns in found:
            values, keys, archived_ms = (
                columns.of(rows).tolist(),
                rows.keys[:, index].tolist(),
                repeat(now_ms()),
            )
            same = map(repeat, names)
            made += zip(
                *same, keys, event_ms, partition, offset, late, received_ms, archived_ms, values, strict=False
            )
        return made

    return rows_of


def label_rows(task: str, record: Any) -> list[Row]:
    """One labelled batch as rows of `labels`."""
    labelled = decode_labelled(record.value)
    source = np.where(labelled.corrects, "correction", np.where(labelled.default, "default", "label"))
    # What corrects a default may stand in the same record: it must be the newer row of the two.
    joined = record.timestamp + labelled.corrects
    columns = zip(
        labelled.rows.ids, labelled.label.tolist(), labelled.rows.event_ms.tolist(), labelled.known_ms.tolist(),
        labelled.told.tolist(), labelled.version, source.tolist(), joined.tolist(), strict=True,
    )  # fmt: skip
    return [(task, *row) for row in columns]


def version_rows(task: str, record: Any) -> list[Row]:
    """One model update, where it ends, as a row of `versions`."""
    if (update := ended(record)) is None:
        return []
    meta, size = update
    names = ("version", "lineage", "refresh", "kind")
    return [(task, *(meta[n] for n in names), size, meta["sha256"], meta["event_ms"], meta["created_ms"])]


def alert_rows(record: Any) -> list[Row]:
    """One drift alert as a row of `alerts`."""
    a = json.loads(record.value)
    a["features"] = json.dumps(a["features"])
    return [tuple(a[_JSON_NAMES.get(name, name)] for name in ALERTS)]


def decision_rows(record: Any) -> list[Row]:
    """One decision as a row of `decisions`."""
    d = json.loads(record.value) | {}
    d["evidence"] = json.dumps(d["evidence"])
    return [tuple(d[_JSON_NAMES.get(name, name)] for name in DECISIONS)]


def metric_rows(record: Any) -> list[Row]:
    """One evaluation as a row of `metrics`; what is not defined (null) becomes NaN."""
    m = {name: math.nan if value is None else value for name, value in json.loads(record.value).items()}
    return [tuple(m[_JSON_NAMES.get(name, name)] for name in METRICS)]


def feature_drift_rows(record: Any) -> list[Row]:
    """The columns' stability indices of one moment as rows of `feature_drift`."""
    d = json.loads(record.value)
    return [(d["task"], name, psi, d["event_time"], d["created_at"]) for name, psi in d["psi"].items()]


def dead_letter_rows(record: Any) -> list[Row]:
    """One dead letter as a row of `dead_letters`: its place, reason, size and hash, never its bytes."""
    h = {name: value.decode(errors="replace") for name, value in record.headers}
    value = record.value or b""
    place = (h["driftline.topic"], int(h["driftline.partition"]), int(h["driftline.offset"]))
    digest = hashlib.sha256(value).hexdigest()
    return [(h["driftline.task"], *place, h["driftline.reason"], len(value), digest, record.timestamp)]


_JSON_NAMES = {"event_ms": "event_time", "created_ms": "created_at", "since_ms": "since_time"}


def sources(task: Task) -> dict[str, tuple[str, tuple[str, ...], Callable[[Any], list[Row]]]]:
    """Topic → (table, columns, record → rows)."""
    topics, name = Topics.of(task), task.name
    return {
        topics.predictions: ("predictions", PREDICTIONS, prediction_rows),
        topics.examples: ("features", FEATURES, feature_rows(task)),
        topics.labelled: ("labels", LABELS, lambda record: label_rows(name, record)),
        topics.model_updates: ("versions", VERSIONS, lambda record: version_rows(name, record)),
        topics.drift_alerts: ("alerts", ALERTS, alert_rows),
        topics.audit: ("decisions", DECISIONS, decision_rows),
        topics.metrics: ("metrics", METRICS, metric_rows),
        topics.feature_drift: ("feature_drift", FEATURE_DRIFT, feature_drift_rows),
        topics.dead_letters: ("dead_letters", DEAD_LETTERS, dead_letter_rows),
    }


class ArchiveWriter:
    """Collects rows of all partitions and inserts them together; `stored` waits until that happened."""

    def __init__(self, archive: Archive, executor: Executor, metrics: Metrics, every_s: float = 1.0) -> None:
        self._archive, self._executor, self._metrics, self._every_s = archive, executor, metrics, every_s
        self._rows: dict[str, tuple[tuple[str, ...], list[Row]]] = {}
        self._done: asyncio.Future[None] | None = None

    async def stored(self, table: str, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Add rows and wait until they are in the archive; raises what the insert raised."""
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(self._every_s, self._start)
        self._rows.setdefault(table, (columns, []))[1].extend(rows)
        await asyncio.shield(self._done)

    async def close(self) -> None:
        """Close the archive after the insert at hand; the embedded engine must not be left to the interpreter's end."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._archive.close)

    def _start(self) -> None:
        done, rows = self._done, self._rows
        self._done, self._rows = None, {}
        self._flushing = asyncio.ensure_future(self._flush(done, rows))

    async def _flush(
        self, done: "asyncio.Future[None] | None", tables: dict[str, tuple[tuple[str, ...], list[Row]]]
    ) -> None:
        assert done is not None
        loop = asyncio.get_running_loop()
        try:
            for table, (columns, rows) in tables.items():
                await loop.run_in_executor(self._executor, self._insert, table, columns, rows)
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _insert(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        """Insert rows; those that do not fit the table, which someone else must have written, are left out."""
        try:
            self._archive.insert(table, columns, _by_column(rows))
        except _FOREIGN as error:
            fitting = [row for row in rows if _fits(table, columns, row)]
            if not (unfit := len(rows) - len(fitting)):
                raise
            log.error("%d rows do not fit table %s and are not archived: %r", unfit, table, error)
            self._metrics.count("not_archived_total", unfit)
            if fitting:
                self._insert(table, columns, fitting)
        else:
            self._metrics.count("archived_rows_total", len(rows), of=table)


def _by_column(rows: Sequence[Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _fits(table: str, columns: Sequence[str], row: Row) -> bool:
    try:
        arrow_rows(table, columns, _by_column([row]))
    except _FOREIGN:
        return False
    return True


class ArchiveCommitter:
    """Rows into the archive, then the input offsets through Faust's consumer; `Outputs.records` must be empty."""

    marks = 0

    def __init__(self, kafka: str, group: str, consumer: Any, writer: ArchiveWriter) -> None:
        self._kafka, self._group, self._consumer, self._writer = kafka, group, consumer, writer

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        """See Committer."""
        return await committed_offsets(self._kafka, self._group, sources)

    def joined(self, membership: Membership) -> None:
        """See Committer: Faust's consumer knows who it is."""

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        """See Committer."""
        if outputs.records:
            raise ValueError("the archive has no producer to write outputs with")
        await asyncio.gather(
            *(self._writer.stored(table, columns, rows) for table, columns, rows in outputs.rows)
        )
        await self._consumer._commit(dict(offsets))

    async def settle(self) -> None:
        """See Committer: nothing is ever put off."""

    async def close(self) -> None:
        """See Committer."""


class ArchiveStep:
    """One partition of one archived topic."""

    def __init__(self, task: Task, topic: str, partition: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._table, self._columns, self._rows_of = sources(task)[topic]
        self._source = TP(topic, partition)

    async def open(self, committed: Mapping[TP, int]) -> None:
        """See Step."""

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """See Step."""
        rows: list[Row] = []
        for record in records[self._source]:
            try:
                rows += self._rows_of(record)
            except _FOREIGN as error:
                # Someone else wrote into one of our topics: history must not stop for it.
                log.error("%s offset %d is not archived: %r", self._source, record.offset, error)
                self._metrics.count("not_archived_total")
        if rows:
            outputs.rows.append((self._table, self._columns, rows))

    async def quiet(self, outputs: Outputs) -> float | None:
        """See Step."""
        return None

    def close(self, *, final: bool) -> None:
        """See Step."""
