"""HEIC files: the primary picture as the file turns it, in 8 bits and sRGB, or refused."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.data import heic
from sprfast.data.datasets import image_files
from sprfast.data.images import image_size, load_image, read_rgb
from sprfast.errors import BackendError, InputError
from support.fuzzing import attempt
from support.pictures import COMPOSITE, SMALL, Pixels, decoded, profile, refuses

pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'sprfast[heic]'")

SMOOTH = (np.add.outer(np.arange(64), np.arange(48)) * 2).astype(np.uint8)
COLOUR = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], -1)
TOLERANCE = 4  # of what the encoder loses


def encoded(*pixels: Pixels | PIL.Image.Image, **options: Any) -> bytes:
    """A file of these pictures, the first of which is the primary one."""
    stream, pictures = io.BytesIO(), pillow_heif.HeifFile()
    for each in pixels:
        pictures.add_from_pillow(each if isinstance(each, PIL.Image.Image) else PIL.Image.fromarray(each))
    pictures.save(stream, **{"quality": 100, "chroma": 444, **options})
    content: bytes = stream.getvalue()
    return content


def differ(content: bytes, pixels: Pixels, given: Preprocessing = SMALL) -> int:
    found = decoded(content, given).astype(int)
    assert found.shape[:2] == pixels.shape[:2]
    return int(np.abs(found - (pixels if pixels.ndim == 3 else pixels[..., None])).max())


@pytest.mark.parametrize("size", [(64, 48), (33, 17), (1, 1)])
def test_the_pixels_are_those_that_were_saved(tmp_path: Path, size: tuple[int, int]) -> None:
    for pixels in (COLOUR[: size[0], : size[1]], SMOOTH[: size[0], : size[1]]):
        path = tmp_path / "a.HEIC"
        path.write_bytes(encoded(pixels))
        assert differ(path.read_bytes(), pixels) <= TOLERANCE
        assert image_size(path, SMALL) == size
        assert image_files([tmp_path]) == [path]
        assert load_image(path, SMALL).source_size == size


def test_a_picture_in_tiles_is_whole() -> None:
    pixels = np.tile(COLOUR, (3, 3, 1))
    content = encoded(pixels, tile_size=64)
    assert pillow_heif.open_heif(content).info["tiling"]["num_rows"] == 3
    assert differ(content, pixels) <= TOLERANCE


@pytest.mark.parametrize("policy", ["exif", "ignore"])
def test_a_picture_is_turned_once_as_its_container_says(policy: Any) -> None:
    """And not by EXIF, which says 6 throughout; the encoder turns the pixels by that too."""
    given, exif = Preprocessing(size=16, orientation=policy), PIL.Image.Exif()
    exif[274] = 6
    image = PIL.Image.fromarray(COLOUR)
    image.info["exif"] = exif.tobytes()
    content = encoded(image)
    at = content.index(b"irot") + 4  # in quarters, against the clock
    for quarters in range(4):
        turned = np.rot90(COLOUR, 3 + quarters)
        changed = io.BytesIO(content[:at] + bytes([quarters]) + content[at + 1 :])
        assert differ(changed.getvalue(), turned, given) <= TOLERANCE
        assert load_image(changed, given).source_size == turned.shape[:2]


def test_a_profile_is_converted_to_srgb() -> None:
    image = PIL.Image.fromarray(COLOUR)
    image.info["icc_profile"] = profile("Display P3")
    found = decoded(encoded(image))
    expected = PIL.Image.fromarray(decoded(encoded(COLOUR)))
    expected.info["icc_profile"] = profile("Display P3")
    stream = io.BytesIO()
    expected.save(stream, "PNG", icc_profile=profile("Display P3"))
    assert np.abs(found.astype(int) - decoded(stream.getvalue())).max() <= TOLERANCE
    assert np.abs(found.astype(int) - COLOUR).max() > 20
    refuses(io.BytesIO(encoded(image)), "'Display P3' is not accepted", Preprocessing(size=16, profiles="refuse"))


def test_of_several_pictures_the_primary_one_is_read_and_a_sequence_is_refused() -> None:
    content = encoded(COLOUR[::-1], COLOUR, primary_index=1)
    assert len(pillow_heif.open_heif(content)) == 2
    assert differ(content, COLOUR) <= TOLERANCE
    sequence = content[:8] + b"hevc" + content[12:]
    refuses(io.BytesIO(sequence), "several frames")
    assert differ(sequence, COLOUR, Preprocessing(size=16, frames="first")) <= TOLERANCE


def test_alpha_is_refused_or_composited() -> None:
    image = PIL.Image.fromarray(COLOUR)
    image.putalpha(255)
    assert differ(encoded(image), COLOUR) <= TOLERANCE
    image.putalpha(0)
    refuses(io.BytesIO(encoded(image)), "has transparent pixels")
    assert decoded(encoded(image), COMPOSITE).max() == 0


def test_other_colours_and_depths_are_input_errors() -> None:
    wide = encoded(COLOUR, color_primaries=9, matrix_coefficients=9)
    refuses(io.BytesIO(wide), "colours are not those of sRGB .primaries 9, curve 13")
    perceptual = encoded(COLOUR, transfer_characteristics=16)
    refuses(io.BytesIO(perceptual), "colours are not those of sRGB .primaries 1, curve 16")
    stream = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (48, 64), (COLOUR.astype(np.uint16) * 257).tobytes()).save(stream)
    refuses(stream, "HEIC with 10 bits a channel would lose some of them")


NOISY = np.tile(COLOUR, (3, 3, 1)) // 2 + np.random.default_rng(0).integers(0, 100, (192, 144, 3), np.uint8)


@pytest.mark.parametrize("options", [{}, {"tile_size": 64}, {"enc_params": {"x265:wpp": "0"}}])
def test_a_file_that_lacks_a_part_of_its_pixels_is_an_input_error(options: dict[str, Any]) -> None:
    """Cut, or with zeros where the rest was never written; a decoder shows both without a word."""
    whole = encoded(NOISY, **options)
    assert decoded(whole).shape == NOISY.shape
    start = whole.index(b"mdat") + 12
    for at in range(start, len(whole) - 8, 997):
        refuses(io.BytesIO(whole[:at]), "damaged or truncated")
        refuses(io.BytesIO(whole[:at] + bytes(len(whole) - at)), "damaged or truncated")
        refuses(io.BytesIO(whole[:at] + bytes(8) + whole[at + 8 :]), "damaged or truncated")
    made_up = pillow_heif.open_heif(whole[: -len(whole) // 3] + bytes(len(whole) // 3 + 1))
    assert np.asarray(made_up[0]).shape == NOISY.shape


def test_a_damaged_table_is_an_input_error_or_harmless() -> None:
    whole = encoded(COLOUR)
    for at in range(4, whole.index(b"mdat")):
        for value in (0, 255):
            content = bytearray(whole)
            content[at] = value
            found = attempt(
                lambda content=content: load_image(io.BytesIO(content), SMALL), "file in memory", InputError
            )
            assert found is None or np.abs(found.pixels).max() <= 1


def test_it_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def pixels(image: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(heic, "pixels", pixels)
    refuses(io.BytesIO(encoded(COLOUR)), "64x48 .* above max_pixels", Preprocessing(max_pixels=3000))
    long = encoded(COLOUR) + struct.pack(">I4s", 2**24 + 10_000, b"free") + bytes(2**24 + 10_000)
    refuses(io.BytesIO(long), "bytes are more than the")
    avif = encoded(COLOUR).replace(b"hvc1", b"av01").replace(b"hvcC", b"av1C")
    refuses(io.BytesIO(avif), "damaged or truncated")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(encoded(COLOUR))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (load_image, read_rgb, image_size):
        with pytest.raises(BackendError, match=r"pillow_heif cannot be imported \(.*\): pip install 'sprfast\[heic\]'"):
            read(path, SMALL)
