"""State as bytes: whole or refused. Whoever only stores and loads it needs no kernels, whose import takes long."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import lz4.frame
import numpy as np
from numpy.typing import NDArray

_MAGIC = b"DLSTATE1"
_DIGEST = 16


class CorruptSnapshot(ValueError):
    """Bytes or arrays that are no whole snapshot, or one of another view. They must not be loaded."""


def save_state(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as bytes that `load_state` checks: magic, digest, length of the header, JSON header, data."""
    header, body = [], []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array)
        header.append([name, data.dtype.str, list(data.shape)])
        body.append(data.tobytes())
    text = json.dumps(header).encode()
    # Most tiles of most entities are empty: compression makes the snapshot several times smaller.
    rest: bytes = struct.pack("<I", len(text)) + text + lz4.frame.compress(b"".join(body))
    return _MAGIC + hashlib.blake2b(rest, digest_size=_DIGEST).digest() + rest


def load_state(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays that `save_state` was given. Raises CorruptSnapshot when a single bit differs."""
    rest = data[len(_MAGIC) + _DIGEST :]
    if not data.startswith(_MAGIC):
        raise CorruptSnapshot("these bytes are not a snapshot")
    if hashlib.blake2b(rest, digest_size=_DIGEST).digest() != data[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
        raise CorruptSnapshot("the snapshot is damaged or cut short")
    (length,) = struct.unpack_from("<I", rest)
    body = lz4.frame.decompress(rest[4 + length :])
    arrays, start = {}, 0
    for name, dtype, shape in json.loads(rest[4 : 4 + length]):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(body, dtype, count, start).reshape(shape).copy()
        start += arrays[name].nbytes
    return arrays
