"""Files that lack pixels, or make a decoder guess, are refused; whole ones keep theirs."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import simplejpeg

from sprfast.config import Preprocessing
from sprfast.data import jpeg, webp
from sprfast.data.images import load_image, read_rgb
from sprfast.errors import InputError
from support.pictures import COMPOSITE, SMALL, Pixels, decoded, picture, png, refuses, saved, tagged_tiff, tiff

SMOOTH = (np.add.outer(np.arange(64), np.arange(64)) * 2).astype(np.uint8)
COLOUR = np.stack([SMOOTH, SMOOTH.T[::-1], 255 - SMOOTH], -1)


def encoded(pixels: Pixels, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


# --- JPEG

JPEGS = {
    "4:4:4": encoded(COLOUR, "JPEG", subsampling=0),
    "4:2:0": encoded(COLOUR, "JPEG", subsampling=2),
    "4:2:2": encoded(COLOUR, "JPEG", subsampling=1),
    "progressive": encoded(COLOUR, "JPEG", progressive=True),
    "grey": encoded(SMOOTH, "JPEG"),
    "restarts": encoded(COLOUR, "JPEG", restart_marker_blocks=2),
    "4:4:0": simplejpeg.encode_jpeg(COLOUR, 80, "RGB", "440"),
    "4:1:1": simplejpeg.encode_jpeg(COLOUR, 80, "RGB", "411"),
    "not in YCbCr": encoded(COLOUR, "JPEG", keep_rgb=True),
    "progressive grey": encoded(SMOOTH, "JPEG", progressive=True),
}


def scan_headers(content: bytes) -> list[int]:
    return [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xda"]


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_is_an_input_error(kind: str) -> None:
    whole = JPEGS[kind]
    start = scan_headers(whole)[0]
    for at in {*range(start, len(whole) - 2, 7), *scan_headers(whole)}:
        refuses(io.BytesIO(whole[:at] + b"\xff\xd9"), "damaged or truncated")


@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_has_pillows_pixels(kind: str) -> None:
    expected = np.asarray(PIL.Image.open(io.BytesIO(JPEGS[kind])).convert("RGB"))
    np.testing.assert_array_equal(decoded(JPEGS[kind]), expected)


def test_a_jpeg_without_a_component_is_an_input_error() -> None:
    """A grey scan in a file of three components; decoders show it without a word."""
    grey = encoded(SMOOTH, "JPEG")
    at = grey.index(b"\xff\xc0")
    head = struct.pack(">HBHHB", 17, 8, 64, 64, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    content = grey[: at + 2] + head + grey[at + 13 :]
    PIL.Image.open(io.BytesIO(content)).load()
    refuses(io.BytesIO(content), "scans are missing")


def test_a_jpeg_coded_in_another_way_is_an_input_error() -> None:
    content = JPEGS["grey"].replace(b"\xff\xc0", b"\xff\xc9", 1)  # by arithmetic
    refuses(io.BytesIO(content), "coding 0xc9")


def test_a_jpeg_of_too_many_scans_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load_image(io.BytesIO(JPEGS["progressive"]), SMALL)
    monkeypatch.setattr(jpeg, "_SCAN_PIXELS", 5 * 64 * 64)
    refuses(io.BytesIO(JPEGS["progressive"]), "scans would take too long")
    load_image(io.BytesIO(JPEGS["4:4:4"]), SMALL)


# --- PNG

PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def rows_of(pixels: Pixels, interlaced: bool) -> bytes:
    """Without filters; of grey pixels of 8 bits."""
    passes = PASSES if interlaced else ((0, 1, 0, 1),)
    parts = [pixels[top::down, left::across] for left, across, top, down in passes]
    return b"".join(b"\0" + row.tobytes() for part in parts if part.shape[1] for row in part)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(13, 9), (1, 1), (3, 2), (16, 16)])
def test_a_png_holds_exactly_the_pixels_of_its_header(size: tuple[int, int], interlaced: bool) -> None:
    pixels = picture(*size, channels=1)
    rows = rows_of(pixels, interlaced)

    def png_of(content: bytes) -> bytes:
        return png(size[1], size[0], 8, 0, content, interlaced)

    np.testing.assert_array_equal(decoded(png_of(rows))[..., 0], pixels)
    for keep in {0, 1, len(rows) // 3, len(rows) - 1} - {len(rows)}:
        refuses(io.BytesIO(png_of(rows[:keep])), "damaged or truncated .*bytes of pixels")
    refuses(io.BytesIO(png_of(rows + b"\0")), "damaged or truncated .*more pixels")


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 2), (8, 4), (8, 6), (16, 0)])
def test_a_png_of_each_kind_that_ends_too_early_is_an_input_error(depth: int, colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" + b"\xff" * -(-5 * depth * channels // 8)
    assert decoded(png(5, 9, depth, colour, row * 9)).min() == (1 if depth == 16 else 255)
    for rows in (row * 8, row * 9 + row, (row * 9)[:-1]):
        refuses(io.BytesIO(png(5, 9, depth, colour, rows)), "damaged or truncated")


def test_a_png_whose_stream_goes_on_or_has_no_end_is_an_input_error() -> None:
    rows = b"\0" + bytes(40)
    whole = zlib.compress(rows)
    for stream in (whole + b"more", whole[:-4], zlib.compress(rows * 4000)):
        content = png(40, 1, 8, 0, rows).replace(whole, stream)
        at = content.index(b"IDAT")
        body = content[at : at + 4] + stream
        content = content[: at - 4] + struct.pack(">I", len(stream)) + body + struct.pack(">I", zlib.crc32(body))
        refuses(io.BytesIO(content + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))), "damaged or truncated")


def test_a_png_whose_first_frame_covers_a_part_of_it_is_an_input_error(tmp_path: Path) -> None:
    frames = [PIL.Image.new("L", (16, 16), value) for value in (9, 99)]
    content = saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:]).read_bytes()
    at = content.index(b"fcTL")
    body = bytearray(content[at : at + 30])
    struct.pack_into(">II", body, 8, 8, 8)
    content = content[:at] + bytes(body) + struct.pack(">I", zlib.crc32(body)) + content[at + 34 :]
    first = Preprocessing(size=16, frames="first")
    assert read_rgb(tmp_path / "a.png", first).max() == 9
    refuses(io.BytesIO(content), "damaged or truncated", first)


# --- TIFF

STRIPS = {256: [16], 257: [12], 258: [8], 259: [1], 262: [1], 277: [1], 278: [4], 273: [0, 64, 128], 279: [64] * 3}
TILES = {
    256: [24],
    257: [16],
    258: [8],
    259: [1],
    262: [1],
    277: [1],
    322: [16],
    323: [16],
    324: [0, 256],
    325: [256] * 2,
}
PLANES = {256: [16], 257: [16], 258: [8] * 3, 259: [1], 262: [2], 277: [3], 278: [16], 284: [2]}
PLANES |= {273: [0, 256, 512], 279: [256] * 3}


@pytest.mark.parametrize(
    ("tags", "place"),
    [(STRIPS, (273, 279)), (TILES, (324, 325)), (PLANES, (273, 279))],
    ids=["strips", "tiles", "planes"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_tiff_lists_all_of_its_parts(tags: dict[int, list[int]], place: tuple[int, int], compressed: bool) -> None:
    length = sum(tags[place[1]])
    content = picture(1, length, 1).tobytes()
    if compressed:
        parts = [
            zlib.compress(content[at : at + size]) for at, size in zip(tags[place[0]], tags[place[1]], strict=True)
        ]
        starts = [sum(map(len, parts[:index])) for index in range(len(parts))]
        tags = tags | {259: [8], place[0]: starts, place[1]: [len(part) for part in parts]}
        content = b"".join(parts)
    expected = picture(1, length, 1).ravel()
    pixels = decoded(tagged_tiff(tags, content))
    if place[0] == 324:
        both = expected.reshape(2, 16, 16)
        np.testing.assert_array_equal(pixels[..., 0], np.hstack([both[0], both[1][:, :8]]))
    elif 284 in tags:
        np.testing.assert_array_equal(pixels, np.moveaxis(expected.reshape(3, 16, 16), 0, 2))
    else:
        np.testing.assert_array_equal(pixels[..., 0], expected.reshape(12, 16))
    for damage in (
        {tag: tags[tag][:-1] for tag in place},
        {place[1]: tags[place[1]][:-1]},
        {place[1]: [0, *tags[place[1]][1:]]},
        {place[1]: [tags[place[1]][0] - 12, *tags[place[1]][1:]]},
        {place[0]: [*tags[place[0]][:-1], len(content) - 5]},
        {place[1]: [*tags[place[1]][:-1], 100_000]},
    ):
        refuses(io.BytesIO(tagged_tiff(tags | damage, content)), "damaged or truncated")


@pytest.mark.parametrize("compression", ["jpeg", "group4", "tiff_ccitt"])
def test_a_tiff_whose_decoder_guesses_is_an_input_error(tmp_path: Path, compression: str) -> None:
    image = PIL.Image.fromarray(COLOUR).convert("1" if compression in ("group4", "tiff_ccitt") else "RGB")
    refuses(saved(tmp_path / "a.tif", image, compression=compression), "of compression .* is not accepted")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "lzma", "zstd"])
def test_a_strip_that_ends_early_is_an_input_error(tmp_path: Path, compression: str) -> None:
    """A strip of half of the rows, under the header of them all."""
    try:
        content = saved(tmp_path / "a.tif", COLOUR[:32], compression=compression).read_bytes()
    except OSError:
        pytest.skip("this Pillow has not got it")
    assert read_rgb(tmp_path / "a.tif", SMALL).shape == (32, 64, 3)
    with PIL.Image.open(tmp_path / "a.tif") as image:
        assert len(image.tag_v2[273]) == 1  # type: ignore[attr-defined]
        at = image.tag_v2._offset  # type: ignore[attr-defined]
    (count,) = struct.unpack_from("<H", content, at)
    changed = bytearray(content)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] in (257, 278):
            struct.pack_into("<HI", changed, entry + 2, 4, 1)
            struct.pack_into("<I", changed, entry + 8, 64)
    refuses(io.BytesIO(bytes(changed)), "damaged or truncated")


def test_a_tiff_of_tifffile_is_read(tmp_path: Path) -> None:
    for options in ({}, {"tile": (16, 16)}, {"planarconfig": "separate"}, {"rowsperstrip": 5}):
        pixels = np.moveaxis(COLOUR, 2, 0) if "planarconfig" in options else COLOUR
        path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", **options)
        np.testing.assert_array_equal(read_rgb(path, SMALL), COLOUR)


# --- BMP and WebP, and what a host program sets


def test_a_bmp_with_mended_lengths_is_an_input_error() -> None:
    bmp = encoded(COLOUR, "BMP")
    for keep in (0.3, 0.9, 0.999):
        cut = bytearray(bmp[: int(len(bmp) * keep)])
        struct.pack_into("<I", cut, 2, len(cut))
        struct.pack_into("<I", cut, 34, len(cut) - 54)
        refuses(io.BytesIO(bytes(cut)), "damaged or truncated")


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"quality": 100}], ids=str)
def test_a_webp_that_lacks_bytes_of_its_data_is_an_input_error(options: dict[str, Any], alpha: bool) -> None:
    """The last bytes, too, which may stand for much: here the lower half is of one colour."""
    pixels = picture(64, 64)
    pixels[32:] = 77
    image = PIL.Image.fromarray(pixels)
    if alpha:
        image.putalpha(PIL.Image.fromarray(picture(64, 64, 1)))
    stream = io.BytesIO()
    image.save(stream, "WEBP", **options)
    content = stream.getvalue()
    whole = decoded(content, COMPOSITE)
    read = chunks_of(content[12:])
    assert content == webp_of(read)
    for index, (name, body) in enumerate(read):
        for cut in (1, 2, 3, 5, 8, 13, len(body) // 3, len(body) // 2) if name != b"VP8X" else ():
            shorter = [*read[:index], (name, body[:-cut]), *read[index + 1 :]]
            try:
                found = decoded(webp_of(shorter), COMPOSITE)
            except InputError:
                continue
            assert cut <= 3  # what pads the data
            np.testing.assert_array_equal(found, whole)


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    if not content:
        return []
    length = struct.unpack_from("<I", content, 4)[0]
    return [(content[:4], content[8 : 8 + length]), *chunks_of(content[8 + length + length % 2 :])]


def webp_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    content = b"".join(name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def test_whole_webps_of_each_kind_are_read() -> None:
    image = PIL.Image.fromarray(COLOUR)
    for options in ({"lossless": True}, {}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}, {"lossless": True, "quality": 0}):
        stream = io.BytesIO()
        image.save(stream, "WEBP", **options)
        np.testing.assert_array_equal(decoded(stream.getvalue()), np.asarray(PIL.Image.open(stream).convert("RGB")))
    stream = io.BytesIO()
    image.save(stream, "WEBP", save_all=True, append_images=[image.rotate(90)], lossless=True)
    first = Preprocessing(size=16, frames="first")
    np.testing.assert_array_equal(decoded(stream.getvalue(), first), COLOUR)
    size = 12 + 8 + 4  # where its sides are
    smaller = bytearray(stream.getvalue())
    assert smaller[size] == COLOUR.shape[1] - 1
    smaller[size] += 1
    refuses(io.BytesIO(bytes(smaller)), "where the file says", first)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [(b"ALPH", b"\0\0\0\0")],
        [(b"VP8X", b"\0" * 10)],
        [(b"VP8L", b"")],
        [(b"VP8 ", b"\0" * 10)],
        [(b"VP8X", b""), (b"VP8L", b"\x2f\0\0\0\0")],
        [(b"VP8L", b"\x2f\0\0\0\0"), (b"VP8L", b"\x2f\0\0\0\0")],
        [(b"ALPH", b"\0\0\0\0"), (b"VP8L", b"\x2f\0\0\0\0")],
        [(b"VP8X", b"\0" * 10), (b"ANMF", b"\0" * 16)],
        [(b"VP8X", b"\0" * 10), (b"ANMF", b"\0" * 8)],
    ],
    ids=str,
)
def test_a_webp_without_one_whole_picture_is_an_input_error(chunks: list[tuple[bytes, bytes]]) -> None:
    refuses(io.BytesIO(webp_of(chunks)), "damaged or truncated")


def test_a_webp_where_pillow_has_no_libwebp_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(COLOUR, "WEBP")
    monkeypatch.setitem(sys.modules, "PIL._webp", None)
    monkeypatch.delattr("PIL._webp")
    webp._libwebp.cache_clear()
    refuses(io.BytesIO(content), "pip install pillow")


def test_a_bmp_of_run_lengths_is_an_input_error() -> None:
    """The rest of the picture after its end mark would be black."""
    head = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 62) + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, 4, 0, 0, 2, 0)
    refuses(io.BytesIO(head + bytes([0, 0, 0, 0, 9, 9, 9, 0]) + b"\x08\x01\x00\x01"), "run lengths")


def test_nothing_is_read_while_missing_pixels_would_be_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(COLOUR, kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")]
    lazy = PIL.Image.open(io.BytesIO(files[0]))
    in_memory = PIL.Image.fromarray(COLOUR)
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for content in files:
        refuses(io.BytesIO(content), "LOAD_TRUNCATED_IMAGES is set")
    refuses(lazy, "LOAD_TRUNCATED_IMAGES is set")
    load_image(in_memory, SMALL)
    load_image(COLOUR, SMALL, channel_order="rgb")
    monkeypatch.undo()
    for content in files:
        load_image(io.BytesIO(content), SMALL)
