"""PGM and PPM: the greatest value of the header is white."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.data.images import image_size, load_image, read_rgb
from support.pictures import SMALL, Pixels, decoded, picture, refuses, saved


def netpbm(pixels: Pixels, maxval: int, gap: bytes = b"\n") -> bytes:
    kind, (height, width) = b"P6" if pixels.ndim == 3 else b"P5", pixels.shape[:2]
    head = gap.join([kind, b"%d" % width, b"%d" % height, b"%d" % maxval]) + b"\n"
    return head + pixels.astype(np.uint8 if maxval < 256 else ">u2").tobytes()


@pytest.mark.parametrize("gap", [b"\n", b" ", b" # a comment 7\n#another\r\n\t"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_are_as_in_a_png(tmp_path: Path, channels: int, gap: bytes) -> None:
    pixels = picture(20, 33, channels)
    path = tmp_path / "a.pgm"
    path.write_bytes(netpbm(pixels, 255, gap))
    expected = load_image(saved(tmp_path / "a.png", pixels), SMALL)
    np.testing.assert_array_equal(load_image(path, SMALL).pixels, expected.pixels)
    assert image_size(path, SMALL) == (20, 33)
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "b.ppm", pixels), SMALL), read_rgb(path, SMALL))


@pytest.mark.parametrize("maxval", [1, 15, 100, 254])
def test_a_smaller_greatest_value_is_white(maxval: int) -> None:
    pixels = np.arange(maxval + 1, dtype=np.uint8).reshape(1, -1)
    found = decoded(netpbm(pixels, maxval))[..., 1]
    np.testing.assert_array_equal(found, np.floor(pixels * 255.0 / maxval + 0.5))
    assert found.max() == 255


def test_16_bits_are_divided_by_the_greatest_value_and_65535_by_the_declared_depth() -> None:
    pixels = picture(16, 16, 1, np.uint16) >> 4
    for maxval in (4095, 5000):
        found = load_image(io.BytesIO(netpbm(pixels, maxval)), SMALL).pixels[0]
        np.testing.assert_array_equal(found, pixels.astype(np.float32) / np.float32(maxval) * 2 - 1)
    for depth in (12, 16):
        given = Preprocessing(size=16, bit_depth=depth)
        found = load_image(io.BytesIO(netpbm(pixels, 65535)), given).pixels
        np.testing.assert_array_equal(found, load_image(pixels, given).pixels)
    refuses(io.BytesIO(netpbm(pixels, 65535)), "bit_depth 8 allows 0 to 255", Preprocessing(size=16, bit_depth=8))


WHOLE = netpbm(picture(16, 16, 1), 255)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (WHOLE[:-1], "damaged or truncated .*255 of 256 bytes of pixels"),
        (WHOLE + WHOLE, "several frames"),
        (netpbm(picture(16, 16, 1), 100), r"holds the value \d+; its header says that 100 is the greatest"),
        (netpbm(picture(16, 16, 1, np.uint16), 300), "its header says that 300 is the greatest"),
        (netpbm(picture(16, 16, 3, np.uint16), 65535), "colour with 16 bits a channel is not read from files"),
        (WHOLE.replace(b"255", b"0", 1), "greatest value of 0"),
        (WHOLE.replace(b"255", b"65536", 1), "greatest value of 65536"),
        (b"P5\n16 16\n", "damaged or truncated .*no width, height"),
        (b"P5\n# " + b"x" * 70_000 + WHOLE[2:], "no width, height"),
        (b"P5\n0 16\n255\n", "damaged"),
        (b"P5\n99999 99999\n255\n", "above max_pixels"),
        (b"P2\n1 1\n255\n7\n", "a Netpbm file P2 is not accepted; save PGM or PPM in binary"),
        (b"P7\nWIDTH 1\n", "a Netpbm file P7 is not accepted"),
    ],
)
def test_what_is_not_one_whole_picture_is_an_input_error(content: bytes, match: str) -> None:
    refuses(io.BytesIO(content), match)


def test_the_first_of_several_is_read_where_that_is_asked_for() -> None:
    given: Any = Preprocessing(size=16, frames="first")
    found = load_image(io.BytesIO(WHOLE + b"P5"), given).pixels
    np.testing.assert_array_equal(found, load_image(io.BytesIO(WHOLE), SMALL).pixels)


def test_a_pil_image_of_a_pgm_is_as_pillow_has_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pgm", picture(16, 16, 1))
    with PIL.Image.open(path) as image:
        np.testing.assert_array_equal(load_image(image, SMALL).pixels, load_image(path, SMALL).pixels)
