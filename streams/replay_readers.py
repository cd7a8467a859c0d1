"""Parquet, CSV and JSONL files as batches of columns, in the file's order or in a given one.

A file in time order is streamed. Any other is put in order by `taken`: of Parquet and CSV the columns that
are asked for are held in memory for that (at most `SORT_LIMIT_BYTES`); of JSONL only where each line is.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from infra.errors import UserError

SORT_LIMIT_BYTES = 4 << 30
_BATCH = 8192
_SUFFIXES = {".parquet": "Parquet", ".pq": "Parquet", ".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL"}


@dataclass(frozen=True)
class Batch:
    """Some rows: `columns` is name → Arrow array or list [n].

    `rows` int64 [n] are the rows' numbers in the file, from 0. `raw` has the bytes of each row that could not
    be read, by its place in the batch; its columns hold None.
    """

    rows: NDArray[np.int64]
    columns: dict[str, Any]
    raw: dict[int, bytes]


class Reader(Protocol):
    """A file of rows: a replay asks what is there, looks through it for the order, and reads in that order.

    `left_out` counts the rows that the last pass had to leave out.
    """

    columns: list[str]
    left_out: int

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """All rows in file order, only the columns `names`."""

    def taken(self, names: Sequence[str], order: NDArray[np.int64]) -> Iterator[Batch]:
        """The rows `order` int64 [n], in that order."""


def open_reader(path: Path, numbers: set[str]) -> Reader:
    """The reader for the file's suffix. `numbers` are the columns that are numbers where the file does not
    say.

    Raises UserError for a file that is missing or of another kind.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((_SUFFIXES[suffix] for suffix in reversed(suffixes) if suffix in _SUFFIXES), None)
    if not path.is_file():
        raise UserError(f"there is no file {path}", "give the path of a Parquet, CSV or JSONL file")
    if kind is None:
        raise UserError(
            f"{path.name} does not say what it is",
            f"rename it so that it ends in one of {', '.join(_SUFFIXES)}",
        )
    with readable(path):
        if kind == "JSONL":
            return _Lines(path)
        return _Parquet(path) if kind == "Parquet" else _Csv(path, numbers)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong while reading `path` into UserErrors."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path.name} cannot be read: {reason}", "give a file that is whole and of the kind its name says"
        ) from error


class _Arrow:
    """What Parquet and CSV have in common: record batches, and a table in memory for another order."""

    columns: list[str]
    left_out = 0

    def record_batches(self, names: Sequence[str]) -> Iterator[Any]:
        """Arrow record batches of any size with the columns `names`."""
        raise NotImplementedError

    def column(self, name: str, found: Any) -> Any:
        """A column as an Arrow array or a list, in types that JSON has."""
        return _plain(found)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        first = 0
        for batch in self.record_batches(names):
            for start in range(0, len(batch), _BATCH):
                part = batch.slice(start, _BATCH)
                yield self._batch(np.arange(first, first + len(part)), part)
                first += len(part)

    def taken(self, names: Sequence[str], order: NDArray[np.int64]) -> Iterator[Batch]:
        table = pa.Table.from_batches(_within_limit(self.record_batches(names)))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            yield self._batch(rows, table.take(pa.array(rows)).combine_chunks())

    def _batch(self, rows: NDArray[np.int64], found: Any) -> Batch:
        columns = {name: self.column(name, found.column(name)) for name in found.schema.names}
        return Batch(rows, columns, {})


def _within_limit(batches: Iterator[Any]) -> Iterator[Any]:
    size = 0
    for batch in batches:
        size += batch.nbytes
        if size > SORT_LIMIT_BYTES:
            raise UserError(
                f"the file is not in time order and takes more than {SORT_LIMIT_BYTES >> 30} GiB to sort",
                "sort it by its time column first, or cut it into parts",
            )
        yield batch


def _plain(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)  # JSON has no NaN: the value is missing
    return column


