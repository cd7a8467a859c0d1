"""Small images out of an event's text: base64 of a JPEG, PNG, PGM or PPM, shrunk to the few pixels that a model sees.

Pillow decodes, with one setting and at full size, so that equal bytes give equal pixels. What an image claims to be is
checked before anything is unpacked: it comes from outside, and a few bytes can name a size that fills the memory, or
ask for thousands of passes over it.
"""

import base64
import binascii
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

MOST_PIXELS = 1 << 22
"""Pixels of an image before it is shrunk: 2048 x 2048. Unpacked it takes at most 16 MiB."""

MOST_SCANS = 32
"""Passes over a progressive JPEG; usual ones have ten. A pass takes a few bytes of file, and some 10 ms of a core."""

_FORMATS = ("JPEG", "PNG", "PPM")
_SCAN = b"\xff\xda"  # the marker; coded data never has it
_GREY = ("1", "L", "LA")  # modes of Pillow; "I" and "I;16" are grey with 16 bits
_LUMA = np.array([299, 587, 114], np.uint32)  # thousandths of red, green and blue in grey (ITU-R BT.601)

Image.MAX_IMAGE_PIXELS = None  # `_check_size` has a lower limit, and does not warn on the console


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
    return _shrunk(_channels(_decoded(data), shape[2]), shape).tobytes()


def _decoded(data: bytes) -> Pixels:
    """The pixels [height, width, 1 or 3]. A decoder that meets hostile bytes may raise anything."""
    try:
        image = Image.open(BytesIO(data), formats=_FORMATS)  # reads no more than the head
    except Exception:
        raise ValueError("is neither JPEG, PNG, PGM nor PPM, or its head is damaged") from None
    _check_size(*image.size)
    # Pillow's MPO is a JPEG whose head names further images.
    if image.format in ("JPEG", "MPO") and data.count(_SCAN) > MOST_SCANS:
        raise ValueError(f"is a JPEG of more than {MOST_SCANS} scans")
    try:
        if image.format == "PNG":  # loading it does not look at the checksums of its pixels
            image.verify()
            image = Image.open(BytesIO(data), formats=_FORMATS)
        return _bytes_of(image)
    except Exception:
        raise ValueError(f"is a {image.format} that is damaged or cut short") from None


def _bytes_of(image: Image.Image) -> Pixels:
    """8 bits a channel, grey or RGB; what says how transparent it is, is left out."""
    if image.mode.startswith("I"):
        high: Pixels = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)[:, :, None]
        return high
    image.info.pop("transparency", None)
    grey = image.mode in _GREY
    found = np.asarray(image.convert("L" if grey else "RGB"))
    return found[:, :, None] if grey else found


def _check_size(width: int, height: int) -> None:
    if not 1 <= width * height <= MOST_PIXELS:
        raise ValueError(f"has {width} x {height} pixels; 1 to {MOST_PIXELS} can be read")


def _channels(image: Pixels, wanted: int) -> Pixels:
    """Grey (1) or RGB (3) of either [height, width, 1 or 3]."""
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
