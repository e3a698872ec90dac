"""Decoding: damaged and foreign files are refused; depths, colours and orientation are right."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.data.images import image_size, load_image, read_rgb
from support.pictures import COMPOSITE, SMALL, chunk, picture, png, refuses, saved, tiff

# --- damaged files


@pytest.mark.parametrize(
    "options",
    [
        {"format": "PNG"},
        {"format": "JPEG"},
        {"format": "JPEG", "progressive": True},
        {"format": "BMP"},
        {"format": "TIFF"},
        {"format": "TIFF", "compression": "tiff_lzw"},
        {"format": "WEBP"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_truncated_file_is_an_input_error(tmp_path: Path, options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(picture(64, 64)).save(stream, **options)
    whole = stream.getvalue()
    path = tmp_path / "a.png"
    path.write_bytes(whole)
    load_image(path, SMALL)
    for keep in (0.03, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * keep)])
        refuses(path, "damaged or truncated")


def test_flipped_bit_in_png_is_an_input_error(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(range(16)) for _ in range(16))
    whole = png(16, 16, 8, 0, rows)
    idat = whole.index(b"IDAT") + 4
    for position in (idat + 4, len(whole) - 12 - 8, len(whole) - 12 - 4):  # data, its Adler sum, the chunk's checksum
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        refuses(tmp_path / "a.png", "damaged")


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "empty"), (b"<!doctype html><p>404", "not a PNG, JPEG"), (png(0, 1, 8, 0, b""), "damaged")],
)
def test_zero_bytes_html_and_zero_pixels_are_input_errors(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    refuses(tmp_path / "a.png", match)


def test_missing_file_folder_pipe_and_nul_are_input_errors(tmp_path: Path) -> None:
    refuses(tmp_path / "none.png", "No such file")
    refuses(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "pipe.png")
    refuses(tmp_path / "pipe.png", "not a regular file")
    refuses("a\0.png", "cannot be read")


def test_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    for side in (10_000, 60_000):  # between Pillow's warning and error limits, and above
        (tmp_path / "a.png").write_bytes(png(side, side, 8, 0, b""))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            refuses(tmp_path / "a.png", f"{side}x{side} .* above max_pixels 89478485")


def test_own_pixel_limit_rules_over_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", picture(20, 30))
    refuses(path, "600 pixels, above max_pixels 599", Preprocessing(size=16, max_pixels=599))
    refuses(picture(20, 30), "above max_pixels 599", Preprocessing(size=16, max_pixels=599), channel_order="rgb")
    refuses(PIL.Image.new("L", (20, 30)), "above max_pixels 599", Preprocessing(size=16, max_pixels=599))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path, Preprocessing(max_pixels=600)) == (20, 30)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10
    refuses(saved(tmp_path / "a.tif", picture(20, 30)), "raise PIL.Image.MAX_IMAGE_PIXELS too")


# --- depths, modes, colour


def test_16_bit_grey_is_scaled_by_the_declared_depth(tmp_path: Path) -> None:
    values = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)  # 12 bits
    deep = Preprocessing(size=16, bit_depth=12)
    expected = values.astype(np.float32) / 4095 * 2 - 1
    for path in (
        saved(tmp_path / "a.png", values),
        saved(tmp_path / "a.tif", values),
        saved(tmp_path / "b.tif", PIL.Image.fromarray(values.astype(">u2"))),
    ):
        image = load_image(path, deep)
        for channel in image.pixels:
            np.testing.assert_array_equal(channel, expected)
        assert len(np.unique(image.pixels)) == 256
    np.testing.assert_array_equal(load_image(values, deep).pixels, image.pixels)
    assert read_rgb(tmp_path / "a.png", deep).max() == round(255 * 4080 / 4095)


def test_16_bit_grey_keeps_its_levels_through_the_resize(tmp_path: Path) -> None:
    values = np.tile(np.linspace(30000, 30100, 64).astype(np.uint16), (64, 1))  # less than one level of 8 bits
    image = load_image(saved(tmp_path / "a.png", values), SMALL)
    assert len(np.unique(image.pixels[0, 8])) == 16
    overshoot = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))).astype(np.uint16) * 65535
    assert np.abs(load_image(overshoot, SMALL).pixels).max() <= 1.0


def test_value_above_the_declared_depth_is_an_input_error(tmp_path: Path) -> None:
    values = np.full((16, 16), 4096, np.uint16)
    for source in (saved(tmp_path / "a.png", values), values):
        refuses(source, "4096; bit_depth 12 allows 0 to 4095", Preprocessing(size=16, bit_depth=12))
    refuses(PIL.Image.new("I", (16, 16), 70000), "70000; bit_depth 16")
    refuses(PIL.Image.new("I", (16, 16), -1), "-1")


def test_16_bit_colour_file_is_refused_as_pillow_would_cut_it_to_8(tmp_path: Path) -> None:
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        (tmp_path / "a.png").write_bytes(png(16, 16, 16, colour, (b"\0" + b"\x12\x34" * 16 * channels) * 16))
        refuses(tmp_path / "a.png", "would lose 8")
    for options in ({}, {"compression": "zlib"}):
        refuses(tiff(tmp_path / "a.tif", picture(dtype=np.uint16), photometric="rgb", **options), "would lose 8")
    assert load_image(picture(dtype=np.uint16), SMALL, channel_order="rgb").pixels.shape == (3, 16, 16)


def test_float_and_integer_tiff_are_input_errors(tmp_path: Path) -> None:
    refuses(saved(tmp_path / "f.tif", np.zeros((16, 16), np.float32)), "float")
    refuses(saved(tmp_path / "i.tif", np.full((16, 16), 2**20, np.int32)), "unsigned")
    refuses(tiff(tmp_path / "s.tif", np.zeros((16, 16), np.int8), photometric="minisblack"), "signed")
    refuses(tiff(tmp_path / "w.tif", np.zeros((16, 16), np.uint16), photometric="miniswhite"), "inverted")


def test_grey_1_bit_and_palette_are_converted(tmp_path: Path) -> None:
    grey = picture(channels=1)
    expected = np.stack([grey] * 3, -1)
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "l.png", grey), SMALL), expected)
    np.testing.assert_array_equal(
        load_image(tmp_path / "l.png", SMALL).pixels, load_image(expected, SMALL, channel_order="rgb").pixels
    )
    bits = PIL.Image.fromarray(grey > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "1.png", bits), SMALL)[..., 1], (grey > 127) * 255)
    palette = PIL.Image.fromarray(picture(channels=3)).quantize(16)
    np.testing.assert_array_equal(
        read_rgb(saved(tmp_path / "p.png", palette), SMALL), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a transparent colour"])
def test_alpha_is_refused_or_composited_over_black(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        image = PIL.Image.new("P", (16, 16), 1)
        image.putpalette([0, 0, 0, 200, 200, 200])
        saved(path, image, transparency=1)
    elif mode.startswith("RGB "):
        saved(path, PIL.Image.new("RGB", (16, 16), (200, 200, 200)), transparency=(200, 200, 200))
    else:
        saved(path, PIL.Image.new("RGBA", (16, 16), (200, 200, 200, 0)).convert(mode))
    refuses(path, "transparent pixels")
    assert read_rgb(path, COMPOSITE).max() == 0  # and not the hidden 200


def test_half_transparent_is_half_as_bright_and_opaque_alpha_is_accepted(tmp_path: Path) -> None:
    half = saved(tmp_path / "h.png", PIL.Image.new("RGBA", (16, 16), (200, 100, 0, 128)))
    assert read_rgb(half, COMPOSITE)[0, 0].tolist() == [100, 50, 0]
    opaque = saved(tmp_path / "o.png", PIL.Image.new("RGBA", (16, 16), (200, 100, 0, 255)))
    assert read_rgb(opaque, SMALL)[0, 0].tolist() == [200, 100, 0]


def test_16_bit_grey_with_a_transparent_value_is_an_input_error(tmp_path: Path) -> None:
    content = png(16, 16, 16, 0, (b"\0" + bytes(32)) * 16)
    at = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + chunk(b"tRNS", b"\0\0") + content[at:])
    refuses(tmp_path / "a.png", "transparent value", COMPOSITE)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("CMYK", "tif"), ("LAB", "tif"), ("F", "tif")])
def test_cmyk_lab_and_float_files_are_input_errors(tmp_path: Path, mode: str, suffix: str) -> None:
    refuses(saved(tmp_path / f"a.{suffix}", PIL.Image.new(mode, (16, 16))), "not accepted")


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBa", "La", "RGBX"])
def test_other_pil_modes_are_input_errors(mode: str) -> None:
    assert refuses(PIL.Image.new(mode, (16, 16)), "not accepted").startswith("PIL image: ")


# --- orientation, frames


@pytest.mark.parametrize(
    ("suffix", "deep"), [("png", False), ("jpg", False), ("tif", False), ("webp", False), ("png", True)]
)
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str, deep: bool) -> None:
    pixels = np.zeros((16, 32), np.uint16 if deep else np.uint8)
    pixels[:, :16] = 65535 if deep else 255  # left half white
    image = PIL.Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn a quarter clockwise: the left becomes the top
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif)
    turned = load_image(path, SMALL)
    assert turned.source_size == (32, 16)
    assert turned.pixels.shape == (3, 32, 16)
    assert turned.pixels[:, :15].min() > 0.8
    assert turned.pixels[:, 17:].max() < -0.8
    ignored = Preprocessing(size=16, orientation="ignore")
    as_stored = load_image(path, ignored)
    assert as_stored.source_size == image_size(path, ignored) == (16, 32)
    np.testing.assert_array_equal(as_stored.pixels, np.rot90(turned.pixels, 1, (1, 2)))


@pytest.mark.parametrize("policy", ["exif", "ignore"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "late.png"])
def test_size_by_the_header_is_that_of_the_oriented_picture(
    tmp_path: Path, suffix: str, orientation: int, policy: Literal["exif", "ignore"]
) -> None:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / f"a.{suffix}", PIL.Image.new("RGB", (30, 20)), exif=exif)
    if suffix == "late.png":  # a PNG may have the orientation after the pixels
        content = path.read_bytes()
        start, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4
        path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    given = Preprocessing(size=16, orientation=policy)
    assert image_size(path, given) == load_image(path, given).source_size
    assert image_size(path, given) == ((30, 20) if orientation == 6 and policy == "exif" else (20, 30))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_animated_and_multi_page_files_are_refused_or_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = saved(
        tmp_path / f"a.{suffix}",
        frames[0],
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if suffix == "webp" else {}),
    )
    refuses(path, "several frames")
    assert read_rgb(path, Preprocessing(size=16, frames="first"))[0, 0].tolist() == [255, 0, 0]
