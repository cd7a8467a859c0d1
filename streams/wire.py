"""How rows travel between the steps inside Kafka: Arrow IPC, one record batch a Kafka record.

A row is an event after decoding and pseudonymisation, with the features that were computed so far. Column groups are
fixed-size lists, so that a message of ten rows costs a handful of Arrow columns and not one for each feature. Every
record of rows names their schema: rows that an older task file left in a topic are told apart and never misread.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.rows import MOST_BYTES, Feedback, Labelled, Labels, Rows, cuts

__all__ = [
    "EXAMPLES", "FEEDBACK", "KIND", "LABELLED", "LABELS", "Damaged", "Feedback", "Labelled", "Labels", "Rows", "cuts",
    "decode_examples", "decode_feedback", "decode_labelled", "decode_labels", "decode_rows", "encode_examples",
    "encode_feedback", "encode_labelled", "encode_labels", "encode_rows", "partition_of", "partition_of_id",
    "split_examples", "split_rows",
]  # fmt: skip

KIND = "driftline.kind"
EXAMPLES, LABELS, LABELLED, FEEDBACK = b"examples", b"labels", b"labelled", b"feedback"

_SCHEMA = b"driftline.schema"
_TYPES: dict[type[Any], pa.DataType] = {
    dtype: pa.from_numpy_dtype(dtype) for dtype in (np.uint8, np.int32, np.int64, np.float32, np.float64)
}
T = TypeVar("T")


class Damaged(ValueError):
    """Bytes that are not what the step before wrote, or rows of another schema. They must not be used."""


class _Columns:
    """The columns of a record batch by name. What depends on the schema alone is found once."""

    def __init__(self, batch: pa.RecordBatch, at: dict[str, int], schema: str) -> None:
        self.batch, self._at, self.schema = batch, at, schema

    def __getitem__(self, name: str) -> pa.Array:
        return self.batch.column(self._at[name])


class RowBytes(bytes):
    """Rows as `encode_rows` writes them that are at hand as well: `decode_rows` gives them back unread, once."""

    rows: Rows


def encode_rows(rows: Rows) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(_row_columns(rows), rows.schema)


def split_rows(rows: Rows, targets: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """`encode_rows` of the rows of each target [n], in their order and cut to records: (target, bytes).

    It costs little more than one record of all rows: Arrow's columns are made once, and each record is a slice of them.
    """
    order = np.argsort(targets, kind="stable")
    rows = rows.take(order)
    for target, place, data in _split(_row_columns(rows), rows.schema, targets[order], rows.nbytes):
        made = RowBytes(data)
        made.rows = rows.part(place)
        yield target, made


def decode_rows(data: bytes | None, schema: str | None = None) -> Rows:
    """The inverse of `encode_rows`. Raises Damaged, also for rows of another schema than `schema`, if given."""
    if isinstance(data, RowBytes) and schema in (None, data.rows.schema):
        return data.rows
    return _decoded(data, schema, _rows)


def encode_examples(rows: Rows, served: NDArray[np.float32], version: str | Sequence[str]) -> bytes:
    """Rows exactly as served, with their scores [n] and the versions [n] that made them; or the one that made all."""
    versions = [version] * len(rows) if isinstance(version, str) else version
    return _write(_example_columns(rows, served, versions), rows.schema)


def split_examples(
    rows: Rows, served: NDArray[np.float32], versions: Sequence[str], targets: NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    """`encode_examples` of the rows of each target [n], as `split_rows` does it: (target, bytes)."""
    order = np.argsort(targets, kind="stable")
    rows, made = rows.take(order), [versions[i] for i in order.tolist()]
    columns = _example_columns(rows, served[order], made)
    for target, _, data in _split(columns, rows.schema, targets[order], rows.nbytes):
        yield target, data


def decode_examples(
    data: bytes | None, schema: str | None = None
) -> tuple[Rows, NDArray[np.float32], list[str]]:
    """The inverse of `encode_examples`: rows, scores, versions. Raises Damaged as `decode_rows` does."""
    return _decoded(data, schema, lambda b: (_rows(b), _served(b), _texts(b, "version")))


def encode_labelled(labelled: Labelled) -> bytes:
    """Arrow IPC stream of one record batch."""
    columns = {
        "served": _scores(labelled.served),
        "version": _strings(labelled.version),
        "label": _column(labelled.label),
        "known_ms": _column(labelled.known_ms),
        "default": _column(labelled.default.view(np.uint8)),
        "late_share": _column(labelled.late_share),
        "corrects": _column(labelled.corrects.view(np.uint8)),
    }
    return _write(_row_columns(labelled.rows) | columns, labelled.rows.schema)


def decode_labelled(data: bytes | None, schema: str | None = None) -> Labelled:
    """The inverse of `encode_labelled`. Raises Damaged as `decode_rows` does."""

    def read(batch: _Columns) -> Labelled:
        return Labelled(
            _rows(batch),
            _served(batch),
            _texts(batch, "version"),
            _numpy(batch, "label", np.float32),
            _numpy(batch, "known_ms", np.int64),
            _numpy(batch, "default", np.uint8).astype(np.bool_),
            _numpy(batch, "late_share", np.float32),
            _numpy(batch, "corrects", np.uint8).astype(np.bool_),
        )

    return _decoded(data, schema, read)


def encode_labels(labels: Labels) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(
        {
            "id": _strings(labels.ids),
            "label": _column(labels.label),
            "known_ms": _column(labels.known_ms),
            "partition": _column(labels.partition),
            "offset": _column(labels.offset),
        }
    )


def decode_labels(data: bytes | None) -> Labels:
    """The inverse of `encode_labels`. Raises Damaged."""
    return _decoded(
        data,
        None,
        lambda b: Labels(
            _texts(b, "id"),
            _numpy(b, "label", np.float32),
            _numpy(b, "known_ms", np.int64),
            _numpy(b, "partition", np.int32),
            _numpy(b, "offset", np.int64),
        ),
    )


def encode_feedback(feedback: Feedback) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(
        {
            "key": _column(feedback.keys),
            "known_ms": _column(feedback.known_ms),
            "label": _column(feedback.label),
            "back": _column(feedback.back.view(np.uint8)),
        }
    )


def decode_feedback(data: bytes | None) -> Feedback:
    """The inverse of `encode_feedback`. Raises Damaged."""
    return _decoded(
        data,
        None,
        lambda b: Feedback(
            _numpy(b, "key", np.int64),
            _numpy(b, "known_ms", np.int64),
            _numpy(b, "label", np.float64),
            _numpy(b, "back", np.uint8).astype(np.bool_),
        ),
    )


def partition_of(keys: NDArray[np.int64], partitions: int) -> NDArray[np.int64]:
    """Partition of each entity key [n]; keys are already hashes, so their remainder spreads evenly."""
    return (keys.astype(np.uint64) % np.uint64(partitions)).astype(np.int64)


def partition_of_id(event_id: str, partitions: int) -> int:
    """Partition of the examples topic for an event id: examples and labels meet there, however they were keyed."""
    return zlib.crc32(event_id.encode()) % partitions


def _example_columns(rows: Rows, served: NDArray[np.float32], versions: Sequence[str]) -> dict[str, pa.Array]:
    return _row_columns(rows) | {"served": _scores(served), "version": _strings(versions)}


def _row_columns(rows: Rows) -> dict[str, pa.Array]:
    return {
        "id": _strings(rows.ids),
        "event_ms": _column(rows.event_ms),
        "received_ms": _column(rows.received_ms),
        "partition": _column(rows.partition),
        "offset": _column(rows.offset),
        "late": _column(rows.late.view(np.uint8)),
        "keys": _lists(rows.keys),
        "categories": _lists(rows.categories),
        "values": _lists(rows.values),
        "numbers": _lists(rows.numbers),
        "arm": _column(rows.arm),
        "explored": _column(rows.explored.view(np.uint8)),
        "propensity": _column(rows.propensity),
        "weight": _column(rows.weight),
    }


def _rows(batch: _Columns) -> Rows:
    return Rows(
        _texts(batch, "id"),
        _numpy(batch, "event_ms", np.int64),
        _numpy(batch, "received_ms", np.int64),
        _numpy(batch, "partition", np.int32),
        _numpy(batch, "offset", np.int64),
        _numpy(batch, "late", np.uint8).astype(np.bool_),
        _matrix(batch, "keys", np.int64),
        _matrix(batch, "categories", np.int64).copy(),
        _matrix(batch, "values", np.float64),
        _matrix(batch, "numbers", np.float32).copy(),  # the next stage fills its features in
        batch.schema,
        _numpy(batch, "arm", np.int32),
        _numpy(batch, "explored", np.uint8).astype(np.bool_),
        _numpy(batch, "propensity", np.float32),
        _numpy(batch, "weight", np.float32),
    )


# `pa.array` and `to_numpy` import pandas, to see whether they have something of its: a third of a second and 40 MB.
def _column(array: NDArray[Any]) -> pa.Array:
    """The array [n] as a column without missing values."""
    data = pa.py_buffer(np.ascontiguousarray(array))
    return pa.Array.from_buffers(_TYPES[array.dtype.type], len(array), [None, data])


def _strings(texts: Sequence[str]) -> pa.Array:
    joined, ends = "".join(texts), np.zeros(len(texts) + 1, np.int32)
    sizes = map(len, texts) if joined.isascii() else (len(text.encode()) for text in texts)
    np.cumsum(np.fromiter(sizes, np.int32, len(texts)), out=ends[1:])
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(joined.encode()))


def _lists(matrix: NDArray[Any]) -> pa.Array:
    """A matrix [n, k] as fixed-size lists; k = 0 is written as one column of zeros, since Arrow has no empty width."""
    n, width = matrix.shape
    if width == 0:
        matrix = np.zeros((n, 1), matrix.dtype)
        return pa.FixedSizeListArray.from_arrays(
            _column(matrix.ravel()), type=pa.list_(pa.field("none", pa.from_numpy_dtype(matrix.dtype)), 1)
        )
    return pa.FixedSizeListArray.from_arrays(_column(matrix.ravel()), width)


def _scores(served: NDArray[np.float32]) -> pa.Array:
    """Scores [n], or of several classes [n, K]."""
    return _lists(served) if served.ndim > 1 else _column(served)


def _served(batch: _Columns) -> NDArray[np.float32]:
    several = pa.types.is_fixed_size_list(batch["served"].type)
    return _matrix(batch, "served", np.float32) if several else _numpy(batch, "served", np.float32)


def _matrix(batch: _Columns, name: str, dtype: type[Any]) -> NDArray[Any]:
    column = batch[name]
    if not pa.types.is_fixed_size_list(column.type):
        raise Damaged(f"the column {name} is {column.type}")
    values = column.type.value_field
    if values.type != _TYPES[dtype]:
        raise Damaged(f"the column {name} holds {values.type}")
    width, size = 0 if values.name == "none" else column.type.list_size, column.type.list_size
    flat = _array(column.values, name)  # a batch of its own has no offset
    return flat.reshape(len(column), size)[:, :width]


def _numpy(batch: _Columns, name: str, dtype: type[Any]) -> NDArray[Any]:
    column = batch[name]
    if column.type != _TYPES[dtype]:
        raise Damaged(f"the column {name} is {column.type}")
    return _array(column, name)


def _array(column: pa.Array, name: str) -> NDArray[Any]:
    if column.null_count:
        raise Damaged(f"the column {name} has gaps")
    array: NDArray[Any] = np.from_dlpack(column)
    return array


def _texts(batch: _Columns, name: str) -> list[str]:
    column = batch[name]
    if column.type != pa.utf8():
        raise Damaged(f"the column {name} is {column.type}")
    texts: list[str] = column.to_pylist()
    return texts


_HEADS: dict[
    tuple[str, ...], tuple[pa.Schema, bytes]
] = {}  # (rows' schema, names...) → Arrow's, and as a message
# The other way round: Arrow's schema, the place of each column, and the rows' schema.
_SCHEMAS: dict[bytes, tuple[pa.Schema, dict[str, int], str]] = {}
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an IPC stream
_KEPT = 256  # of each of the two: a stream has a handful


def _write(columns: dict[str, pa.Array], schema: str = "") -> bytes:
    """An IPC stream of one record batch."""
    head, batch = _batch(columns, schema)
    return b"".join((head, batch.serialize(), _END))


def _split(
    columns: dict[str, pa.Array], schema: str, targets: NDArray[np.int64], size: int
) -> Iterator[tuple[int, slice, bytes]]:
    """The runs of equal targets [n] in rows of `size` bytes, each cut to records of `MOST_BYTES`: target, place, IPC
    stream.
    """
    head, batch = _batch(columns, schema)
    edges = np.flatnonzero(np.diff(targets, prepend=-1, append=-1))  # no target is negative
    most = max(1, MOST_BYTES * len(targets) // max(size, 1))
    for start, stop in pairwise(edges.tolist()):
        for first in range(start, stop, most):
            place = slice(first, min(first + most, stop))
            piece = batch.slice(first, place.stop - first)
            yield int(targets[start]), place, b"".join((head, piece.serialize(), _END))


def _batch(columns: dict[str, pa.Array], schema: str) -> tuple[bytes, pa.RecordBatch]:
    """The columns, and the first message of a stream: the schema, which is the same for all rows of a task, and made
    once: making it takes as long as all the rest of a small record.
    """
    known = (schema, *columns)
    head = _HEADS.get(known)
    if head is None:
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        made = pa.schema(fields, {_SCHEMA: schema.encode()} if schema else None)
        head = made, made.serialize().to_pybytes()
        if len(_HEADS) < _KEPT:
            _HEADS[known] = head
    return head[1], pa.RecordBatch.from_arrays(list(columns.values()), schema=head[0])


def _read(data: bytes) -> _Columns:
    """The record batch of an IPC stream; one whose schema was met before is read without reading it again."""
    size = 8 + int.from_bytes(data[4:8], "little")  # of the message with the schema, which has no body
    known = _SCHEMAS.get(data[:size])
    if known is not None:
        return _Columns(pa.ipc.read_record_batch(pa.py_buffer(data).slice(size), known[0]), *known[1:])
    with pa.ipc.open_stream(data) as reader:
        batch = reader.read_next_batch()
    rows = (batch.schema.metadata or {}).get(_SCHEMA, b"").decode()
    known = batch.schema, {name: at for at, name in enumerate(batch.schema.names)}, rows
    if len(_SCHEMAS) < _KEPT:
        _SCHEMAS[data[:size]] = known
    return _Columns(batch, *known[1:])


def _decoded(data: bytes | None, schema: str | None, read: Callable[[_Columns], T]) -> T:
    """What `read` makes of the record batch in `data`; every way in which it can be wrong becomes Damaged."""
    if not data:
        raise Damaged("the record is empty")
    try:
        batch = _read(data)
        batch.batch.validate(full=True)  # offsets that point outside would otherwise be followed
        if schema is not None and batch.schema != schema:
            raise Damaged("the rows were made for another version of the task file")
        return read(batch)
    except Damaged:
        raise
    except (pa.ArrowException, ValueError, KeyError, OSError, StopIteration, MemoryError) as error:
        raise Damaged(f"not the columns of a step: {type(error).__name__} {error}"[:200]) from None
