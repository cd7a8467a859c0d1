"""The training ledger: before a step is taken, a line says of what. Append-only, chained by hashes, durable.

Where it lives: the newest lines in a local file, because an object store can only replace whole objects and a local
append costs one fdatasync; `seal`, called before each checkpoint, copies them into the store, where they are as safe
as the checkpoint. So what a checkpoint needs is never only on one disk, and a lost disk costs no more than the lines
since then: nothing is learned twice, but those steps may be cut otherwise when they are taken again.

A file is a segment: a header (`first` entry, the chain that it `follows`) and one JSON line an entry that ends in its
chain, the hash of the chain before it and of the line. A last line that is not whole was being written when the process
died: its steps were not taken, and it goes. Anything else that does not fit raises BrokenLedger.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from infra.blobs import sync_folder
from infra.errors import UserError
from learners.checkpoint import Store
from learners.entries import Entry, Line

log = logging.getLogger(__name__)

SEGMENT_BYTES = 1 << 20
NO_CHAIN = "0" * 32
_TAIL = len(',"chain":""}') + len(NO_CHAIN)  # what `_line` adds to the body of a line

_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Line)


class BrokenLedger(Exception):
    """Lines that were changed, that are missing, or that belong to another history; the message says which."""


@dataclass(frozen=True)
class Segment:
    """The whole lines of one file. `size` is how many bytes they take; what is beyond is a torn line."""

    first: int
    follows: str
    lines: list[Line]
    size: int

    @property
    def n(self) -> int:
        """Number of its last entry; without any, of the one before."""
        return self.first + len(self.lines) - 1

    @property
    def chain(self) -> str:
        """Chain of its last entry; without any, the one it follows."""
        return self.lines[-1].chain if self.lines else self.follows

    def has(self, n: int, chain: str) -> bool:
        """Whether entry `n` with that chain is in this segment, or the one that it follows."""
        if n == self.first - 1:
            return self.follows == chain
        return self.first <= n <= self.n and self.lines[n - self.first].chain == chain


def read_segment(data: bytes, name: str) -> Segment | None:
    """The segment in a file's bytes; None if not even its header is whole. Raises BrokenLedger."""
    end = data.find(b"\n") + 1
    if not end:
        return None
    try:
        header = json.loads(data[:end])
        first, follows = int(header["first"]), str(header["follows"])
    except (ValueError, TypeError, KeyError):
        raise BrokenLedger(f"{name} does not begin as a ledger does") from None
    lines, chain = list[Line](), follows
    while end < len(data):
        after = data.find(b"\n", end) + 1
        line = _checked(data[end : after - 1], chain, first + len(lines)) if after else None
        if line is None:
            if after and after < len(data):
                raise BrokenLedger(f"{name}: entry {first + len(lines)} is not what was written")
            break
        lines.append(line)
        chain, end = line.chain, after
    return Segment(first, follows, lines, end)


def _line(line: Line, chain: str) -> tuple[bytes, str]:
    """The bytes of a line that follows `chain`, and its own chain."""
    body = _encoder.encode({"n": line.n, "at_ms": line.at_ms, "entry": line.entry})
    own = _hash(chain, body)
    return b'%s,"chain":"%s"}\n' % (body[:-1], own.encode()), own


def _checked(text: bytes, chain: str, n: int) -> Line | None:
    """The line, or None if it is not entry `n` after `chain`."""
    try:
        line = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return line if line.n == n and line.chain == _hash(chain, text[:-_TAIL] + b"}") else None


def _hash(chain: str, body: bytes) -> str:
    return hashlib.blake2b(chain.encode() + body, digest_size=16).hexdigest()


def read_lines(
    path: Path, store: Store, prefix: str, after: int | None = None, chain: str | None = None
) -> Iterator[Line]:
    """The entries after number `after`, oldest first; by default all that were not pruned. Others may write meanwhile.

    With `chain`, entry `after` must have it. Raises BrokenLedger when lines were changed or are missing.
    """
    local = read_segment(path.read_bytes(), path.name) if path.exists() else None
    end: tuple[int, str] | None = None
    for segment in _segments(store, prefix, local, after or 0):
        if end is None and after is not None:
            if not segment.first - 1 <= after <= segment.n:
                raise BrokenLedger(f"entry {after + 1} is not there: it has {segment.first} to {segment.n}")
            if chain is not None and not segment.has(after, chain):
                raise BrokenLedger(f"entry {after} belongs to another history")
        if end is not None and (segment.first, segment.follows) != (end[0] + 1, end[1]):
            raise BrokenLedger(f"what follows entry {end[0]} is missing, or belongs to another history")
        yield from (line for line in segment.lines if line.n > (after or 0))
        end = segment.n, segment.chain
    if end is None and after:
        raise BrokenLedger(f"entry {after} is not there: the ledger is empty")


def _segments(store: Store, prefix: str, local: Segment | None, after: int) -> Iterator[Segment]:
    """The segments with the entries after number `after`: those in the store, and last the local one."""
    firsts = [first for first in _firsts(store, prefix) if local is None or first < local.first]
    nexts = [*firsts[1:], *([] if local is None else [local.first])]
    for i, first in enumerate(firsts):
        if i >= len(nexts) or nexts[i] > after + 1:
            yield _stored(store, prefix, first)
    if local is not None:
        yield local


