"""Named byte strings in a folder or a bucket: snapshots, checkpoints and models live here."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.errors import UserError

DRAFT = ".draft-"  # names that start so are half-written files of a process that may have died
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # a folder on the way is no blob either


class BlobMissing(KeyError):
    """There is no blob of that name."""

    def __str__(self) -> str:
        return f"there is no blob {self.args[0]!r}"


class Blobs:
    """Byte strings by name under one fsspec URL, such as "file:///var/driftline" or "s3://bucket/prefix".

    A name is a relative path with "/" between its parts. `put` is all or nothing: a reader sees the old bytes
    or the new ones. For file:// that is a draft, fsync and rename; object stores promise it for a single
    upload. There is no promise over several names, so whoever writes a group puts the one that makes it valid
    last.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        import fsspec  # what only may need a store starts without it

        self._fs: Any
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"cannot open the blob store {url!r}: {error}",
                'use "file:///FOLDER", or install the fsspec package for that kind of store',
            ) from error
        self._root = root.rstrip("/")
        protocol = self._fs.protocol
        self._local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name`, replacing what was there, durably before this returns.

        Raises OSError when the store refuses, a full disk for one; what was there is then still there.
        """
        path = self._path(name)
        if self._local:
            _put_file(Path(path), data)
        else:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)

    def get(self, name: str) -> bytes:
        """The bytes under `name`; raises BlobMissing."""
        try:
            return bytes(self._fs.cat_file(self._path(name)))
        except _MISSING:
            raise BlobMissing(name) from None

    def list(self, prefix: str = "") -> list[str]:
        """The names that start with `prefix`, sorted. Drafts of writers that died are not listed."""
        self._fs.invalidate_cache()  # other processes write here too
        folder = prefix.rpartition("/")[0]
        try:
            paths = self._fs.find(self._path(folder) if folder else self._root)
        except FileNotFoundError:
            return []
        names = (path[len(self._root) + 1 :] for path in paths)
        return sorted(n for n in names if n.startswith(prefix) and not n.rpartition("/")[2].startswith(DRAFT))

    def delete(self, name: str) -> None:
        """Remove `name`; not an error when it is gone already."""
        with suppress(*_MISSING):
            self._fs.rm_file(self._path(name))

    def uri(self, name: str) -> str:
        """The fsspec URL of `name`, for people and other programs."""
        self._path(name)
        return f"{self.url}/{name}"

    def _path(self, name: str) -> str:
        parts = name.split("/")
        if not all(parts) or "." in parts or ".." in parts or parts[-1].startswith(DRAFT):
            raise ValueError(f"not a blob name: {name!r}")
        return f"{self._root}/{name}"


def _put_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=DRAFT)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A new or renamed file survives a power cut only once the folder itself is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
