"""Small images out of an event's text: base64 of a PNG, PGM or PPM, shrunk to the few pixels that a model sees.

No decoder is among the dependencies, so only what is quickly read is: PNG with 8 bits a channel that is not interlaced
(W3C PNG, 3rd edition), and the binary netpbm formats P5 and P6 with 8 bits, which are raw pixels behind a size. JPEG is
refused. The size is checked before anything is unpacked.
"""

import base64
import binascii
import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from featurestore.windows import kernel

Pixels = NDArray[np.uint8]

MOST_PIXELS = 1 << 22
"""Pixels of an image before it is shrunk: 2048 x 2048. Unpacked it takes at most 16 MiB."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types: grey, RGB, palette, grey and alpha, RGBA
_NETPBM = re.compile(rb"P([56])\s+(\d{1,5})\s+(\d{1,5})\s+255\s")
_LUMA = np.array([299, 587, 114], np.uint32)  # thousandths of red, green and blue in grey (ITU-R BT.601)


def pixels(text: str, shape: tuple[int, ...]) -> bytes:
    """Height x width x channels bytes, row by row, of an image of any size: each is the mean of what it covers.

    `shape` is (height, width, channels), of 1 channel (grey) or 3. Raises ValueError with the reason.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no base64") from None
    image = _png(data) if data.startswith(_PNG) else _netpbm(data)
    return _shrunk(_channels(image, shape[2]), shape).tobytes()


def _netpbm(data: bytes) -> Pixels:
    head = _NETPBM.match(data)
    if head is None:
        raise ValueError("is neither PNG nor 8-bit PGM or PPM (P5, P6)")
    channels, width, height = 3 if head[1] == b"6" else 1, int(head[2]), int(head[3])
    _check_size(width, height)
    body = data[head.end() :]
    if len(body) != width * height * channels:
        raise ValueError(f"has {len(body)} bytes of pixels, not {width} x {height} x {channels}")
    return np.frombuffer(body, np.uint8).reshape(height, width, channels)


def _png(data: bytes) -> Pixels:
    chunks = _chunks(data)
    try:
        width, height, depth, colour, *ways = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    except (KeyError, struct.error):
        raise ValueError("is a PNG without a header") from None
    _check_size(width, height)
    if depth != 8 or colour not in _CHANNELS or ways != [0, 0, 0]:
        raise ValueError("is a PNG of another kind than 8 bits a channel, not interlaced")
    size = width * _CHANNELS[colour]
    rows = np.frombuffer(_inflated(chunks.get(b"IDAT", b""), height * (1 + size)), np.uint8)
    rows = rows.reshape(height, 1 + size)
    if rows[:, 0].max() > 4:
        raise ValueError("is a PNG with an unknown filter")
    image = np.zeros((height, size), np.uint8)
    _unfilter(rows, image, _CHANNELS[colour])
    image = image.reshape(height, width, -1)
    return _coloured(image, chunks.get(b"PLTE", b"")) if colour == 3 else image


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The bodies of a PNG's chunks by their type, those of one type joined."""
    found: dict[bytes, bytes] = {}
    at = len(_PNG)
    while b"IEND" not in found:
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            raise ValueError("is a PNG that is cut short")
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if check != struct.pack(">I", zlib.crc32(kind + body)):
            raise ValueError("is a damaged PNG")
        found[kind] = found.get(kind, b"") + body
        at += 12 + length
    return found


def _inflated(packed: bytes, size: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, size)
    except zlib.error:
        raise ValueError("is a PNG whose pixels cannot be unpacked") from None
    if len(data) != size:
        raise ValueError("is a PNG with too few pixels")
    return data


@kernel
def _unfilter(rows: Pixels, image: Pixels, step: int) -> None:
    """Undoes the filters of a PNG's rows u8[height, 1 + size], whose first byte says which; into u8[height, size]."""
    for y in range(rows.shape[0]):
        kind = rows[y, 0]
        for x in range(image.shape[1]):
            left = int(image[y, x - step]) if x >= step else 0
            up = int(image[y - 1, x]) if y else 0
            corner = int(image[y - 1, x - step]) if y and x >= step else 0
            guess = 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            elif kind == 4:  # Paeth: the neighbour nearest to left + up - corner
                near = (abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
                guess = (
                    left
                    if near[0] <= near[1] and near[0] <= near[2]
                    else up
                    if near[1] <= near[2]
                    else corner
                )
            image[y, x] = (int(rows[y, 1 + x]) + guess) & 255


def _coloured(image: Pixels, palette: bytes) -> Pixels:
    colours = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    if int(image.max()) >= len(colours):
        raise ValueError("is a PNG with a colour that is not in its palette")
    found: Pixels = colours[image[:, :, 0]]
    return found


def _check_size(width: int, height: int) -> None:
    if not 1 <= width * height <= MOST_PIXELS:
        raise ValueError(f"has {width} x {height} pixels; 1 to {MOST_PIXELS} can be read")


def _channels(image: Pixels, wanted: int) -> Pixels:
    """Grey (1) or RGB (3) of an image [height, width, 1 to 4]; what says how transparent it is, is left out."""
    image = image[:, :, : 3 if image.shape[2] > 2 else 1]
    if image.shape[2] == wanted:
        return image
    if wanted == 3:
        return np.repeat(image, 3, 2)
    return ((image @ _LUMA + 500) // 1000).astype(np.uint8)[:, :, None]


def _shrunk(image: Pixels, shape: tuple[int, ...]) -> Pixels:
    """The mean of each of height x width equal areas; of an image that is smaller, the nearest pixel."""
    total = image
    counts = []
    for axis in (0, 1):
        size = image.shape[axis]
        starts = np.arange(shape[axis]) * size // shape[axis]
        total = np.add.reduceat(total, starts, axis, np.uint32)
        counts.append(np.maximum(np.diff(starts, append=size), 1))
    shrunk: Pixels = (total // np.outer(*counts)[:, :, None]).astype(np.uint8)
    return shrunk
