"""What is fitted and what is promised, on which images, and by which ranks."""

import dataclasses
import re

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Level, Schedule
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import MAX_BATCH
from sprfast.errors import InputError
from sprfast.evaluation import calibration
from sprfast.evaluation.calibration import SETTINGS
from sprfast.method import error_field, threshold
from sprfast.method.scoring_mode import ScoringMode
from support.line_cases import frame
from support.scoring_mode_cases import QUICK, field


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Paths of more good images than go in one batch, 32x32."""
    folder = tmp_path_factory.mktemp("good")
    paths = [folder / f"{index:02}.png" for index in range(MAX_BATCH + 4)]
    for index, path in enumerate(paths):
        PIL.Image.fromarray(frame(100 + index)).save(path)
    return paths


@pytest.fixture
def engines(small_model):
    """A quick setting and the published one."""
    models = dataclasses.replace(small_model, scoring_mode=ScoringMode(QUICK, field())), small_model
    return [Engine(model, "eager", "cpu") for model in models]


def scores_of(engine, paths):
    return [result.pred_score for result in engine.predict(list(paths))]


def test_results_come_in_order_batch_by_batch(engines, good):
    done = []
    results = list(calibration.results(engines[1], good, lambda count, total: done.append((count, total))))
    assert [result.pred_score for result in results] == scores_of(engines[1], good)
    assert len({result.pred_score for result in results}) == len(good)
    assert done == [(MAX_BATCH, len(good)), (len(good), len(good))]


def test_an_image_that_cannot_be_scored_ends_it_with_its_name(engines, good, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(good[0].read_bytes()[:100])
    paths = [*good[:2], bad]
    for fit in (
        lambda: list(calibration.results(engines[1], paths)),
        lambda: calibration.fit_field(engines[1], paths),
        lambda: calibration.calibrate(engines[1], paths, 0.5, None),
        lambda: calibration.calibrate(engines[1], paths, 0.5, 0.5),
    ):
        with pytest.raises(InputError, match=r"bad\.png: cannot be scored \("):
            fit()


def test_an_image_whose_score_is_no_number_ends_it(small_model, good):
    weights = {**small_model.weights, "outc.conv.weight": small_model.weights["outc.conv.weight"] * 1e30}
    engine = Engine(dataclasses.replace(small_model, weights=weights), "eager", "cpu")
    with pytest.raises(InputError, match=r"00\.png: cannot be scored \(the score is"):
        calibration.calibrate(engine, good, 0.5, None)


def test_the_field_is_fitted_to_the_error_maps_of_the_setting(engines, good):
    fitted = calibration.fit_field(engines[1], good)
    errors = np.stack([result.error_map for result in engines[1].predict(list(good))])
    assert np.array_equal(fitted.expected, error_field.fit(errors).expected)
    assert (fitted.samples, fitted.size) == (len(good), (32, 32))
    unlike = calibration.fit_field(engines[0], good)
    assert not np.allclose(unlike.expected, fitted.expected, rtol=0.1)


def test_a_field_needs_images_and_of_one_size(engines, good, tmp_path):
    PIL.Image.fromarray(frame(1, (40, 80, 3))).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match=re.escape("one size at the network's input, got [(32, 32), (32, 64)]")):
        calibration.fit_field(engines[1], [good[0], tmp_path / "wide.png"])
    with pytest.raises(InputError, match="got none"):
        calibration.fit_field(engines[1], [])
    assert calibration.fit_field(engines[1], [tmp_path / "wide.png"]).size == (32, 64)


@pytest.mark.parametrize("name", ["published", "quick", *SETTINGS])
def test_thresholds_are_of_the_settings_own_scores_and_maps(small_model, good, name):
    def predictor_of(mode):
        return Engine(dataclasses.replace(small_model, scoring_mode=mode), "eager", "cpu")

    own = {"published": small_model.scoring_mode, "quick": ScoringMode(QUICK, field())}
    engine = predictor_of(own[name] if name in own else calibration.fitted(SETTINGS[name], predictor_of, good[:4]))
    setting = calibration.calibrate(engine, good, 0.1, 0.2)
    assert setting.threshold == threshold.calibrate(scores_of(engine, good), 0.1)
    maps = [result.anomaly_map for result in engine.predict(list(good))]
    assert setting.map_threshold == threshold.calibrate_map(maps, len(good), 0.2)
    assert (setting.schedule, setting.error_field) == (engine.scoring_mode.schedule, engine.scoring_mode.error_field)
    assert engine.scoring_mode.map_threshold is None  # the predictor stays as it was
    marked = np.mean([m > setting.map_threshold.value for m in maps])
    assert 0.15 < marked <= 0.2


def test_without_a_rate_of_pixels_the_map_has_no_threshold(engines, good):
    setting = calibration.calibrate(engines[1], good, 0.1, None)
    assert setting.map_threshold is None
    assert setting.threshold == calibration.calibrate(engines[1], good, 0.1, 0.2).threshold


@pytest.mark.parametrize(("rates", "needed"), [((0.01, None), 99), ((0.1, 0.01), 99), ((0.1, 0.04), 24)])
def test_too_few_images_for_a_rate_is_an_input_error_that_says_how_many(engines, good, rates, needed):
    with pytest.raises(InputError, match=f"{needed} good images, got {len(good)}"):
        calibration.calibrate(engines[1], good, *rates)


def test_weights_give_every_level_the_same_mean_error(small_model, good):
    schedule = Schedule((Level(5e-4, 2), Level(0.01, 2, weight=7.0)), noise="signs")

    def predictor_of(each):
        return Engine(dataclasses.replace(small_model, scoring_mode=each), "eager", "cpu")

    weighted = calibration.balanced(predictor_of, ScoringMode(schedule), good[:3])
    assert [(level.t, level.draws) for level in weighted.levels] == [(5e-4, 2), (0.01, 2)]
    assert weighted.noise == "signs"
    means = []
    for level in weighted.levels:
        engine = predictor_of(ScoringMode(dataclasses.replace(schedule, levels=(level,))))
        means.append(np.mean([result.error_map.mean() for result in engine.predict(list(good[:3]))]))
    assert means[0] != pytest.approx(means[1], rel=0.1)  # or equal weights would pass below
    assert [level.weight * mean for level, mean in zip(weighted.levels, means, strict=True)] == pytest.approx(
        [1.0, 1.0]
    )


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_halves_are_every_other_image_and_share_none(count):
    paths = [f"{index}.png" for index in range(count)]
    fit, promised = calibration.halves(paths)
    assert fit == paths[::2]
    assert sorted(fit + promised) == paths
    assert 0 <= len(fit) - len(promised) <= 1


def test_every_named_setting_costs_less_than_the_published_one():
    assert {"single", "noiseless", "multi", "field"} == set(SETTINGS)
    assert all(setting.schedule.draws < Schedule().draws for setting in SETTINGS.values())
