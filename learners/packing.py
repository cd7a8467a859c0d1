"""Named arrays to bytes and back, without pickle: what the detectors, metrics and buffers of the learner are
saved as.
"""

import io
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Value = TypeVar("Value")


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """One .npz. Numbers and text only: an array of objects raises ValueError, because only pickle could carry
    it.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def unpack(data: bytes) -> Arrays:
    """The inverse of `pack`. Raises ValueError for bytes that need pickle."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def prefixed(name: str, arrays: Mapping[str, Value]) -> dict[str, Value]:
    """The same arrays, or files, under "name/key", so that several parts share one file."""
    return {f"{name}/{key}": array for key, array in arrays.items()}


def part(name: str, arrays: Mapping[str, Value]) -> dict[str, Value]:
    """The inverse of `prefixed`: what was stored under `name`."""
    start = f"{name}/"
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
