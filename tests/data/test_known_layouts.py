"""Only layouts that are known to be decoded rightly reach the pixels."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from support.pictures import COMPOSITE, chunk, decoded, picture, png, refuses, saved, tagged_tiff, tiff


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((3, 16, 16), np.uint16, {"photometric": "rgb", "planarconfig": "separate"}),
        ((16, 16), np.int16, {"photometric": "minisblack"}),
        ((16, 16), np.int32, {"photometric": "minisblack"}),
        ((16, 16), np.uint32, {"photometric": "minisblack"}),
        ((16, 16), np.int8, {"photometric": "minisblack"}),
        ((16, 16), np.uint16, {"photometric": "miniswhite"}),
        ((16, 16, 3), np.int8, {"photometric": "rgb"}),
        ((16, 16, 3), np.uint32, {"photometric": "rgb"}),
        ((16, 16, 4), np.uint16, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ((4, 16, 16), np.uint8, {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]}),
        ((16, 16, 6), np.uint8, {"photometric": "rgb", "extrasamples": [0, 0, 0]}),
        ((16, 16), np.float32, {"photometric": "minisblack"}),
        ((16, 16), np.float16, {"photometric": "minisblack"}),
        ((16, 16), np.uint64, {"photometric": "minisblack"}),
    ],
)
def test_a_tiff_of_a_layout_that_is_not_known_is_an_input_error(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, options: dict[str, Any], compression: str | None
) -> None:
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tiff(tmp_path / "a.tif", pixels, compression=compression, metadata=None, **options)
    refuses(path, "not accepted|would lose 8|unknown pixel mode|Error")


def grey_tiff(values: np.ndarray[Any, Any], bits: int, white: int = 1) -> bytes:
    """Grey of less than a byte, packed row by row."""
    each = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(*values.shape, 2), axis=-1)[..., 16 - bits :]
    rows = np.packbits(each.reshape(len(values), -1), axis=-1)
    tags = {256: [values.shape[1]], 257: [len(values)], 258: [bits], 259: [1], 262: [white], 277: [1]}
    return tagged_tiff(tags | {278: [len(values)], 273: [0], 279: [rows.size]}, rows.tobytes())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_has_the_right_values(bits: int) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, (7, 11))
    np.testing.assert_array_equal(decoded(grey_tiff(values, bits))[..., 0], values * 255 // (2**bits - 1))
    np.testing.assert_array_equal(decoded(grey_tiff(values, bits, 0))[..., 0], 255 - values * 255 // (2**bits - 1))


def test_grey_of_12_and_16_bits_has_the_right_values() -> None:
    values = np.random.default_rng(1).integers(0, 4096, (7, 11))
    deep = Preprocessing(size=16, bit_depth=12)
    expected = values.astype(np.float32) / np.float32(4095)
    np.testing.assert_array_equal(decoded(grey_tiff(values, 12), deep)[..., 0], expected)
    tags = {256: [11], 257: [7], 258: [16], 259: [1], 262: [1], 277: [1], 278: [7], 273: [0], 279: [154]}
    content = tagged_tiff(tags, values.astype("<u2").tobytes())
    np.testing.assert_array_equal(decoded(content, deep)[..., 0], expected)


def palette_tiff(colours: list[int], bits: int = 2) -> bytes:
    tags = {256: [4], 257: [1], 258: [bits], 259: [1], 262: [3], 277: [1], 278: [1], 320: colours, 273: [0], 279: [1]}
    return tagged_tiff(tags, b"\x1b")  # 0, 1, 2, 3


def test_the_palette_of_a_tiff_has_all_of_its_colours_in_16_bits() -> None:
    colours = [value * 257 for value in (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110)]
    assert decoded(palette_tiff(colours))[0].tolist() == [[0, 40, 80], [10, 50, 90], [20, 60, 100], [30, 70, 110]]
    refuses(io.BytesIO(palette_tiff([value // 257 for value in colours])), "have 8 bits")  # would be black
    refuses(io.BytesIO(palette_tiff(colours[:-3])), "9 of 12")


def test_a_colour_that_the_palette_lacks_is_an_input_error() -> None:
    content = png(4, 1, 8, 3, b"\0\0\1\2\3")
    at = content.index(b"IDAT") - 4
    for colours, match in ((4, None), (3, "palette lacks"), (0, "palette lacks")):
        palette = chunk(b"PLTE", bytes(range(3 * colours))) if colours else b""
        made = content[:at] + palette + content[at:]
        if match is None:
            assert decoded(made)[0, :, 0].tolist() == [0, 3, 6, 9]
        else:
            refuses(io.BytesIO(made), match)


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 1), (4, 5), (8, 7)])
@pytest.mark.parametrize("late", [False, True])
def test_a_transparent_value_of_grey_counts_or_is_refused(depth: int, value: int, late: bool) -> None:
    """Pillow compares values of few bits with pixels that it has spread to 8."""
    row = {1: b"\xff", 2: b"\x55", 4: b"\x55\x55", 8: b"\7\7\7\7"}[depth]
    content = png(4, 1, depth, 0, b"\0" + row)
    at = content.index(b"IEND" if late else b"IDAT") - 4
    content = content[:at] + chunk(b"tRNS", struct.pack(">H", value)) + content[at:]
    refuses(io.BytesIO(content), "behind its pixels" if late else "transparent")
    if late:
        return
    if depth < 8:
        refuses(io.BytesIO(content), "transparent value", COMPOSITE)
    else:
        assert decoded(content, COMPOSITE).max() == 0


def test_a_transparent_value_that_no_pixel_can_have_is_an_input_error() -> None:
    for colour, value in ((0, b"\1\7"), (2, b"\1\7\0\7\0\7")):
        content = png(4, 1, 8, colour, b"\0" + b"\7" * (4 if colour == 0 else 12))
        at = content.index(b"IDAT") - 4
        refuses(io.BytesIO(content[:at] + chunk(b"tRNS", value) + content[at:]), "beyond 255", COMPOSITE)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bmp_whose_palette_and_bits_disagree_is_an_input_error(bits: int) -> None:
    """Pillow takes a palette of black and white for one bit a pixel, whatever the header says."""
    head = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 62)
    head += struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, bits, 0, 8, 0, 0, 2, 0) + bytes([0, 0, 0, 0, 255, 255, 255, 0])
    pixels = b"\1\0\1\0\1\0\1\0" if bits == 8 else b"\x10\x10\x10\x10"
    PIL.Image.open(io.BytesIO(head + pixels)).load()
    refuses(io.BytesIO(head + pixels), "disagree")


@pytest.mark.parametrize("stray", [{322: [16]}, {324: [0], 325: [256]}, {284: [5]}, {266: [2]}])
def test_a_tiff_of_strips_and_tiles_is_an_input_error(stray: dict[int, list[int]]) -> None:
    """Decoders differ about such files, and about values that are not defined."""
    tags = {256: [16], 257: [16], 258: [8], 259: [1], 262: [1], 277: [1], 278: [16], 273: [0], 279: [256]}
    assert decoded(tagged_tiff(tags, bytes(256))).shape == (16, 16, 3)
    refuses(io.BytesIO(tagged_tiff(tags | stray, bytes(256))), "both strips and tiles|not accepted")


def test_a_lazy_pil_image_of_such_a_file_is_an_input_error(tmp_path: Path) -> None:
    pixels = np.zeros((3, 16, 16), np.uint16)
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate")
    with PIL.Image.open(path) as image:
        refuses(image, "would lose 8")
    with PIL.Image.open(saved(tmp_path / "i.tif", np.zeros((16, 16), np.int32))) as image:
        refuses(image, "unsigned")
    with PIL.Image.open(saved(tmp_path / "a.png", picture())) as image:
        assert image.size == (16, 16)
