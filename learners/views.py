"""Reading safetensors where they lie: tensors that share the memory of the bytes that came.

The library's own `load` copies every tensor and holds Python's lock meanwhile: a quarter of a second for 126 MiB, in
which a worker would score nothing. The format, as its authors describe it, is the length of a header (8 bytes, little
endian), the header (JSON: type, shape and place of each tensor), and the data of the tensors without gaps.
"""

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

Payload = bytes | bytearray
"""What a model travels as. A bytearray is read without a copy."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}


class _Place(msgspec.Struct):
    dtype: Literal["F64", "F32", "F16", "I64", "I32"]
    shape: list[_Count]
    data_offsets: tuple[_Count, _Count]


_decode = msgspec.json.Decoder(dict[str, _Place]).decode


def tensors_in(data: Payload) -> dict[str, Tensor]:
    """The tensors by name; copies, of bytes that cannot be written to. Raises ValueError for anything else."""
    begin = 8 + int.from_bytes(data[:8], "little")
    if not 8 < begin <= len(data):
        raise ValueError("its header has another length")
    try:
        header = _decode(memoryview(data)[8:begin])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is no list of tensors: {error}") from error
    tensors, at = {}, 0
    for name, place in sorted(header.items(), key=lambda item: item[1].data_offsets):
        dtype, count = np.dtype(_TYPES[place.dtype]), math.prod(place.shape)
        if place.data_offsets != (at, at + count * dtype.itemsize) or begin + place.data_offsets[1] > len(
            data
        ):
            raise ValueError(f"{name} lies at {place.data_offsets}, which is not its place")
        array = np.frombuffer(data, dtype, count, begin + at) if count else np.empty(0, dtype)
        array = array.reshape(place.shape)
        tensors[name] = torch.from_numpy(array if array.flags.behaved else array.copy())
        at = place.data_offsets[1]
    if begin + at != len(data):
        raise ValueError(f"{len(data) - begin - at} bytes follow the last tensor")
    return tensors
