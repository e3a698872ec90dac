import dataclasses
import warnings

import numpy as np
import pytest
from PIL import Image

from sprfast.data import figure, lettering
from sprfast.data.figure import Column, evaluation_figure, overlay, save_png
from sprfast.errors import InputError


def picture(height=96, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def map_with_blob(value=1.0):
    result = np.zeros((256, 256), np.float32)
    result[96:160, 96:160] = value
    return result


def column(title="scratch", seed=0, height=96, width=128):
    error_map = np.random.default_rng(seed).random((48, 64), dtype=np.float32)
    return Column(title, picture(height, width, seed), error_map, map_with_blob() > 0, 0.25)


@pytest.mark.parametrize("shape", [(96, 128), (300, 200), (1, 7), (256, 256)])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_overlay_has_the_geometry_of_the_source(shape, threshold):
    image = picture(*shape)
    before = image.copy()
    result = overlay(image, map_with_blob(), threshold)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    ("shape", "expected"), [((20, 200), (20, 200)), ((21, 200), (11, 100)), ((1, 9000), (1, 3000))]
)
def test_overlay_of_a_large_image_is_drawn_smaller(shape, expected, monkeypatch):
    monkeypatch.setattr(figure, "_MOST_PIXELS", 4000)
    image = np.full((*shape, 3), 77, np.uint8)
    result = overlay(image, map_with_blob(0.0), 0.5)
    assert result.shape == (*expected, 3)
    assert (result == 77).all()


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_overlay_leaves_the_image_unchanged_where_the_map_is_zero(threshold):
    image = picture(256, 256)
    anomaly_map = map_with_blob()
    result = overlay(image, anomaly_map, threshold)
    assert np.array_equal(result[anomaly_map == 0], image[anomaly_map == 0])
    assert not np.array_equal(result[anomaly_map > 0], image[anomaly_map > 0])
    assert np.array_equal(overlay(image, np.zeros((256, 256), np.float32), threshold), image)


def test_overlay_outlines_only_what_exceeds_the_threshold():
    image = np.full((256, 256, 3), 100, np.uint8)
    white = (overlay(image, map_with_blob(1.0), 0.8) == 255).all(axis=2)
    edge = np.zeros((256, 256), bool)
    edge[96:160, 96:160] = True
    edge[97:159, 97:159] = False
    assert np.array_equal(white, edge)
    for threshold in (1.0, 1.2, None):  # a pixel at the threshold does not exceed it
        assert not (overlay(image, map_with_blob(1.0), threshold) == 255).all(axis=2).any()


def test_overlay_colour_means_the_ratio_to_the_threshold():
    image = np.full((256, 256, 3), 100, np.uint8)
    center = (128, 128)
    assert np.array_equal(
        overlay(image, map_with_blob(3.0), 4.0)[center], overlay(image, map_with_blob(0.3), 0.4)[center]
    )
    low, at, high = (overlay(image, map_with_blob(value), 1.0)[center].astype(int) for value in (0.4, 1.0, 2.0))
    assert np.array_equal(low, image[center])
    assert at.argmax() == 1  # green
    assert high.argmax() == 0  # red
    assert np.array_equal(high, overlay(image, map_with_blob(50.0), 1.0)[center])


def test_overlay_with_a_negative_threshold_scales_by_the_map():
    result = overlay(np.full((256, 256, 3), 100, np.uint8), map_with_blob(), -1.0)
    assert (result[0, 0] == 255).all()  # all is above it: outlined at the border
    assert result[128, 128, 0] > 140 > result[128, 128, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_overlay_refuses_a_non_finite_map_or_threshold(bad):
    with pytest.raises(InputError, match="anomaly_map"):
        overlay(picture(), map_with_blob(bad), 0.5)
    with pytest.raises(InputError, match="threshold"):
        overlay(picture(), map_with_blob(), bad)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
)
def test_pictures_of_another_shape_or_type_are_input_errors(image, tmp_path):
    with pytest.raises(InputError, match=r"image: .* expected uint8 \(H, W, 3\)"):
        overlay(image, map_with_blob(), None)
    with pytest.raises(InputError, match=r"image: .* expected uint8 \(H, W, 3\)"):
        save_png(tmp_path / "a.png", image)