class _Parquet(_Arrow):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.columns = list(pa.parquet.read_schema(path).names)

    def record_batches(self, names: Sequence[str]) -> Iterator[Any]:
        with pa.parquet.ParquetFile(self._path) as file:
            yield from file.iter_batches(_BATCH, columns=list(names))


class _Csv(_Arrow):
    """CSV, read as text, since a guess from the first rows would fail on a later one. Then numbers are made.

    A row with too few or too many cells is left out. A cell that should be a number and is not stays text,
    for serve to refuse that one event.
    """

    def __init__(self, path: Path, numbers: set[str]) -> None:
        self._path, self._numbers = path, numbers
        with self._open(pa.csv.ConvertOptions()) as file:
            self.columns = list(file.schema.names)

    def record_batches(self, names: Sequence[str]) -> Iterator[Any]:
        self.left_out = 0
        as_text = pa.csv.ConvertOptions(
            include_columns=list(names),
            column_types=dict.fromkeys(self.columns, pa.string()),
            null_values=[""],  # by default "NA" and others would be nulls too
            strings_can_be_null=True,
        )
        with self._open(as_text) as file:
            yield from file

    def column(self, name: str, found: Any) -> Any:
        if name not in self._numbers:
            return found
        try:
            return _plain(found.cast(pa.float64()))
        except pa.ArrowInvalid:
            return [_number(cell) for cell in found.to_pylist()]

    def _open(self, convert: Any) -> Any:
        return pa.csv.open_csv(
            self._path,
            read_options=pa.csv.ReadOptions(block_size=16 << 20),  # no row may be longer
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=self._leave_out),
            convert_options=convert,
        )

    def _leave_out(self, row: Any) -> str:
        self.left_out += 1
        return "skip"


def _number(cell: str | None) -> float | str | None:
    if cell is None:
        return None
    try:
        value = float(cell)
    except ValueError:
        return cell
    return None if math.isnan(value) else value


class _Lines:
    """JSONL: one JSON object a line. Empty lines are no rows; a line that is no object is a row of `raw`."""

    left_out = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        seen: dict[str, None] = {}
        for _, rows in self._decoded():  # all of them: a field may appear late
            for row in rows:
                if row and not seen.keys() >= row.keys():
                    seen.update(dict.fromkeys(row))
        self.columns = list(seen)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        first = 0
        for lines, rows in self._decoded():
            yield _line_batch(np.arange(first, first + len(lines)), lines, rows, names)
            first += len(lines)

    def taken(self, names: Sequence[str], order: NDArray[np.int64]) -> Iterator[Batch]:
        begins, ends = self._places()
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for start in range(0, len(order), _BATCH):
                numbers = order[start : start + _BATCH]
                lines = [content[a:b].strip() for a, b in zip(begins[numbers], ends[numbers], strict=True)]
                yield _line_batch(numbers, lines, [_decode(line) for line in lines], names)

    def _decoded(self) -> Iterator[tuple[list[bytes], list[dict[str, Any] | None]]]:
        lines: list[bytes] = []
        with self._path.open("rb") as file:
            for raw in file:
                if line := raw.strip():
                    lines.append(line)
                    if len(lines) == _BATCH:
                        yield lines, [_decode(line) for line in lines]
                        lines = []
        if lines:
            yield lines, [_decode(line) for line in lines]

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each row begins and ends in the file, in bytes: int64 [n] each."""
        begins, ends, at = [], [], 0
        with self._path.open("rb") as file:
            for raw in file:
                if raw.strip():
                    begins.append(at)
                    ends.append(at + len(raw))
                at += len(raw)
        return np.array(begins, np.int64), np.array(ends, np.int64)


_decoder = msgspec.json.Decoder()


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        row = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _line_batch(
    numbers: NDArray[np.int64], lines: list[bytes], rows: list[dict[str, Any] | None], names: Sequence[str]
) -> Batch:
    raw = {place: lines[place] for place, row in enumerate(rows) if row is None}
    return Batch(numbers, {name: [row.get(name) if row else None for row in rows] for name in names}, raw)
