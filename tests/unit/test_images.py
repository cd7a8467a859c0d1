"""Images in events: what is read, what is refused with its reason, and that nothing is unpacked beyond a bound."""

import base64
import hashlib
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from streams.images import MOST_PIXELS, MOST_SCANS, pixels

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


def saved(mode: str, kind: str, **how: Any) -> bytes:
    """A smooth image of 24 x 16 pixels, written by Pillow."""
    y, x = np.mgrid[0:16, 0:24]
    image = Image.fromarray(np.stack((x * 9, y * 14, x * 5 + y * 5), 2).astype(np.uint8)).convert(mode)
    out = BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


GOOD, JPEG = png(RGB, 2), saved("RGB", "JPEG")
MPO = saved("RGB", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])  # a JPEG, and one more
JPEG_PIXELS = "30b73c194ad17053851c336af284bf02d9ebf280f2d4c2ec08a595771ee8562d"


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_a_jpeg_is_read_as_what_it_shows(how: dict[str, Any]) -> None:
    found = np.frombuffer(pixels(text(saved("RGB", "JPEG", **how)), (16, 24, 3)), np.uint8).astype(int)
    wanted = np.frombuffer(pixels(text(saved("RGB", "PNG")), (16, 24, 3)), np.uint8).astype(int)
    assert np.abs(found - wanted).mean() < 6
    grey = pixels(text(saved("L", "JPEG", **how)), (4, 4, 1))
    assert len(grey) == 16
    assert len(set(grey)) > 8
    assert pixels(text(saved("CMYK", "JPEG")), (4, 4, 3))


def test_a_jpeg_that_names_further_images_is_its_first() -> None:
    assert Image.open(BytesIO(MPO)).format == "MPO"
    assert pixels(text(MPO), (16, 24, 3)) == pixels(text(JPEG), (16, 24, 3))


def test_a_jpeg_has_the_same_pixels_every_time() -> None:
    data = saved("RGB", "JPEG", quality=60)
    assert hashlib.sha256(pixels(text(data), (16, 24, 3))).hexdigest() == JPEG_PIXELS
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: pixels(text(data), (8, 8, 1)), range(50)))) == 1


def test_every_kind_of_png_is_read() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        assert len(pixels(text(saved(mode, "PNG")), (4, 4, 3))) == 48
    deep = Image.fromarray((np.arange(384).reshape(16, 24) * 170).astype(np.uint16))
    out = BytesIO()
    deep.save(out, "PNG")
    assert pixels(text(out.getvalue()), (16, 24, 1)) == bytes(i * 170 >> 8 for i in range(384))
    with_holes = saved("P", "PNG", transparency=bytes(range(200)))
    assert len(pixels(text(with_holes), (4, 4, 3))) == 48


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("not base64!", "no base64"),
        ("é", "no base64"),
        (text(b"\xff\xd8\xff\xe0 a JPEG"), "neither JPEG, PNG, PGM nor PPM"),
        (text(saved("RGB", "GIF")), "neither JPEG, PNG, PGM nor PPM"),
        (text(saved("RGB", "TIFF")), "neither JPEG, PNG, PGM nor PPM"),
        ("", "neither JPEG"),
        (text(b"P5 2 2 255 abc"), "PPM that is damaged or cut short"),
        (text(GOOD[:-20]), "PNG that is damaged or cut short"),
        (text(GOOD[:9]), "damaged"),
        (text(flipped(GOOD, 20)), "damaged"),
        (text(flipped(GOOD, len(GOOD) - 20)), "damaged"),
        (text(png(RGB, 2, head={"height": 0})), "6 x 0 pixels|damaged"),
        (text(png(RGB, 2, head={"height": MOST_PIXELS})), f"1 to {MOST_PIXELS} can be read"),
        (text(png(RGB, 2, head={"width": 1 << 30, "height": 1 << 30})), "can be read"),
        (text(GOOD[:33] + chunk(b"IDAT", b"junk") + chunk(b"IEND", b"")), "damaged"),
        (text(saved("RGB", "JPEG") + b"\xff\xda" * MOST_SCANS), "more than 32 scans"),
        (text(MPO + b"\xff\xda" * MOST_SCANS), "more than 32 scans"),
    ],
)
def test_what_is_refused_and_why(said: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pixels(said, (4, 4, 1))


def test_rows_that_a_png_announces_and_does_not_have_are_black() -> None:
    found = pixels(text(png(RGB, 2, head={"height": 6})), (6, 6, 3))
    assert found == RGB.tobytes() + bytes(2 * 6 * 3)


def test_an_image_that_says_it_is_huge_is_not_unpacked() -> None:
    head = saved("RGB", "JPEG")
    at = head.index(b"\xff\xc0") + 5  # the frame: height and width, two bytes each
    huge = head[:at] + b"\xff\xff\xff\xff" + head[at + 4 :]
    with pytest.raises(ValueError, match="65535 x 65535 pixels"):
        pixels(text(huge), (4, 4, 1))
    bomb = png(np.zeros((1, 1, 1), np.uint8), 0, head={"width": 60_000, "height": 60_000})
    with pytest.raises(ValueError, match="60000 x 60000 pixels"):
        pixels(text(bomb), (4, 4, 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_is_cut_short_anywhere_is_refused(kind: str) -> None:
    data = saved("RGB", kind)
    for end in range(0, len(data) - 4, 7):
        with pytest.raises(ValueError, match=r"neither|damaged|no base64"):
            pixels(text(data[:end]), (4, 4, 1))


@given(st.binary(max_size=80), st.integers(0, 90))
def test_no_bytes_do_more_than_be_refused(noise: bytes, at: int) -> None:
    for whole in (GOOD, JPEG):
        for data in (noise, whole[:at] + noise + whole[at:], whole[:at] + noise):
            refused_or_read(data)


def refused_or_read(data: bytes) -> None:
    try:
        assert len(pixels(text(data), (4, 4, 3))) == 48
    except ValueError as error:
        assert str(error)  # noqa: PT017
