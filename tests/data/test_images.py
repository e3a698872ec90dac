"""The image contract: what is accepted gives the right pixels, what is not is an InputError that
names it.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest

from sprfast.config import Preprocessing
from sprfast.data import datasets
from sprfast.data.images import display_name, load_image, load_mask, network_size, read_rgb
from sprfast.errors import InputError, ModelFileError
from sprfast.formats import manifest
from support.pictures import SMALL, Pixels, picture, png, refuses, saved

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


# --- sizes and masks


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


def test_a_mask_of_labels_counts_all_but_zero(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_counts_above_half_of_the_value_range(tmp_path: Path, dtype: Any) -> None:
    """A mask that was resampled or saved as JPEG has a fringe of other values."""
    top = np.iinfo(dtype).max
    values = np.array([[0, 3, top // 2, top // 2 + 1, top - 2, top]], dtype)
    for pixels in (values, *([np.stack([values * 0, values, values // 3], axis=-1)] if dtype == np.uint8 else [])):
        loaded = load_mask(saved(tmp_path / "m.png", np.repeat(pixels, 6, axis=0)), 6)
        assert loaded[0].tolist() == [False, False, False, True, True, True]
    disc = np.hypot(*np.indices((64, 64)) - 32) < 9
    jpeg = saved(tmp_path / "m.jpg", (disc * 255).astype(np.uint8))
    assert (load_mask(jpeg, 64) != disc).sum() < 9


@pytest.mark.parametrize(("height", "width"), [(40, 30), (64, 64), (100, 5), (5, 100), (33, 16)])
def test_no_defect_is_lost_in_shrinking_a_mask(tmp_path: Path, height: int, width: int) -> None:
    for row, column in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        mask = np.zeros((height, width), np.uint8)
        mask[row, column] = 255
        loaded = load_mask(saved(tmp_path / "m.png", mask), 16)
        assert loaded.any()
        if min(height, width) >= 16:
            assert loaded[row * 16 // height, column * 16 // width]
            assert loaded.sum() == 1


def test_a_mask_is_enlarged_by_the_pixel_under_each_centre(tmp_path: Path) -> None:
    mask = picture(7, 11, 1) > 100
    nearest = PIL.Image.fromarray(mask).resize((16, 16), PIL.Image.Resampling.NEAREST)
    np.testing.assert_array_equal(load_mask(saved(tmp_path / "m.png", mask), 16), np.asarray(nearest))


def test_a_mask_that_is_mostly_marked_is_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for share, said in ((0.5, []), (0.75, ["m.png: marks 75% of the image as defective; is it inverted?"])):
        mask = (np.arange(64).reshape(8, 8) < 64 * share).astype(np.uint8) * 255
        assert load_mask(saved(tmp_path / "m.png", mask), 8).mean() == share
        assert [str(each.message).rpartition("/")[2] for each in recwarn] == said


# --- what the machine lacks


def test_what_the_machine_lacks_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses("/proc/self/mem", "cannot be read .Input/output error")  # reading its beginning fails so
    path = saved(tmp_path / "a.png", picture(20, 30))

    def short(*_: object, **__: object) -> None:
        raise MemoryError

    for place in ("load", "resize", "split"):
        with monkeypatch.context() as patch:
            patch.setattr(PIL.Image.Image, place, short)
            refuses(path, "too large for the memory")
    with monkeypatch.context() as patch:
        patch.setattr(PIL.Image.Image, "resize", short)
        refuses(picture(20, 30), "array: too large for the memory", channel_order="rgb")


def test_a_name_that_becomes_a_pipe_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(os, "stat", lambda *_, **__: os.lstat(__file__))  # a look before would see a file
    monkeypatch.setattr(os.path, "isfile", lambda _: True)
    refuses(tmp_path / "pipe.png", "not a regular file")
    with pytest.raises(InputError, match="not a regular file"):
        datasets.digest(tmp_path / "pipe.png")
    with pytest.raises(ModelFileError, match="not a regular file"):
        manifest.file_bytes(tmp_path / "pipe.png")


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
