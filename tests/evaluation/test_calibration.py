"""What is fitted and what is promised, on which images, and by which ranks."""

import dataclasses
import math
import re

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Level, Schedule
from sprfast.engine.cascade import Cascade
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import MAX_BATCH
from sprfast.errors import InputError
from sprfast.evaluation import calibration
from sprfast.evaluation.calibration import DISAGREEMENT, SETTINGS, SHARE
from sprfast.method import error_field, threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import manual
from support.line_cases import frame
from support.scoring_mode_cases import QUICK, field

NAMES = ("quick", "published")


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
    models = small_model.with_setting(ScoringMode(QUICK, field())), small_model
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
        lambda: calibration.fit_cascade(NAMES, *engines, good, paths, 0.5),
        lambda: calibration.fit_cascade(NAMES, *engines, [*good, bad], good, 0.5),
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


@pytest.mark.parametrize("which", [0, 1])
def test_thresholds_are_of_the_settings_own_scores_and_maps(engines, good, which):
    engine = engines[which]
    setting = calibration.calibrate(engine, good, 0.1, 0.2)
    assert setting.threshold == threshold.calibrate(scores_of(engine, good), 0.1)
    maps = [result.anomaly_map for result in engine.predict(list(good))]
    assert setting.map_threshold == threshold.calibrate_map(maps, len(good), 0.2)
    assert (setting.schedule, setting.field) == (engine.setting.schedule, engine.setting.field)
    assert engine.setting.map_threshold is None  # the predictor stays as it was
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


def test_the_band_by_hand():
    # of 19 images the 10 % largest scores: rank 18 of 20 (1 - 0.1) is the 18th; so scales are the
    # second largest
    first = np.exp(np.arange(19) / 10)
    second = first.copy()
    second[12] = 1000.0  # rejected by the second only, at a distance of 0.5 from where the first ends
    second[15] = 900.0  # and at 0.2
    made = calibration.band(NAMES, first, second, 0.1)
    assert (made.first, made.second, made.threshold) == (*NAMES, manual(1.0))
    assert made.first_scale == pytest.approx(first[17])
    # of the second, the image at 0.2 is the second largest and so at its end, not above
    assert made.second_scale == 900.0
    # two verdicts differ: at 0.5, and that of the image above first's end, which is below the
    # second's, at 0.1; rank 18 of 19 is 0.1
    assert made.high == pytest.approx(math.exp(0.1))
    assert made.low == pytest.approx(math.exp(-0.1))


def test_where_verdicts_never_differ_the_band_holds_its_share():
    first = np.exp(np.linspace(0, 1, 40))
    made = calibration.band(NAMES, first, 3 * first, 0.1)
    assert made.second_scale == pytest.approx(3 * made.first_scale)
    distance = np.abs(np.log(first / made.first_scale))
    held = [int(np.sum(distance <= math.log(made.high) * around)) for around in (0.999, 1.001)]
    # as narrow as that allows; two images lie at equal distances
    assert held[0] < SHARE * 40 <= held[1] < SHARE * 40 + 2
    assert made.low == pytest.approx(1 / made.high)


@pytest.mark.parametrize(("count", "enough"), [(0, False), (8, False), (9, True), (10, True)])
def test_a_band_needs_nine_images(count, enough):
    scores = np.linspace(1, 2, count)
    if enough:
        # the largest, where the rate is out of reach
        assert calibration.band(NAMES, scores, scores, 0.001).first_scale == 2.0
    else:
        with pytest.raises(InputError, match=f"at least 9 good images to fit it on, got {count}"):
            calibration.band(NAMES, scores, scores, 0.001)


def test_fresh_images_whose_verdicts_differ_seldom_lie_outside_the_band():
    rng = np.random.default_rng(0)

    def pair(count):
        common = rng.normal(size=count)
        return tuple(np.exp(common + 0.8 * rng.normal(size=count)) for _ in range(2))

    missed, differing = [], []
    for _ in range(300):
        made = calibration.band(NAMES, *pair(39), 0.3)
        first, second = (
            scores / scale for scores, scale in zip(pair(200), (made.first_scale, made.second_scale), strict=True)
        )
        differ = (first > 1) != (second > 1)
        differing.append(np.mean(differ))
        missed.append(np.mean(differ & ((first < made.low) | (first > made.high))))
    assert np.mean(differing) > 2 * DISAGREEMENT  # what a band without width would miss
    # of images that the scales come from as well, so not quite the conformal promise; the standard
    # error here is about 0.003
    assert 0.07 < np.mean(missed) < 1.2 * DISAGREEMENT


def test_a_cascade_takes_its_band_from_one_half_and_its_threshold_from_the_other(engines, good):
    fit, promised = calibration.halves(good)
    made = calibration.fit_cascade(NAMES, *engines, fit, promised, 0.2)
    expected = calibration.band(NAMES, *(scores_of(engine, fit) for engine in engines), 0.2)
    for name in ("first", "second", "first_scale", "second_scale", "low", "high"):
        assert getattr(made, name) == getattr(expected, name), name
    scores = scores_of(Cascade(*engines, expected), promised)
    assert made.threshold == threshold.calibrate(scores, 0.2)
    assert (made.threshold.samples, made.threshold.rank) == (10, 9)  # ceil(11 * 0.8)
    again = calibration.fit_cascade(NAMES, *engines, fit, promised[::-1], 0.2)
    assert again == made


def test_a_cascade_needs_enough_images_of_each_kind(engines, good):
    with pytest.raises(InputError, match="a band needs at least 9 good images to fit it on, got 8"):
        calibration.fit_cascade(NAMES, *engines, good[:8], good[8:], 0.2)
    with pytest.raises(InputError, match="needs scores of at least 19 good images, got 11"):
        calibration.fit_cascade(NAMES, *engines, good[:9], good[9:], 0.05)


def test_weights_give_every_level_the_same_mean_error(small_model, good):
    schedule = Schedule((Level(5e-4, 2), Level(0.01, 2, weight=7.0)), noise="antithetic")

    def predictor_of(each):
        return Engine(small_model.with_setting(ScoringMode(each)), "eager", "cpu")

    weighted = calibration.balanced(predictor_of, schedule, good[:3])
    assert [(level.t, level.draws) for level in weighted.levels] == [(5e-4, 2), (0.01, 2)]
    assert weighted.noise == "antithetic"
    means = []
    for level in weighted.levels:
        engine = predictor_of(dataclasses.replace(schedule, levels=(level,)))
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
    assert {"single", "field"} <= set(SETTINGS)
    assert all(schedule.draws < Schedule().draws for schedule, _ in SETTINGS.values())
