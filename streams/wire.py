"""How rows travel between the steps inside Kafka: Arrow IPC, one record batch a Kafka record.

A row is an event after decoding and pseudonymisation, with the features that were computed so far. Column groups are
fixed-size lists, so that a message of ten rows costs a handful of Arrow columns and not one for each feature.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learners.batch import Batch
from streams.task import Task

KIND = "driftline.kind"
EXAMPLES, LABELS, LABELLED, FEEDBACK = b"examples", b"labels", b"labelled", b"feedback"


@dataclass(frozen=True)
class Rows:
    """`n` events of one task. `E` entities, `C` model categories, `V` number fields, `N` model numbers.

    Shapes: `ids` n strings; `event_ms`, `received_ms` (Kafka's timestamp of the event), `offset` int64 [n]; `partition`
    int32 [n] (with `offset`: where the event stands in the events topic); `late` bool [n]; `keys` int64 [n, E];
    `categories` int64 [n, C]; `values` float64 [n, V]; `numbers` float32 [n, N], NaN where not yet known.
    """

    ids: list[str]
    event_ms: NDArray[np.int64]
    received_ms: NDArray[np.int64]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    late: NDArray[np.bool_]
    keys: NDArray[np.int64]
    categories: NDArray[np.int64]
    values: NDArray[np.float64]
    numbers: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: NDArray[Any]) -> "Rows":
        """The rows of a boolean mask [n] or an index array, in that order (a copy)."""
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        arrays = {name: getattr(self, name)[index] for name in _ARRAYS}
        return Rows([self.ids[i] for i in index.tolist()], **arrays)

    def with_late(self, late: NDArray[np.bool_]) -> "Rows":
        """The same rows with other late marks."""
        return replace(self, late=late)

    @staticmethod
    def concat(parts: Sequence["Rows"]) -> "Rows":
        """All rows in order; at least one part is needed."""
        if len(parts) == 1:
            return parts[0]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return Rows([i for part in parts for i in part.ids], **arrays)

    @staticmethod
    def empty(task: Task) -> "Rows":
        """No rows, with the task's column counts."""
        return Rows(
            [],
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.int64),
            np.zeros(0, np.bool_),
            np.zeros((0, len(task.entities)), np.int64),
            np.zeros((0, len(task.categories)), np.int64),
            np.zeros((0, len(task.number_fields)), np.float64),
            np.zeros((0, len(task.numbers)), np.float32),
        )


_ARRAYS = (
    "event_ms",
    "received_ms",
    "partition",
    "offset",
    "late",
    "keys",
    "categories",
    "values",
    "numbers",
)


@dataclass(frozen=True)
class Labels:
    """`n` labels by event id. `known_ms` int64 [n] is -1 where the label's record does not say when it became known."""

    ids: list[str]
    label: NDArray[np.float32]
    known_ms: NDArray[np.int64]


@dataclass(frozen=True)
class Feedback:
    """`n` labels on their way to the label rates of one entity: its key, when the label was known, the label."""

    keys: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    label: NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """Rows with their label: the learner's only input. `default` marks labels that are the task's missing value.

    Shapes: `label` float32 [n] (0 or 1), `known_ms` int64 [n], `default` bool [n], `served` float32 [n] (the score that
    was served), `version` n strings.
    """

    rows: Rows
    served: NDArray[np.float32]
    version: list[str]
    label: NDArray[np.float32]
    known_ms: NDArray[np.int64]
    default: NDArray[np.bool_]

    def batch(self) -> Batch:
        """The learner's view of the same rows."""
        rows = self.rows
        return Batch(
            rows.ids,
            rows.event_ms,
            self.known_ms,
            rows.numbers,
            rows.categories,
            self.served,
            self.label,
        )


def encode_rows(rows: Rows) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(_row_columns(rows))


def decode_rows(data: bytes) -> Rows:
    """The inverse of `encode_rows`."""
    return _rows(_read(data))


def encode_examples(rows: Rows, served: NDArray[np.float32], version: str) -> bytes:
    """Rows exactly as served, with their scores [n] and the version that made all of them."""
    return _write(
        {**_row_columns(rows), "served": pa.array(served), "version": _constant(version, len(rows))}
    )


def decode_examples(data: bytes) -> tuple[Rows, NDArray[np.float32], list[str]]:
    """The inverse of `encode_examples`: rows, scores, versions."""
    batch = _read(data)
    return _rows(batch), _numpy(batch, "served"), batch.column("version").to_pylist()


