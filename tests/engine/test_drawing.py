"""How a result looks."""

import dataclasses
import pickle

import numpy as np
import PIL.Image
import pytest

import sprfast
from sprfast.data import figure
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.method.threshold import relative


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(small_model, "eager", "cpu")


def test_a_repr_is_one_short_line_with_the_score_over_its_threshold(engine, pictures, tmp_path):
    for picture in (*pictures, tmp_path / "missing.png"):
        result = engine.predict(picture)
        said = repr(result)
        assert len(said) < 100
        assert said.startswith(f"Result({result.verdict}, ")
        assert (f"score/threshold {result.pred_score / 0.023:.2f}" in said) == (result.relative_score is not None)


def test_a_score_over_its_threshold_is_there_where_both_are():
    assert relative(3, 2) == 1.5
    for score, threshold in ((1, None), (None, 1), (1, 0), (1, -1), (float("nan"), 1), (float("inf"), 1)):
        assert relative(score, threshold) is None


def test_an_overlay_is_of_the_file_or_of_a_given_picture(engine, pictures):
    pixels = np.asarray(PIL.Image.open(pictures[3]))
    of_file, of_array = engine.predict(pictures[3]), engine.predict(pixels, channel_order="rgb")
    expected = figure.overlay(pixels, of_file.anomaly_map, of_file.map_threshold)
    np.testing.assert_array_equal(of_file.overlay(), expected)
    np.testing.assert_array_equal(of_array.overlay(pixels), expected)
    with pytest.raises(InputError, match=r"give the picture as a uint8 array: overlay\(image\)"):
        of_array.overlay()
    with pytest.raises(InputError, match="no anomaly map"):
        engine.predict("missing.png").overlay()


def test_a_saved_overlay_has_a_strip_with_the_score_under_it(engine, pictures, tmp_path):
    result = engine.predict(pictures[3])
    result.save(tmp_path / "out.png")
    saved = np.asarray(PIL.Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(saved[:32], result.overlay())
    assert saved.shape[0] >= 32 + 16
    assert saved[32:].max() > 200  # letters
    assert saved[32:].min() < 60


@pytest.mark.parametrize("width", [1, 40, 400])
def test_the_strip_takes_the_longest_text_that_fits(width):
    image = np.full((30, width, 3), 90, np.uint8)
    texts = ["PASS  score/threshold 0.50  score 0.01", "0.50"]
    chosen = figure.captioned(image, texts)
    expected = texts[0] if width == 400 else texts[1]
    np.testing.assert_array_equal(chosen, figure.captioned(image, [expected]))
    assert chosen.shape[1:] == (width, 3)


def test_a_notebook_shows_text_as_text_and_the_picture(engine, pictures, tmp_path):
    shown = engine.predict(pictures[0])._repr_html_()
    assert 'src="data:image/png;base64,' in shown
    broken = engine.predict(tmp_path / "<b>.png")._repr_html_()
    assert "<b>" not in broken
    assert "&lt;b&gt;.png" in broken
    moved = dataclasses.replace(engine.predict(pictures[0]), file=None)._repr_html_()
    assert "<img" not in moved
    assert "give the picture" in moved


def test_a_result_travels_to_another_process(engine, pictures):
    result = engine.predict(pictures[0])
    assert repr(pickle.loads(pickle.dumps(result))) == repr(result)


def test_the_face_lists_itself():
    assert dir(sprfast) == sorted(sprfast.__all__)
