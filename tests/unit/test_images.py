"""Images in events: what is read, what is refused with its reason, and that nothing is unpacked beyond a bound."""

import base64
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streams.images import MOST_PIXELS, pixels

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min(
        (left, up, corner), key=lambda near: abs(guess - near)
    )  # the first of equals, as the standard has it


def filtered(image: Any, kind: int) -> bytes:
    """The rows of an image [height, width, channels] after PNG's filter `kind`, written from the standard."""
    step, data = image.shape[2], b""
    rows = image.reshape(len(image), -1).astype(int)
    for y, row in enumerate(rows):
        line = [kind]
        for x, value in enumerate(row):
            left = row[x - step] if x >= step else 0
            up = rows[y - 1][x] if y else 0
            corner = rows[y - 1][x - step] if y and x >= step else 0
            guess = (0, left, up, (left + up) // 2, paeth(left, up, corner))[kind]
            line.append((value - guess) % 256)
        data += bytes(line)
    return data


def png(
    image: Any, colour: int, kind: int = 0, head: dict[str, int] | None = None, more: bytes = b""
) -> bytes:
    size = {"width": image.shape[1], "height": image.shape[0], "depth": 8, "interlace": 0} | (head or {})
    header = struct.pack(
        ">IIBBBBB", size["width"], size["height"], size["depth"], colour, 0, 0, size["interlace"]
    )
    packed = zlib.compress(filtered(image, kind))
    parts = [chunk(b"IHDR", header), more, chunk(b"IDAT", packed[:5]), chunk(b"IDAT", packed[5:])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@settings(deadline=None)  # the first one waits for the compiler
@given(
    st.sampled_from([0, 2, 4, 6]).flatmap(
        lambda colour: st.tuples(
            st.just(colour),
            st.integers(0, 4),
            st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
                lambda size: arrays(np.uint8, (*size, CHANNELS[colour]))
            ),
        )
    )
)
def test_every_filter_of_png_is_undone(case: tuple[int, int, Any]) -> None:
    colour, kind, image = case
    wanted = image[:, :, :3] if colour in (2, 6) else image[:, :, :1]
    found = pixels(text(png(image, colour, kind)), wanted.shape)
    assert found == np.ascontiguousarray(wanted).tobytes()


def test_a_palette_gives_colours() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 210, 220]))
    image = np.array([[[0], [1]]], np.uint8)
    assert pixels(text(png(image, 3, more=palette)), (1, 2, 3)) == bytes([10, 20, 30, 200, 210, 220])


def test_netpbm_is_raw_pixels_behind_a_size() -> None:
    assert pixels(text(b"P6\n6 4\n255\n" + RGB.tobytes()), (4, 6, 3)) == RGB.tobytes()
    grey = RGB[:, :, :1]
    assert pixels(text(b"P5 6 4 255 " + grey.tobytes()), (4, 6, 1)) == grey.tobytes()
    assert pixels("data:image/png;base64," + text(png(RGB, 2)), (4, 6, 3)) == RGB.tobytes()


def test_grey_and_colour_become_each_other() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[:, :, 0] = 100
    assert pixels(text(png(red, 2)), (2, 2, 1)) == bytes([30] * 4)
    assert pixels(text(png(red[:, :, :1], 0)), (2, 2, 3)) == bytes([100] * 12)


def test_a_pixel_is_the_mean_of_what_it_covers() -> None:
    image = np.random.default_rng(1).integers(0, 256, (20, 12, 1), np.uint8)
    found = np.frombuffer(pixels(text(png(image, 0)), (4, 4, 1)), np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(found, image.reshape(4, 5, 4, 3).astype(int).sum((1, 3)) // 15)
    small = np.array([[[1], [2]], [[3], [4]]], np.uint8)
    found = np.frombuffer(pixels(text(png(small, 0)), (4, 4, 1)), np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(found, small[:, :, 0].repeat(2, 0).repeat(2, 1))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


GOOD = png(RGB, 2)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("not base64!", "no base64"),
        ("é", "no base64"),
        (text(b"\xff\xd8\xff\xe0 a JPEG"), "neither PNG nor"),
        ("", "neither PNG nor"),
        (text(b"P5 2 2 255 abc"), "3 bytes of pixels, not 2 x 2 x 1"),
        (text(b"P5 0 2 255 "), "0 x 2 pixels"),
        (text(GOOD[:-20]), "cut short"),
        (text(GOOD[:9]), "cut short"),
        (text(flipped(GOOD, 20)), "damaged"),
        (text(GOOD[:8] + GOOD[-12:]), "without a header"),
        (text(png(RGB, 2, head={"depth": 16})), "another kind"),
        (text(png(RGB, 2, head={"interlace": 1})), "another kind"),
        (text(png(RGB, 2, head={"height": 5})), "too few pixels"),
        (text(png(RGB, 2, head={"height": 0})), "6 x 0 pixels"),
        (text(png(RGB, 2, head={"height": MOST_PIXELS})), f"1 to {MOST_PIXELS} can be read"),
        (text(png(np.array([[[5]]], np.uint8), 3, more=chunk(b"PLTE", bytes(6)))), "not in its palette"),
        (text(png(np.array([[[0]]], np.uint8), 3)), "not in its palette"),
        (text(GOOD[:33] + chunk(b"IDAT", b"junk") + chunk(b"IEND", b"")), "cannot be unpacked"),
    ],
)
def test_what_is_refused_and_why(said: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pixels(said, (4, 4, 1))


def test_an_unknown_filter_is_refused() -> None:
    rows = bytes([9, 1, 2])
    header = struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0)
    data = GOOD[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="unknown filter"):
        pixels(text(data), (4, 4, 1))


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 90))
def test_no_bytes_do_more_than_be_refused(noise: bytes, at: int) -> None:
    for data in (noise, GOOD[:at] + noise + GOOD[at:], GOOD[:at] + noise):
        try:
            assert len(pixels(text(data), (4, 4, 3))) == 48
        except ValueError as error:
            assert str(error)  # noqa: PT017
