"""The image contract: what is accepted gives the right pixels, what is not is an InputError that
names it.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageFile
import pytest
from PIL import ImageCms

from sprfast.config import Preprocessing
from sprfast.data.images import display_name, image_size, load_image, load_mask, network_size, read_rgb
from sprfast.errors import InputError

SMALL = Preprocessing(size=16)
COMPOSITE = Preprocessing(size=16, alpha="composite")
Pixels = npt.NDArray[Any]


def picture(height: int = 16, width: int = 16, channels: int = 3, dtype: Any = np.uint8) -> Pixels:
    values = np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)
    return values[..., 0] if channels == 1 else values


def saved(path: Path, image: PIL.Image.Image | Pixels, **options: Any) -> Path:
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(path, **options)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(path: Path, pixels: Pixels, **options: Any) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, pixels, **options)
    return path


def refuses(source: Any, match: str, preprocessing: Preprocessing = SMALL, **options: Any) -> str:
    with pytest.raises(InputError, match=match) as caught:
        load_image(source, preprocessing, **options)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(source, Path):
        assert message.startswith(str(source))
    return message


# --- what the pixels are


def test_rgb_png_is_scaled_to_minus_one_to_one(tmp_path: Path) -> None:
    pixels = picture()
    image = load_image(saved(tmp_path / "a.png", pixels), SMALL)
    assert image.pixels.dtype == np.float32
    assert image.pixels.flags.c_contiguous
    assert image.source_size == (16, 16)
    np.testing.assert_array_equal(image.pixels, pixels.transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1)
    assert load_image(np.full((16, 16), 255, np.uint8), SMALL).pixels.max() == 1.0
    assert load_image(np.zeros((16, 16), np.uint8), SMALL).pixels.min() == -1.0


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_a_file_in_memory_is_the_same_picture_wherever_the_reader_stands(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", picture(50, 70))
    content = io.BytesIO(path.read_bytes())
    for position in (0, 20):
        content.seek(position)
        image = load_image(content, SMALL)
        np.testing.assert_array_equal(image.pixels, load_image(path, SMALL).pixels)
        assert image.source_size == (50, 70)
        assert content.tell() == position


def test_bytes_in_memory_that_are_no_picture_are_input_errors() -> None:
    closed = io.BytesIO(png(16, 16, 8, 0, (b"\0" + bytes(16)) * 16))
    assert load_image(closed, SMALL).source_size == (16, 16)
    refuses(io.BytesIO(closed.getvalue()[:-20]), "file in memory: .*damaged or truncated")
    refuses(closed, "for arrays only", channel_order="rgb")
    closed.close()
    for source, match in (
        (io.BytesIO(), "empty"),
        (io.BytesIO(b"<p>404"), "not a PNG, JPEG"),
        (closed, "cannot be read .*closed"),
    ):
        refuses(source, f"file in memory: .*{match}")


def test_resize_is_pillows_lanczos_on_8_bit_rgb() -> None:
    pixels = picture(50, 70)
    resized = PIL.Image.fromarray(pixels).resize((22, 16), PIL.Image.Resampling.LANCZOS)
    expected = np.asarray(resized).transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1
    np.testing.assert_array_equal(load_image(pixels, SMALL, channel_order="rgb").pixels, expected)


def test_file_pil_image_and_array_give_the_same_bits(tmp_path: Path) -> None:
    for channels, order in ((3, "rgb"), (1, None)):
        pixels = picture(37, 23, channels)
        expected = load_image(saved(tmp_path / "a.png", pixels), SMALL).pixels
        np.testing.assert_array_equal(load_image(PIL.Image.fromarray(pixels), SMALL).pixels, expected)
        np.testing.assert_array_equal(load_image(pixels, SMALL, channel_order=order).pixels, expected)  # type: ignore[arg-type]


def test_format_is_told_by_content(tmp_path: Path) -> None:
    pixels = picture()
    forms: list[tuple[str, dict[str, Any]]] = [
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ]
    for number, (kind, options) in enumerate(forms):
        path = saved(tmp_path / f"{number}.png", pixels, format=kind, **options)
        np.testing.assert_array_equal(read_rgb(path, SMALL), pixels)
    jpeg = saved(tmp_path / "j.bmp", np.full((16, 16, 3), 200, np.uint8), format="JPEG")
    assert abs(int(read_rgb(jpeg, SMALL).mean()) - 200) <= 2


def test_16_bit_bmp_is_8_bit_colour(tmp_path: Path) -> None:
    rows = b"".join(struct.pack("<H", 0b0_11111_00000_00000) * 2 for _ in range(2))  # red, 5 bits a channel
    header = struct.pack("<2sIHHI", b"BM", 54 + len(rows), 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, len(rows), 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(header + rows)
    assert read_rgb(tmp_path / "a.bmp", SMALL)[0, 0].tolist() == [255, 0, 0]


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
@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.filterwarnings("ignore:unexpected end of file:UserWarning")
def test_truncated_file_is_an_input_error(
    tmp_path: Path, options: dict[str, Any], tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(picture(64, 64)).save(stream, **options)
    whole = stream.getvalue()
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    path = tmp_path / "a.png"
    path.write_bytes(whole)
    load_image(path, SMALL)
    for keep in (0.03, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * keep)])
        refuses(path, "damaged or truncated")
    assert PIL.ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


@pytest.mark.parametrize("tolerant", [False, True])
def test_flipped_bit_in_png_is_an_input_error(tmp_path: Path, tolerant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
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
    refuses(saved(tmp_path / "i.tif", np.full((16, 16), 2**20, np.int32)), "1048576")
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


def test_colour_profile_is_refused_unless_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    wide = srgb.replace("sRGB".encode("utf-16-be"), "wRGB".encode("utf-16-be")).replace(b"sRGB", b"wRGB")
    image = PIL.Image.new("RGB", (16, 16), (9, 8, 7))
    for suffix in ("png", "tif", "webp"):
        assert load_image(saved(tmp_path / f"a.{suffix}", image, icc_profile=srgb), SMALL).pixels.shape == (3, 16, 16)
        for profile in (lab, wide):
            refuses(saved(tmp_path / f"a.{suffix}", image, icc_profile=profile), "colour profile '.*' is not accepted")
        refuses(saved(tmp_path / f"a.{suffix}", image, icc_profile=b"no profile"), "profile cannot be read")


# --- orientation, frames, sizes


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
    refuses(path, "3 frames")
    assert read_rgb(path, Preprocessing(size=16, frames="first"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, (192, 192)), (200, 5000, (192, 4800)), (333, 101, (633, 192)), (192, 193, (192, 193))],
)
def test_fit_keeps_the_aspect_and_rounds_down(height: int, width: int, expected: tuple[int, int]) -> None:
    assert network_size(height, width, Preprocessing()) == expected
    assert load_image(np.zeros((height, width), np.uint8), Preprocessing()).pixels.shape == (3, *expected)
    assert network_size(height, width, Preprocessing(size_policy="stretch")) == (192, 192)


def test_size_policies_refuse_what_they_must() -> None:
    refuses(np.zeros((10, 11), np.uint8), "array: 10x11 .* not square", Preprocessing(size=16, size_policy="refuse"))
    assert network_size(10, 10, Preprocessing(size=16, size_policy="refuse")) == (16, 16)
    refuses(np.zeros((1, 30000), np.uint8), "limit of 4194304")
    assert load_image(np.zeros((1, 30000), np.uint8), Preprocessing(size=16, size_policy="stretch")).pixels.shape == (
        3,
        16,
        16,
    )
    with pytest.raises(InputError, match="at least one"):
        network_size(0, 5, SMALL)


def test_mask_is_nonzero_by_nearest(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[1, 2] = 1
    expected = np.kron(mask, np.ones((2, 2))) > 0
    palette = PIL.Image.fromarray(mask).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 9])
    green = np.stack([mask * 0, mask, mask * 0], axis=-1)
    forms = [palette, *(PIL.Image.fromarray(pixels) for pixels in (mask, mask > 0, mask.astype(np.uint16), green))]
    for image in forms:
        loaded = load_mask(saved(tmp_path / "m.png", image), 8)
        assert loaded.dtype == np.bool_
        np.testing.assert_array_equal(loaded, expected)
    assert load_mask(tmp_path / "m.png").shape == (256, 256)
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"m\.png: the file is empty"):
        load_mask(tmp_path / "m.png")


# --- arrays


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.001, 1.001])
def test_float_array_that_is_not_finite_or_out_of_range_is_an_input_error(bad: float) -> None:
    values = np.full((16, 16, 3), 0.5, np.float32)
    assert np.abs(load_image(values, SMALL, channel_order="rgb").pixels).max() == 0.0
    values[3, 4, 1] = bad
    refuses(values, "array: .*finite", channel_order="rgb")


def test_channel_order_is_required_for_colour_arrays_only(tmp_path: Path) -> None:
    pixels = picture()
    rgb = load_image(pixels, SMALL, channel_order="rgb").pixels
    np.testing.assert_array_equal(load_image(pixels[..., ::-1], SMALL, channel_order="bgr").pixels, rgb)
    np.testing.assert_array_equal(load_image(pixels, SMALL, channel_order="bgr").pixels, rgb[::-1])
    for order in (None, "grey", "RGB"):
        refuses(pixels, "expected 'rgb' or 'bgr'", channel_order=order)
    refuses(pixels[..., :1], "expected None or 'grey'", channel_order="rgb")
    refuses(saved(tmp_path / "a.png", pixels), "for arrays only", channel_order="rgb")
    refuses(PIL.Image.fromarray(pixels), "for arrays only", channel_order="bgr")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((16, 16), np.float64),
        np.zeros((16, 16), np.int64),
        np.zeros((16, 16), np.bool_),
        np.zeros((16, 16), object),
        np.zeros((16, 16), ">u2"),
        np.zeros((16, 16), ">f4"),
        np.zeros(16, np.uint8),
        np.zeros((16, 16, 2), np.uint8),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((1, 3, 16, 16), np.uint8),
        np.ma.masked_array(np.zeros((16, 16), np.uint8)),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_wrong_dtype_rank_or_channels_is_an_input_error_that_lists_the_accepted_forms(array: Pixels) -> None:
    message = refuses(array, "array: ")
    assert "uint8, uint16 or float32" in message
    assert "(H, W, 3)" in message


def test_empty_arrays_and_other_objects_are_input_errors() -> None:
    refuses(np.zeros((0, 16), np.uint8), "at least one")
    for source in (None, 3, b"a.png", [[0]]):
        refuses(source, "accepted are a path, a PIL image, a numpy array or a file in io.BytesIO")


def padded(pixels: Pixels) -> Pixels:
    buffer = np.zeros((pixels.shape[0], pixels.shape[1] + 5, *pixels.shape[2:]), pixels.dtype)
    buffer[:, :-5] = pixels
    return buffer[:, :-5]


STRIDES: dict[str, Callable[[Pixels], Pixels]] = {
    "negative": lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1],
    "every second": lambda pixels: np.repeat(np.repeat(pixels, 2, 0), 2, 1)[::2, ::2],
    "Fortran": np.asfortranarray,
    "padded rows": padded,
}


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_strides_give_the_same_bits_and_the_input_is_never_written(strides: str, dtype: Any) -> None:
    for channels, order in ((3, "bgr"), (1, None)):
        pixels = (
            picture(21, 18, channels) if dtype != np.float32 else picture(21, 18, channels).astype(np.float32) / 255
        )
        pixels = pixels.astype(dtype)
        expected = load_image(pixels, SMALL, channel_order=order).pixels  # type: ignore[arg-type]
        view = STRIDES[strides](pixels)
        view.flags.writeable = False
        before = view.copy()
        loaded = load_image(view, SMALL, channel_order=order)  # type: ignore[arg-type]
        np.testing.assert_array_equal(loaded.pixels, expected)
        np.testing.assert_array_equal(view, before)
        assert not np.shares_memory(loaded.pixels, view)


def test_pil_image_is_not_changed() -> None:
    image = PIL.Image.fromarray(picture(32, 16))
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    assert load_image(image, SMALL).source_size == (16, 32)
    assert image.size == (16, 32)
    assert image.tobytes() == before


def test_pil_tiff_counts_as_the_caller_has_it(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(picture(16, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.tif", image, exif=exif)
    ignored = Preprocessing(size=16, orientation="ignore")
    with PIL.Image.open(path) as lazy, PIL.Image.open(path) as loaded:
        loaded.load()
        assert load_image(lazy, ignored).source_size == load_image(loaded, ignored).source_size == (32, 16)


# --- names


@pytest.mark.parametrize("name", ["grün 検査.png", "e\u0301.png", " a b .png", "x" * 251 + ".png", "line\nbreak.png"])
def test_unusual_names_work(tmp_path: Path, name: str) -> None:
    load_image(saved(tmp_path / name, picture()), SMALL)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_image(tmp_path / name, SMALL)
    assert str(caught.value) == f"{display_name(tmp_path / name)}: the file is empty"
    assert "\n" not in str(caught.value)


def test_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_image(path, SMALL)
    str(caught.value).encode("utf-8")
    assert r"/\xff.png: the file is empty" in str(caught.value)
