"""The choice of a scoring mode: by which images, by what figure, and that it promises nothing."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from sprfast.config import PUBLISHED
from sprfast.data import images
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.evaluation import calibration, choice
from sprfast.evaluation.choice import Tried
from sprfast.method.scoring_mode import ScoringMode
from support.line_cases import frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def good(folder):
    return written(folder, "good", 5, 100)


@pytest.fixture(scope="module")
def bad(folder):
    return written(folder, "bad", 3, 200)


@pytest.fixture
def predictor_of(small_model):
    return lambda mode: Engine(dataclasses.replace(small_model, scoring_mode=mode), "eager", "cpu")


def written(folder, kind, count, seed):
    paths = [folder / f"{kind}{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        PIL.Image.fromarray(frame(seed + index)).save(path)
    return paths


def above(bad, good):
    return np.mean([[one > other for other in good] for one in bad])


def test_the_highest_figure_is_best_and_of_equals_the_fewest_passes():
    three, one, two = Tried("a", 3, 0.9), Tried("b", 1, 0.9), Tried("c", 2, 0.8)
    assert choice.best([three, one, two]) is one
    assert choice.best([one, three, Tried("d", 3, 0.91)]).setting == "d"
    assert choice.best([one, Tried("e", 1, 0.9)]) is one


def test_a_figure_is_the_mean_of_two_halves_each_scored_by_what_was_fitted_on_the_other(predictor_of, good, bad):
    tried = choice.try_all(ScoringMode(), predictor_of, good, bad)
    assert [each.setting for each in tried] == [PUBLISHED, *calibration.SETTINGS]
    assert [each.passes for each in tried] == [3, 1, 1, 2, 1]
    for name in ("field", "multi"):
        found = []
        for fit, apart in ((good[::2], good[1::2]), (good[1::2], good[::2])):
            engine = predictor_of(calibration.fitted(calibration.SETTINGS[name], predictor_of, fit))
            scores = [[result.pred_score for result in engine.predict(paths)] for paths in (apart, bad)]
            found.append(above(scores[1], scores[0]))
        assert next(each.auroc for each in tried if each.setting == name) == pytest.approx(np.mean(found))


def test_without_bad_images_painted_ones_are_held_against_the_same_images_unpainted(
    predictor_of, small_model, good, monkeypatch
):
    monkeypatch.setattr(calibration, "SETTINGS", {})  # the published one is enough
    tried = choice.try_all(ScoringMode(), predictor_of, good, [])
    engine, found = predictor_of(ScoringMode()), []
    for half in (good[1::2], good[::2]):
        painted = [x for chunk in choice.painted(half, small_model.preprocessing) for _, x in chunk]
        assert len(painted) == choice.PAINTED * len(half)
        scores = [[result.pred_score for result in engine.predict(each)] for each in (painted, half)]
        found.append(above(*scores))
    assert tried[0].auroc == pytest.approx(np.mean(found))
    assert 0.0 < tried[0].auroc < 1.0


def test_painted_images_are_the_same_in_every_call_and_painted_differently(small_model, good):
    first, second = (
        [each for chunk in choice.painted(good, small_model.preprocessing) for each in chunk] for _ in range(2)
    )
    assert [path for path, _ in first] == [path for path in good for _ in range(choice.PAINTED)]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(first, second, strict=True))
    assert len({x.numpy().tobytes() for _, x in first}) == len(first)
    for path, x in first:
        changed = (x.numpy() != images.load_image(path, small_model.preprocessing).pixels).any(axis=0)
        assert 0 < changed.sum() < changed.size


def test_images_of_several_sizes_are_painted(small_model, good, tmp_path):
    PIL.Image.fromarray(frame(1, (40, 80, 3))).save(tmp_path / "wide.png")
    found = [x for chunk in choice.painted([*good, tmp_path / "wide.png"], small_model.preprocessing) for _, x in chunk]
    assert [tuple(x.shape) for x in found[-choice.PAINTED - 1 :]] == [(3, 32, 32)] + [(3, 32, 64)] * choice.PAINTED


def test_an_error_field_is_left_out_where_sizes_differ(predictor_of, good, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SETTINGS", {name: calibration.SETTINGS[name] for name in ("noiseless", "field")})
    PIL.Image.fromarray(frame(1, (40, 80, 3))).save(tmp_path / "wide.png")
    wide = tmp_path / "wide.png"
    for paths, bad in (([*good[:2], wide], good[3:4]), (good[:2], [wide])):
        tried = choice.try_all(ScoringMode(), predictor_of, paths, bad)
        assert [each.setting for each in tried] == [PUBLISHED, "noiseless"]


def test_one_good_image_is_too_few_to_choose_by(predictor_of, good):
    with pytest.raises(InputError, match="--setting auto: needs at least 2 good images to choose by, got 1"):
        choice.try_all(ScoringMode(), predictor_of, good[:1], [])


def test_a_painted_image_whose_score_is_no_number_is_named(small_model, good):
    weights = {**small_model.weights, "outc.conv.weight": small_model.weights["outc.conv.weight"] * 1e30}
    engine = Engine(dataclasses.replace(small_model, weights=weights), "eager", "cpu")
    with pytest.raises(InputError, match=r"good0\.png: painted, cannot be scored \(the score is"):
        list(choice._painted_scores(engine, good))
