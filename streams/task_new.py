"""Where `driftline task new` gets its sample and answers; streams/propose.py makes the task file of them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from infra.errors import UserError
from streams.draft import Answers
from streams.propose import propose, unclear

ROWS = 20_000
"""Rows of a file that are looked at, from its beginning."""

_KINDS = {".parquet": "Parquet", ".pq": "Parquet", ".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL"}
_LONGEST_LINE = 1 << 20
_QUESTIONS = (
    ("name", "A name for the task (a-z, 0-9, -)"),
    ("id", "Field with the event's id, different in every event"),
    ("time", "Field with the event's time"),
    ("time_format", "Its format: iso8601, epoch_ms, epoch_s or a strptime pattern"),
    ("key", "Field that says whose event it is, such as user_id"),
    ("entities", "Other fields to keep features for, such as item_id, separated by commas"),
    ("numbers", "Fields with numbers for the model, separated by commas"),
    ("categories", "Fields with categories for the model, separated by commas"),
    ("label", "Field of the label record with the truth, 0 or 1"),
    ("delay", "How long after the event is the label known (30s, 10m, 24h, 7d)"),
    ("missing", "What does no label mean (0, 1 or drop)"),
)
_LISTS = ("entities", "numbers", "categories")
_USUAL = {
    "name": "my-stream", "id": "event_id", "time": "timestamp", "time_format": "iso8601", "key": "user_id",
    "entities": "", "numbers": "", "categories": "", "label": "label", "delay": "1d", "missing": "0",
}  # fmt: skip


def propose_task(sample: Path | None, ask: Callable[..., Any]) -> str:
    """A task file from a sample, or from answers where there is none.

    Args:
        sample: a Parquet, CSV or JSONL file whose name ends so, or None.
        ask: called with a question and `default=`; returns the answer. With a sample only the time
            and the key are asked for, and only where no column looks like one.

    Raises:
        UserError: the file cannot be read, or nothing in it can be the time or the key of an event.
    """
    if sample is not None:
        rows = read_sample(sample)
        questions = [(name, text) for name, text in _QUESTIONS if name in unclear(rows)]
        usual = dict.fromkeys(_USUAL, rows.column_names[0] if rows.column_names else "")
        return propose(rows, _ask(questions, usual, ask), sample.name)
    return propose(None, _ask(_QUESTIONS, _USUAL, ask))


def _ask(questions: Sequence[tuple[str, str]], usual: Mapping[str, str], ask: Callable[..., Any]) -> Answers:
    said: dict[str, Any] = {}
    for name, question in questions:
        answer = str(ask(question, default=usual[name])).strip()
        said[name] = tuple(filter(None, map(str.strip, answer.split(",")))) if name in _LISTS else answer
    return Answers(**said)


def read_sample(path: Path, rows: int = ROWS) -> pa.Table:
    """The first `rows` rows of a Parquet, CSV or JSONL file. Raises UserError if it cannot be read."""
    kind = _KINDS.get(path.suffix.lower())
    if not path.is_file():
        raise UserError(f"there is no file {path}", "give the path of a Parquet, CSV or JSONL file")
    if kind is None:
        raise UserError(
            f"{path.name} does not say what it is", f"rename it so that it ends in one of {', '.join(_KINDS)}"
        )
    read = {"Parquet": _parquet, "CSV": _csv, "JSONL": _jsonl}[kind]
    try:
        return read(path, rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"{path.name} cannot be read as {kind}: {first}", "check the file, or its ending"
        ) from None


def _parquet(path: Path, rows: int) -> pa.Table:
    with pyarrow.parquet.ParquetFile(path) as file:
        batches = list(islice(file.iter_batches(batch_size=rows), 1))
        return pa.Table.from_batches(batches, schema=file.schema_arrow)


def _csv(path: Path, rows: int) -> pa.Table:
    skip = pyarrow.csv.ParseOptions(invalid_row_handler=lambda row: "skip")
    with pyarrow.csv.open_csv(path, parse_options=skip) as file:
        kept, batches = 0, []
        while kept < rows and (batch := next(iter(file), None)) is not None:
            batches.append(batch)
            kept += batch.num_rows
        return pa.Table.from_batches(batches, schema=file.schema).slice(0, rows)


def _jsonl(path: Path, rows: int) -> pa.Table:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    found: list[dict[str, Any]] = []
    with path.open("rb") as file:
        while len(found) < rows and (line := file.readline(_LONGEST_LINE)):
            try:
                found.append(decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # a broken line is a dead letter later; here it says nothing
    names = dict.fromkeys(name for row in found for name in row)
    return pa.table({name: _array([row.get(name) for row in found]) for name in names})


def _array(values: list[Any]) -> pa.Array:
    """One column; where types are mixed, all values as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])
