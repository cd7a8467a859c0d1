"""Groups of files that are valid together, or not at all: a learner's state with its position in the log.

`save` writes the files and, last, a manifest that names each with its size and SHA-256. A checkpoint without
an intact manifest, or with a file that is missing or different, does not exist for `load_newest`. Files are
safetensors or JSON; nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

MANIFEST = "manifest.json"


class Store(Protocol):
    """Named byte strings; four methods, because that is what every file system and object store can do.

    `put` is all or nothing for one name, durable when it returns. `get` raises KeyError for an unknown name.
    `list` gives the names that start with `prefix`, sorted. `delete` of an unknown name does nothing.
    `infra.blobs.Blobs` and `DictStore` are stores. One process at a time writes under a prefix.
    """

    def put(self, name: str, data: bytes, /) -> None:
        """Stores `data` under `name`, replacing what was there."""
        ...

    def get(self, name: str, /) -> bytes:
        """The bytes under `name`; raises KeyError."""
        ...

    def list(self, prefix: str, /) -> list[str]:
        """The names that start with `prefix`, sorted."""
        ...

    def delete(self, name: str, /) -> None:
        """Removes `name` if it is there."""
        ...


class DictStore:
    """A store in memory: for tests, and for runs that keep nothing."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, name: str, data: bytes, /) -> None:
        """See `Store`."""
        self.blobs[name] = bytes(data)

    def get(self, name: str, /) -> bytes:
        """See `Store`."""
        return self.blobs[name]

    def list(self, prefix: str, /) -> list[str]:
        """See `Store`."""
        return sorted(name for name in self.blobs if name.startswith(prefix))

    def delete(self, name: str, /) -> None:
        """See `Store`."""
        self.blobs.pop(name, None)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. `step` orders those of one prefix; `meta` is what was given to `save`."""

    step: int
    files: dict[str, bytes]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What `load_newest` found: the newest complete checkpoint or None, and why newer ones were skipped."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


def save(store: Store, prefix: str, step: int, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> str:
    """Writes checkpoint `step` and returns its folder in the store.

    The order is the promise:

    1. an older manifest of the same step goes, so that a half-rewritten checkpoint is none
    2. the files
    3. the manifest: from here on the checkpoint exists
    """
    if not 0 <= step < 10**12:
        raise ValueError(f"checkpoint step {step} is not in 0 … 999999999999")
    if MANIFEST in files:
        raise ValueError(f"a file of a checkpoint cannot be named {MANIFEST}")
    folder = f"{prefix}/{step:012d}"
    body = {
        "step": step,
        "files": {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()},
        "meta": dict(meta),
    }
    manifest = {"body": body, "sha256": _sha256(_canonical(body))}
    store.delete(f"{folder}/{MANIFEST}")  # 1
    for name, data in files.items():  # 2
        store.put(f"{folder}/{name}", data)
    store.put(f"{folder}/{MANIFEST}", _canonical(manifest))  # 3
    return folder


def load_newest(store: Store, prefix: str, *, at_most: int | None = None) -> Found:
    """The newest complete checkpoint (of step `at_most` or before, if given); damaged ones are skipped."""
    skipped: list[str] = []
    for step in reversed(_steps(store, prefix)):
        if at_most is not None and step > at_most:
            continue
        try:
            return Found(load(store, prefix, step), tuple(skipped))
        except IncompleteCheckpoint as error:
            skipped.append(str(error))
    return Found(None, tuple(skipped))


class IncompleteCheckpoint(Exception):
    """The checkpoint was never finished, or is damaged; the message says what is wrong with it."""


def load(store: Store, prefix: str, step: int) -> Checkpoint:
    """The checkpoint of that step, every byte verified; raises IncompleteCheckpoint."""
    folder = f"{prefix}/{step:012d}"
    body = _manifest(store, folder)
    if body["step"] != step:
        raise IncompleteCheckpoint(f"{folder}: its manifest is that of step {body['step']}")
    files = {}
    for name, wanted in body["files"].items():
        try:
            data = store.get(f"{folder}/{name}")
        except KeyError:
            raise IncompleteCheckpoint(f"{folder}: {name} is missing") from None
        if len(data) != wanted["bytes"] or _sha256(data) != wanted["sha256"]:
            raise IncompleteCheckpoint(f"{folder}: {name} is not what was saved ({len(data)} bytes)")
        files[name] = data
    return Checkpoint(step, files, body["meta"])


def metas(store: Store, prefix: str) -> dict[int, dict[str, Any]]:
    """Step → `meta` of every finished checkpoint, oldest first; its files are not looked at."""
    found = {}
    for step in _steps(store, prefix):
        with suppress(IncompleteCheckpoint):
            found[step] = _manifest(store, f"{prefix}/{step:012d}")["meta"]
    return found


def prune(store: Store, prefix: str, keep: int, also: Collection[int] = ()) -> list[int]:
    """Deletes all but the newest `keep` finished checkpoints and `also`, and the unfinished ones before the newest.

    Returns the deleted steps. `keep` of 2 or more survives a damaged file in the newest. A checkpoint goes
    manifest first, so that a prune that dies leaves an unfinished one, which the next prune removes.
    """
    if keep < 1:
        raise ValueError("prune would delete every checkpoint: keep at least 1")
    steps = _steps(store, prefix)
    finished = [step for step in steps if _finished(store, f"{prefix}/{step:012d}")]
    kept = {*finished[-keep:], *also, *(step for step in steps if not finished or step > finished[-1])}
    gone = [step for step in steps if step not in kept]
    for step in gone:
        folder = f"{prefix}/{step:012d}"
        store.delete(f"{folder}/{MANIFEST}")
        for name in store.list(f"{folder}/"):
            store.delete(name)
    return gone


def _steps(store: Store, prefix: str) -> list[int]:
    folders = {name[len(prefix) + 1 :].partition("/")[0] for name in store.list(f"{prefix}/")}
    return sorted(int(folder) for folder in folders if len(folder) == 12 and folder.isdecimal())


def _finished(store: Store, folder: str) -> bool:
    try:
        _manifest(store, folder)
    except IncompleteCheckpoint:
        return False
    return True


def _manifest(store: Store, folder: str) -> dict[str, Any]:
    try:
        manifest = json.loads(store.get(f"{folder}/{MANIFEST}"))
        body: dict[str, Any] = manifest["body"]
        intact = manifest["sha256"] == _sha256(_canonical(body))
    except (KeyError, TypeError, ValueError):
        raise IncompleteCheckpoint(f"{folder}: no readable manifest") from None
    if not intact:
        raise IncompleteCheckpoint(f"{folder}: its manifest is damaged")
    return body


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