def test_save_png_keeps_every_pixel(tmp_path):
    rgb = picture()[:, ::-1]  # not contiguous
    save_png(tmp_path / "a.png", rgb)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), rgb)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "write", [lambda path: save_png(path, picture()), lambda path: evaluation_figure([column()], path)]
)
def test_a_missing_folder_is_an_input_error_and_leaves_nothing(write, tmp_path):
    with pytest.raises(InputError, match=r"missing.* cannot be written"):
        write(tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_evaluation_figure_is_the_same_bytes_again_and_grows_with_its_columns(tmp_path):
    columns = [column("good", 0), column("scratch", 1, 128, 96), column("blob", 2, 900, 100)]
    for name, count in (("a.png", 3), ("b.png", 3), ("one.png", 1)):
        evaluation_figure(columns[:count], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    wide, one = Image.open(tmp_path / "a.png"), Image.open(tmp_path / "one.png")
    assert wide.width > one.width + 500
    assert max(wide.size) < 2500  # a tall image does not make a giant figure


def test_evaluation_figure_shows_image_error_map_and_mask_from_top_to_bottom(tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    example = Column("good", red, np.zeros((64, 64), np.float32), np.ones((256, 256), bool), 0.25)
    evaluation_figure([example], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    line = pixels[:, round(pixels.shape[1] * 0.42)]  # down through the middle of the one column
    is_red, is_dark = (line == (255, 0, 0)).all(axis=1), (line.max(axis=1) < 10)
    assert is_red.sum() > 200
    assert is_dark.sum() > 200  # error map of zeros
    assert np.flatnonzero(is_red).max() < np.flatnonzero(is_dark)[-200:].min()
    assert (line[-200:] == 255).all()  # mask: all defect


def test_evaluation_figure_replaces_the_old_file_only_when_it_succeeds(tmp_path):
    path = tmp_path / "a.png"
    evaluation_figure([column()], path)
    old = path.read_bytes()
    nan_map = dataclasses.replace(column(), error_map=np.full((4, 4), np.nan, np.float32))
    float_mask = dataclasses.replace(column(), mask=np.zeros((256, 256)))
    for columns, match in (
        ([], "no columns"),
        ([column(), nan_map], "error_map: has a NaN"),
        ([float_mask], "mask: float64"),
    ):
        with pytest.raises(InputError, match=match):
            evaluation_figure(columns, path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "name",
    ["$", "a$b$", "$\\frac$", "划痕", "긁힘", "lot-\udcff", "\ud800", "a\nb", "\x1b[2J", "x" * 99, "划" * 99],
)
def test_a_figure_is_drawn_whatever_the_name(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of characters that a font lacks
        evaluation_figure([column(name), column("good")], tmp_path / "a.png")


def test_characters_without_a_font_are_code_points(monkeypatch):
    monkeypatch.setattr(lettering, "_font_with", lambda _: None)
    assert lettering.lettered("good é $x$") == ("good é $x$", {"family": ["sans-serif"], "parse_math": False})
    assert lettering.lettered("划痕 \udcff")[0] == r"\u5212\u75d5 \xff"


def test_characters_are_taken_from_an_installed_font_that_has_them(tmp_path, monkeypatch):
    from matplotlib import font_manager

    add_font(tmp_path / "a.ttf", "Sprfast Test", "划痕")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    broken = font_manager.FontEntry(str(tmp_path / "broken.ttf"), "A Broken Font", "normal", "normal", 400, "normal")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [broken, *font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(tmp_path / "a.ttf")
    lettering._font_with.cache_clear()
    drawn, options = lettering.lettered("划痕 x")
    lettering._font_with.cache_clear()
    assert (drawn, options["family"]) == ("划痕 x", ["sans-serif", "Sprfast Test"])


def add_font(path, family, characters):
    """A font with a square for each of these characters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for step, point in enumerate(((0, 0), (0, 500), (500, 500), (500, 0))):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    names = {ord(character): f"u{ord(character):x}" for character in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    glyph = pen.glyph()
    builder.setupGlyf(dict.fromkeys([".notdef", *names.values()], glyph))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
