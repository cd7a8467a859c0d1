"""An update that is larger than one record travels as several, one after the other: its parts.

The meta comes with the last part, which the learner sends when all others are safe. So a log that has the end of an
update has had all of it, and whoever only wants the metas looks at the ends. What a learner left that died in between
never ends; sent again, the update begins anew with its first part.

Parts are small: unpacking a record holds up what a worker serves.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from infra.kafka import Record
from streams.task_size import LARGEST_MODEL
from streams.topics import META, PART

log = logging.getLogger(__name__)

PART_BYTES = 1 << 20

Meta = dict[str, Any]


class Part(msgspec.Struct, frozen=True):
    """Part `number` (from 1) of `count`, of an update of `size` bytes with this SHA-256."""

    number: int
    count: int
    size: int
    sha256: str


def split(
    meta: Meta, payload: bytes, most: int = PART_BYTES
) -> Iterator[tuple[list[tuple[str, bytes]], bytes | memoryview]]:
    """The records of an update, headers and value, each value of at most `most` bytes: one without parts if it fits."""
    end = (META, json.dumps(meta).encode())
    if len(payload) <= most:
        yield [end], payload
        return
    count = -(-len(payload) // most)
    for number in range(1, count + 1):
        part = (PART, msgspec.json.encode(Part(number, count, len(payload), meta["sha256"])))
        value = memoryview(payload)[(number - 1) * most : number * most]
        yield [part, end] if number == count else [part], value


def ended(record: Record) -> tuple[Meta, int] | None:
    """The meta of the update that ends with this record, and its bytes; None for one in the midst of an update.

    Raises KeyError or ValueError for a record that belongs to no update.
    """
    headers, size = dict(record.headers), len(record.value or b"")
    if PART in headers:
        part = _part(headers[PART])
        if part.number < part.count:
            return None
        size = part.size
    return json.loads(headers[META]), size


class Gathering:
    """Puts updates together, of the records of a log in their order. It holds on to one update at most."""

    def __init__(self) -> None:
        self._part: Part | None = None  # the newest one
        self._data = bytearray()

    def add(self, record: Record) -> tuple[Meta, bytes | bytearray] | None:
        """The update that ends with this record; None in the midst of one, or at the end of one that lacks a part.

        A part that does not follow the one before, as when reading began in the midst, is passed over. Raises KeyError
        or ValueError for a record that belongs to no update.
        """
        headers, value = dict(record.headers), record.value or b""
        if PART not in headers:
            self._drop()
            return json.loads(headers[META]), value
        part = _part(headers[PART])
        if part.number == 1:
            self._drop()
        elif self._part is None or part != msgspec.structs.replace(self._part, number=self._part.number + 1):
            if part.number == part.count:
                log.info(
                    "an update of %d parts ends at offset %d and did not begin", part.count, record.offset
                )
            return None
        if len(self._data) + len(value) > min(part.size, LARGEST_MODEL):
            self._drop()
            raise ValueError(
                f"parts of an update of {part.size} bytes have more, or more than a model can have"
            )
        self._part = part
        self._data += value
        if part.number < part.count:
            return None
        meta, data = json.loads(headers[META]), self._data
        self._drop()
        return meta, data

    def _drop(self) -> None:
        self._part, self._data = None, bytearray()


def gathered(records: Iterable[Record]) -> Iterator[tuple[Meta, bytes | bytearray]]:
    """The updates of a log that are whole in it."""
    gathering = Gathering()
    for record in records:
        if (update := gathering.add(record)) is not None:
            yield update


def _part(header: bytes) -> Part:
    """Raises ValueError."""
    try:
        part = msgspec.json.decode(header, type=Part)
    except msgspec.MsgspecError as error:
        raise ValueError(f"its part is not readable: {error}") from error
    return part
