"""Colour profiles: sRGB stays as it is, other RGB becomes it, the rest is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms

from sprfast.config import Preprocessing
from sprfast.data.images import load_image, read_rgb
from support.pictures import COMPOSITE, SMALL, Pixels, picture, profile, refuses, saved

P3 = profile("Display P3")
REFUSE = dataclasses.replace(SMALL, profiles="refuse")
SRGB_OF_P3 = np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]])


def as_srgb(pixels: Pixels) -> Pixels:
    """By the definitions of Display P3 and sRGB, in float, (H, W, 3)."""
    values = pixels / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ SRGB_OF_P3.T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_display_p3_becomes_srgb(tmp_path: Path, suffix: str) -> None:
    pixels = picture(40, 30)
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", pixels, icc_profile=P3, **options)
    with PIL.Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    found = read_rgb(path, SMALL)
    assert np.abs(found - as_srgb(stored)).max() < 2
    assert np.abs(found.astype(int) - stored).max() > 20
    refuses(path, "colour profile 'Display P3' is not accepted; convert the file to sRGB", REFUSE)


def test_a_picture_of_several_bands_is_converted_throughout() -> None:
    pixels = np.broadcast_to(np.array([200, 60, 90], np.uint8), (700, 500, 3))
    image = PIL.Image.fromarray(pixels)
    image.info["icc_profile"] = P3
    before = image.tobytes()
    found = load_image(image, SMALL).pixels
    assert np.ptp(found.reshape(3, -1), axis=1).max() == 0
    assert np.abs((found[:, 0, 0] + 1) * 127.5 - as_srgb(pixels)[0, 0]).max() < 2
    assert image.tobytes() == before


def test_palettes_and_alpha_are_converted_too(tmp_path: Path) -> None:
    pixels = np.broadcast_to(np.array([250, 30, 30], np.uint8), (16, 16, 3))
    expected = as_srgb(pixels)[0, 0]
    palette = PIL.Image.fromarray(pixels).convert("P", palette=PIL.Image.Palette.ADAPTIVE)
    clear = PIL.Image.fromarray(pixels).convert("RGBA")
    clear.putpixel((3, 3), (250, 30, 30, 0))
    for image in (palette, clear):
        found = read_rgb(saved(tmp_path / "a.png", image, icc_profile=P3), COMPOSITE)
        assert np.abs(found[0, 0] - expected).max() < 2
    assert found[3, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("policy", [SMALL, REFUSE])
def test_srgb_and_grey_of_gamma_2_2_are_as_they_are(tmp_path: Path, policy: Preprocessing) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = picture()
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"a.{suffix}", pixels, icc_profile=srgb)
        np.testing.assert_array_equal(read_rgb(path, policy), pixels)
    grey = saved(tmp_path / "b.png", pixels[..., 0], icc_profile=profile("Gray Gamma 2.2", b"GRAY"))
    np.testing.assert_array_equal(read_rgb(grey, policy)[..., 1], pixels[..., 0])


def test_other_profiles_are_input_errors(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    rgb, grey = picture(), picture(channels=1)
    for pixels, embedded, match in (
        (rgb, lab, "it is one of Lab in a picture of mode RGB, and only RGB profiles of 8-bit RGB are converted"),
        (grey, profile("Dot Gain 20%", b"GRAY"), "'Dot Gain 20%' is not accepted: it is one of GRAY in a picture of"),
        (grey.astype(np.uint16) * 257, P3, "it is one of RGB in a picture of mode I;16"),
        (grey, P3, "it is one of RGB in a picture of mode L"),
        (rgb, P3.replace(b"mntr", b"link"), "'Display P3' is not accepted"),
        (rgb, P3.replace(b"rXYZ", b"xXYZ"), "'Display P3' cannot be converted"),
        (rgb, b"no profile", "profile cannot be read"),
    ):
        refuses(saved(tmp_path / "a.png", pixels, icc_profile=embedded), match)


def test_a_contract_without_a_word_on_profiles_refuses_them() -> None:
    """That of a model file from before they were converted."""
    before = Preprocessing().to_json()
    del before["profiles"]
    assert Preprocessing.from_json(before) == dataclasses.replace(Preprocessing(), profiles="refuse")
    assert Preprocessing.from_json(Preprocessing().to_json()).profiles == "convert"


def test_the_primary_picture_of_several_in_a_jpeg_is_read(tmp_path: Path) -> None:
    first, second = (PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "lime"))
    path = saved(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    alone = read_rgb(saved(tmp_path / "b.jpg", first), SMALL)
    np.testing.assert_array_equal(read_rgb(path, SMALL), alone)
    with PIL.Image.open(path) as image:
        assert image.format == "MPO"
        np.testing.assert_array_equal(load_image(image, SMALL).pixels, load_image(path, SMALL).pixels)
    refuses(io.BytesIO(path.read_bytes()[:500]), "damaged or truncated")
