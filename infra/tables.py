"""The archive's tables, and rows in exactly their types.

docs/schemas.md says what each column means, its unit and an example; a test keeps the two equal.

What both engines must understand bounds the SQL: the oldest server we test is 18.16, so no DateTime64, no
TTL, no LowCardinality, no JSON functions. Times are Int64 milliseconds since the Unix epoch (UTC).

Every table is a ReplacingMergeTree whose key is a position in Kafka or an id, so inserting the same rows
again changes nothing that a query with FINAL sees: an archiver that crashed between its insert and its
commit simply inserts again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

ARROW_TYPES = {
    "String": pa.string(),
    "Float64": pa.float64(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "UInt8": pa.uint8(),
    "Float32": pa.float32(),
    "Array(Float32)": pa.list_(pa.float32()),
}

Columns = Sequence[Any]  # one sequence or numpy array [n] a column


@dataclass(frozen=True)
class Table:
    """One table: rows that agree in all `key` columns are one row; the one with the greatest `newest` wins.

    `columns` are (name, ClickHouse type). A key begins with the task, then mostly the event time, so that a
    query of one task and a span of time reads only that part of the disk. Feature rows are asked for by entity,
    so there the entity comes before the time.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]
    newest: str

    @property
    def names(self) -> list[str]:
        """The columns' names in order."""
        return [name for name, _ in self.columns]

    def type_of(self, column: str) -> str:
        """ClickHouse type of a column. Raises ValueError for a column that the table does not have."""
        for name, kind in self.columns:
            if name == column:
                return kind
        raise ValueError(f"table {self.name} has no column {column!r}")

    def create_sql(self) -> str:
        """The statement that makes this table unless it is there."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        return (
            f"CREATE TABLE IF NOT EXISTS {self.name} ({columns})"
            f" ENGINE = ReplacingMergeTree({self.newest}) ORDER BY ({', '.join(self.key)})"
        )

    def add_sql(self, column: str) -> str:
        """The statement that gives a table that was made before a column to it."""
        return f"ALTER TABLE {self.name} ADD COLUMN {column} {self.type_of(column)}"


def _table(name: str, *, key: str, newest: str, columns: str) -> Table:
    """A table from text: the key's columns, and for each type a line "Type: names"."""
    types = {}
    for line in columns.strip().splitlines():
        kind, _, names = line.partition(":")
        types.update({column: kind.strip() for column in names.split()})
    return Table(name, tuple(types.items()), tuple(key.split()), newest)


_ALL = (
    _table(
        "predictions",
        key="task event_ms source_partition source_offset",
        newest="processed_ms",
        columns="""
        String: task event_id version lineage class arm
        Float64: score propensity
        Int64: event_ms received_ms processed_ms archived_ms
        UInt8: late explored
        Int32: source_partition
        Int64: source_offset""",
    ),
    _table(
        "features",
        key="task entity view_hash entity_key event_ms source_partition source_offset",
        newest="archived_ms",
        columns="""
        String: task entity view_hash
        Int64: entity_key event_ms received_ms archived_ms
        UInt8: late
        Int32: source_partition
        Int64: source_offset
        Array(Float32): values""",
    ),
    _table(
        "labels",
        key="task event_ms event_id",
        newest="joined_ms",
        columns="""
        String: task event_id version source
        Float64: label served
        Int64: event_ms known_ms joined_ms""",
    ),
    _table(
        "versions",
        key="task version kind",
        newest="created_ms",
        columns="""
        String: task version lineage kind sha256
        Int64: refresh bytes event_ms created_ms""",
    ),
    _table(
        "alerts",
        key="task alert_id",
        newest="created_ms",
        columns="""
        String: task alert_id detector level subject since_event_id version message features evidence
        Float64: strength threshold severity
        Int64: since_ms event_ms created_ms""",
    ),
    _table(
        "decisions",
        key="task decision_id",
        newest="created_ms",
        columns="""
        String: task decision_id action lineage champion reason evidence
        Int64: event_ms created_ms""",
    ),
    _table(
        "metrics",
        key="task event_ms arm lineage segment segment_value",
        newest="created_ms",
        columns="""
        String: task arm lineage segment
        Int64: event_ms created_ms n positives segment_value
        Float64: auc average_precision log_loss ece rmse mae r2 accuracy macro_f1""",
    ),
    _table(
        "feature_drift",
        key="task event_ms subject",
        newest="created_ms",
        columns="""
        String: task subject
        Float64: psi
        Int64: event_ms created_ms""",
    ),
    _table(
        "dead_letters",
        key="task topic partition offset",
        newest="created_ms",
        columns="""
        String: task topic reason sha256
        Int32: partition
        Int64: offset bytes_len created_ms""",
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _ALL}


def arrow_rows(table: str, columns: Sequence[str], rows_as_columns: Columns) -> pa.Table:
    """Rows, given as one sequence a column, in the exact types of the table: both engines get the same.

    None becomes NaN in a Float64 column. An Array(Float32) takes a sequence of numbers, or a float32 [F], a row.
    Raises ValueError for names or lengths that do not fit, TypeError for values that would be cut or are no text,
    and what numpy and Arrow raise where values are of no use in a column at all. Rows that fit one by one fit together.
    """
    if table not in TABLES:
        raise ValueError(f"there is no table {table!r} in the archive")
    if len(columns) != len(rows_as_columns):
        raise ValueError(f"{table}: {len(columns)} names for {len(rows_as_columns)} columns")
    lengths = {len(values) for values in rows_as_columns}
    if len(lengths) > 1:
        raise ValueError(f"{table}: columns of unequal lengths {sorted(lengths)}")
    kinds = [TABLES[table].type_of(column) for column in columns]
    return pa.table([_array(kind, v) for kind, v in zip(kinds, rows_as_columns, strict=True)], list(columns))


def _array(kind: str, values: Any) -> pa.Array:
    if kind == "String":
        texts = values.tolist() if isinstance(values, np.ndarray) else values
        if not all(isinstance(text, str) for text in texts):  # Arrow takes None, a server does not
            raise TypeError(f"{kind} column got values that are no text")
        try:
            return pa.array(texts, pa.string())
        except UnicodeEncodeError:  # JSON may spell half a surrogate pair, which has no UTF-8
            return pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.string())
    if kind.startswith("Array"):
        return pa.array(list(values), ARROW_TYPES[kind])
    array = np.asarray(values)
    if kind == "Float64":
        return pa.array(array.astype(np.float64), pa.float64())
    if len(array) and array.dtype.kind not in "biu":  # a fraction would be cut, NaN would become garbage
        raise TypeError(f"{kind} column got values of type {array.dtype}")
    exact = array.astype(ARROW_TYPES[kind].to_pandas_dtype())
    if (exact != array).any():
        raise TypeError(f"{kind} column got a number beyond its range")
    return pa.array(exact, ARROW_TYPES[kind])