def _firsts(store: Store, prefix: str) -> list[int]:
    names = [name[len(prefix) + 1 :].removesuffix(".jsonl") for name in store.list(f"{prefix}/")]
    return sorted(int(name) for name in names if name.isdecimal())


def _name(prefix: str, first: int) -> str:
    return f"{prefix}/{first:012d}.jsonl"


def _stored(store: Store, prefix: str, first: int) -> Segment:
    name = _name(prefix, first)
    data = store.get(name)
    segment = read_segment(data, name)
    if segment is None or segment.first != first or segment.size != len(data):
        raise BrokenLedger(f"{name} is not whole")
    return segment


class Ledger:
    """The learner's end: `n` and `chain` are those of the last entry. One learner of a task at a time, by a lock.

    A local file that does not continue what is in the store (of a machine that was away, or changed by hand) is set
    aside beside itself, and the ledger goes on from the store.
    """

    def __init__(self, path: Path, store: Store, prefix: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._path, self._store, self._prefix, self._most = path, store, prefix, segment_bytes
        self.n, self.chain = 0, NO_CHAIN
        self._first, self._size, self._sealed = 1, 0, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(path.parent)
            self._open()
        except BlockingIOError:
            os.close(self._file)
            raise UserError(f"another learner writes {path}", "stop it first; there is one a task") from None
        except BaseException:
            os.close(self._file)
            raise

    def append(self, entry: Entry, at_ms: int) -> None:
        """Write an entry; it is on the disk when this returns. OSError when the disk refuses: nothing is written."""
        if not self._size:  # the disk was full when the file began
            self._write_header()
        data, chain = _line(Line(self.n + 1, at_ms, entry), self.chain)
        self._write(data)
        self.n, self.chain = self.n + 1, chain

    def lines(self, after: int, chain: str) -> Iterator[Line]:
        """See `read_lines`."""
        return read_lines(self._path, self._store, self._prefix, after, chain)

    def seal(self) -> None:
        """Copy what the store does not have into it, and begin a new file when this one is long."""
        if self.n > self._sealed:
            self._store.put(_name(self._prefix, self._first), self._path.read_bytes()[: self._size])
            self._sealed = self.n
        if self._size > self._most:
            self._begin(self.n, self.chain)

    def restart(self, n: int, chain: str) -> None:
        """Go on after entry `n` of a checkpoint that the ledger does not know. Later segments are set aside."""
        self._set_aside()
        for first in _firsts(self._store, self._prefix):
            if first > n:
                name = _name(self._prefix, first)
                self._store.put(f"{self._prefix}/aside-{first:012d}.jsonl", self._store.get(name))
                self._store.delete(name)
        self._begin(n, chain)

    def prune(self, n: int) -> None:
        """Delete segments in the store that have no entry after number `n`."""
        firsts = [first for first in _firsts(self._store, self._prefix) if first < self._first]
        for first, following in pairwise([*firsts, self._first]):
            if following <= n + 1:
                self._store.delete(_name(self._prefix, first))

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._file)

    def _open(self) -> None:
        """Take over the local file if it continues the store, without its torn line."""
        try:
            local = read_segment(self._path.read_bytes(), self._path.name)
        except BrokenLedger as error:
            log.error("the training ledger was changed: %s", error)
            local = None
        end = self._end_of_store()
        if local is None or (end is not None and not local.has(*end)):
            self._set_aside()
            self._begin(*(end or (0, NO_CHAIN)))
            return
        os.ftruncate(self._file, local.size)
        self._first, self._size, self.n, self.chain = local.first, local.size, local.n, local.chain
        self._sealed = local.first - 1 if end is None else end[0]

    def _end_of_store(self) -> tuple[int, str] | None:
        """Number and chain of the last entry in the store, None if there is none that can be read."""
        firsts = _firsts(self._store, self._prefix)
        try:
            last = _stored(self._store, self._prefix, firsts[-1]) if firsts else None
        except BrokenLedger as error:
            log.error("the training ledger in the store was changed: %s", error)
            last = None
        return None if last is None else (last.n, last.chain)

    def _set_aside(self) -> None:
        if data := self._path.read_bytes():
            aside = self._path.with_name(f"{self._path.name}.{_hash('', data)[:8]}")
            log.warning("a training ledger that does not go on from the store is set aside as %s", aside)
            aside.write_bytes(data)

    def _begin(self, n: int, chain: str) -> None:
        """Make the local file an empty segment after entry `n`. What it had is in the store, or set aside."""
        os.ftruncate(self._file, 0)
        self._first, self._size, self._sealed, self.n, self.chain = n + 1, 0, n, n, chain
        self._write_header()

    def _write_header(self) -> None:
        self._write(_encoder.encode({"first": self._first, "follows": self.chain}) + b"\n")

    def _write(self, data: bytes) -> None:
        """All of it or nothing, durably."""
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