def encode_labelled(labelled: Labelled) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(
        {
            **_row_columns(labelled.rows),
            "served": pa.array(labelled.served),
            "version": pa.array(labelled.version, pa.utf8()),
            "label": pa.array(labelled.label),
            "known_ms": pa.array(labelled.known_ms),
            "default": pa.array(labelled.default.view(np.uint8)),
        }
    )


def decode_labelled(data: bytes) -> Labelled:
    """The inverse of `encode_labelled`."""
    batch = _read(data)
    return Labelled(
        _rows(batch),
        _numpy(batch, "served"),
        batch.column("version").to_pylist(),
        _numpy(batch, "label"),
        _numpy(batch, "known_ms"),
        _numpy(batch, "default").astype(np.bool_),
    )


def encode_labels(labels: Labels) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(
        {
            "id": pa.array(labels.ids, pa.utf8()),
            "label": pa.array(labels.label),
            "known_ms": pa.array(labels.known_ms),
        }
    )


def decode_labels(data: bytes) -> Labels:
    """The inverse of `encode_labels`."""
    batch = _read(data)
    return Labels(batch.column("id").to_pylist(), _numpy(batch, "label"), _numpy(batch, "known_ms"))


def encode_feedback(feedback: Feedback) -> bytes:
    """Arrow IPC stream of one record batch."""
    return _write(
        {
            "key": pa.array(feedback.keys),
            "known_ms": pa.array(feedback.known_ms),
            "label": pa.array(feedback.label),
        }
    )


def decode_feedback(data: bytes) -> Feedback:
    """The inverse of `encode_feedback`."""
    batch = _read(data)
    return Feedback(_numpy(batch, "key"), _numpy(batch, "known_ms"), _numpy(batch, "label"))


def partition_of(keys: NDArray[np.int64], partitions: int) -> NDArray[np.int64]:
    """Partition of each entity key [n]; keys are already hashes, so their remainder spreads evenly."""
    return (keys.astype(np.uint64) % np.uint64(partitions)).astype(np.int64)


def partition_of_id(event_id: str, partitions: int) -> int:
    """Partition of the examples topic for an event id: examples and labels meet there, however they were keyed."""
    return zlib.crc32(event_id.encode()) % partitions


def _row_columns(rows: Rows) -> dict[str, pa.Array]:
    return {
        "id": pa.array(rows.ids, pa.utf8()),
        "event_ms": pa.array(rows.event_ms),
        "received_ms": pa.array(rows.received_ms),
        "partition": pa.array(rows.partition),
        "offset": pa.array(rows.offset),
        "late": pa.array(rows.late.view(np.uint8)),
        "keys": _lists(rows.keys),
        "categories": _lists(rows.categories),
        "values": _lists(rows.values),
        "numbers": _lists(rows.numbers),
    }


def _rows(batch: pa.RecordBatch) -> Rows:
    n = batch.num_rows
    return Rows(
        batch.column("id").to_pylist(),
        _numpy(batch, "event_ms"),
        _numpy(batch, "received_ms"),
        _numpy(batch, "partition"),
        _numpy(batch, "offset"),
        _numpy(batch, "late").astype(np.bool_),
        _matrix(batch, "keys", n),
        _matrix(batch, "categories", n),
        _matrix(batch, "values", n),
        _matrix(batch, "numbers", n).copy(),  # the next stage fills its features in
    )


def _lists(matrix: NDArray[Any]) -> pa.Array:
    """A matrix [n, k] as fixed-size lists; k = 0 is written as one column of zeros, since Arrow has no empty width."""
    n, width = matrix.shape
    if width == 0:
        matrix, width = np.zeros((n, 1), matrix.dtype), 1
        return pa.FixedSizeListArray.from_arrays(
            pa.array(matrix.ravel()), type=pa.list_(pa.field("none", pa.from_numpy_dtype(matrix.dtype)), 1)
        )
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).ravel()), width)


def _matrix(batch: pa.RecordBatch, name: str, n: int) -> NDArray[Any]:
    column = batch.column(name)
    flat = column.flatten().to_numpy(zero_copy_only=True)
    width = 0 if column.type.value_field.name == "none" else column.type.list_size
    return flat.reshape(n, -1)[:, :width] if n else np.zeros((0, width), flat.dtype)


def _numpy(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    array: NDArray[Any] = batch.column(name).to_numpy(zero_copy_only=True)
    return array


def _constant(text: str, n: int) -> pa.Array:
    return pa.array([text] * n, pa.utf8())


def _write(columns: dict[str, pa.Array]) -> bytes:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _read(data: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
