import dataclasses
import json
import math

import numpy as np
import pytest

from sprfast.errors import InputError
from sprfast.formats import model as model_file
from sprfast.formats.export_metadata import ExportMetadata, Probe
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import (
    MAX_SCORES,
    MapThreshold,
    Threshold,
    Verdict,
    calibrate,
    calibrate_map,
    lowest_rate,
    manual,
    rank_of,
    verdict,
)
from support.scoring_mode_cases import with_mode


@pytest.mark.parametrize(
    ("n", "rate", "rank"),
    [(999, 0.001, 999), (1000, 0.001, 1000), (99, 0.01, 99), (199, 0.01, 198), (9, 0.1, 9), (19, 0.3, 14)],
)
def test_calibration_takes_the_conformal_rank(n, rate, rank):
    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert calibrate(scores, rate) == Threshold(
        rank + 1e-4 * rank, "calibrated", n, rate, rank, tuple(np.arange(1.0, n + 1))
    )


@pytest.mark.parametrize("n", [9, 19, 29, 69, 99, 109, 199, 999, 9999])
def test_rank_is_exact_where_float_arithmetic_is_not(n):
    for percent in range(1, 100):
        rank = -((n + 1) * (100 - percent) // -100)
        if rank <= n:
            assert calibrate(np.arange(n), percent / 100).rank == rank


@pytest.mark.parametrize(("rate", "needed"), [(0.001, 999), (0.01, 99), (0.3, 3), (0.5, 1), (0.07, 14)])
def test_too_few_good_images_for_the_rate_is_an_input_error_that_says_how_many(rate, needed):
    assert calibrate(np.arange(needed), rate).samples == needed
    with pytest.raises(InputError, match=f"at least {needed} good images, got {needed - 1}"):
        calibrate(np.arange(needed - 1), rate)


def test_fresh_good_images_are_rejected_at_the_stated_rate():
    rng = np.random.default_rng(1)
    n, rate, trials, fresh = 99, 0.05, 400, 500
    rejected = [
        np.mean(rng.gamma(2.0, size=fresh) > calibrate(rng.gamma(2.0, size=n), rate).value) for _ in range(trials)
    ]
    # the mean is exactly rate for continuous scores; its standard error here is about 0.0012
    assert abs(np.mean(rejected) - rate) < 0.005


def test_all_equal_scores_pass_themselves():
    threshold = calibrate([0.7] * 50, 0.1)
    assert verdict(0.7, threshold) is Verdict.PASS


@pytest.mark.parametrize("score", [0.7, -0.7, 1e-30])
def test_the_image_that_a_threshold_comes_from_passes_on_every_float32_backend(score):
    threshold = calibrate([score] * 50, 0.1)
    assert verdict(score + 0.5e-4 * abs(score), threshold) is Verdict.PASS
    assert verdict(score + 2e-4 * abs(score), threshold) is Verdict.REJECT


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_rate_outside_0_to_1_is_an_input_error(rate):
    with pytest.raises(InputError, match="false_reject_rate"):
        calibrate(np.arange(100), rate)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_calibration_score_is_an_input_error(bad):
    with pytest.raises(InputError, match="score 7 of the good images"):
        calibrate([*range(7), bad, 1.0, 2.0], 0.5)


@pytest.mark.parametrize("scores", [np.zeros((10, 1)), 3.0, ["a", "b"], [1.0, [2.0]]])
def test_scores_that_are_not_a_list_of_numbers_are_an_input_error(scores):
    with pytest.raises(InputError, match="scores"):
        calibrate(scores, 0.5)


def test_verdict_at_and_around_the_threshold():
    threshold = manual(0.5)
    assert verdict(0.5, threshold) is Verdict.PASS
    assert verdict(math.nextafter(0.5, 0), threshold) is Verdict.PASS
    assert verdict(math.nextafter(0.5, 1), threshold) is Verdict.REJECT


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("-inf")])
def test_nan_and_infinite_scores_never_pass(score):
    assert verdict(score, manual(1e300)) is Verdict.ERROR


@pytest.mark.parametrize("score", [0.0, -1.0, math.nan, math.inf])
def test_without_a_threshold_nothing_passes(score):
    assert verdict(score, None) is Verdict.ERROR


def test_a_float32_score_is_not_compared_at_float32_precision():
    score = np.float32(0.1)  # 0.100000001..., above 0.1
    assert verdict(score, manual(0.1)) is Verdict.REJECT
    assert verdict(score, manual(float(score))) is Verdict.PASS


def test_verdict_is_its_text():
    assert f"{Verdict.PASS} {Verdict.REJECT!s}" == "PASS REJECT"
    assert json.dumps(Verdict.ERROR) == '"ERROR"'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_manual_threshold_is_an_input_error(value):
    with pytest.raises(InputError, match="value"):
        manual(value)


@pytest.mark.parametrize("n", [1, 2, MAX_SCORES - 1, MAX_SCORES])
def test_a_threshold_keeps_the_scores_it_comes_from(n):
    scores = np.random.default_rng(n).gamma(2.0, size=n).astype(np.float32)
    threshold = calibrate(scores, 0.5)
    assert threshold.scores == tuple(sorted(map(float, scores)))
    assert all(type(score) is float for score in threshold.scores)


@pytest.mark.parametrize("n", [MAX_SCORES + 1, MAX_SCORES + 500, 5000, 123_457])
def test_of_many_scores_it_keeps_some_evenly_spaced_in_rank(n):
    ranks = np.array(calibrate(np.random.default_rng(0).permutation(n), 0.5).scores)  # a score is its own rank
    assert (len(ranks), ranks[0], ranks[-1]) == (MAX_SCORES, 0, n - 1)
    steps = np.diff(ranks)
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    "threshold",
    [manual(-2.5), calibrate(np.linspace(0, 1, 99), 0.01), calibrate(np.random.default_rng(0).random(3000), 0.01)],
    ids=["manual", "calibrated", "on-many"],
)
def test_threshold_survives_json(threshold):
    document = threshold.to_json()
    assert type(document["scores"]) is list
    assert Threshold.from_json(json.loads(json.dumps(document))) == threshold


def test_a_file_without_the_scores_still_loads():
    document = calibrate(np.linspace(0, 1, 99), 0.01).to_json()
    del document["scores"]
    assert Threshold.from_json(document) == dataclasses.replace(calibrate(np.linspace(0, 1, 99), 0.01), scores=())


def test_a_threshold_that_is_looked_at_does_not_list_its_scores():
    threshold = calibrate(np.arange(3000.0), 0.01)
    fields = threshold.to_json()
    expected = {"stored": 1024, "minimum": 0.0, "median": float(np.median(threshold.scores)), "maximum": 2999.0}
    assert threshold.summary() == fields | {"scores": expected}
    assert manual(0.5).summary() == manual(0.5).to_json() | {"scores": None}
    assert "2999" not in repr(threshold)


def test_the_scores_are_stored_in_models_and_exports(small_model, tmp_path):
    threshold = calibrate(np.random.default_rng(0).random(3000), 0.01)
    model_file.save(tmp_path / "model", with_mode(small_model, threshold=threshold))
    assert model_file.load(tmp_path / "model").scoring_mode.threshold == threshold
    scoring = (small_model.network, ScoringMode(threshold=threshold), small_model.preprocessing, small_model.noise_seed)
    probe = Probe(np.ones((32, 32), np.float32), 0.1)
    metadata = ExportMetadata(*scoring, small_model.sha256, "float32", None, None, None, probe)
    assert ExportMetadata.from_json(json.loads(json.dumps(metadata.to_json()))).scoring_mode.threshold == threshold


def test_calibrate_stores_the_scores_and_prints_what_they_span(run, model_path, pictures):
    code, out, _ = run("calibrate", model_path, pictures[0].parent, "--false-reject-rate", "0.4", "--json")
    assert code == 0
    threshold, shown = model_file.load(model_path).scoring_mode.threshold, json.loads(out)["threshold"]
    assert len(threshold.scores) == 4
    assert threshold.scores[threshold.rank - 1] * (1 + 1e-4) == pytest.approx(threshold.value, rel=1e-12)
    assert shown == threshold.summary()
    assert json.loads(run("info", model_path, "--json")[1])["threshold"] == shown
    assert "threshold.scores.stored" in run("info", model_path)[1]


@pytest.mark.parametrize(
    "change",
    [
        {"value": math.nan},
        {"value": "0.5"},
        {"source": "guessed"},
        {"samples": 0},
        {"false_reject_rate": 0.0},
        {"false_reject_rate": math.nan},
        {"rank": 0},
        {"rank": 100},
        {"source": "manual"},
        {"scores": [0.5]},
        {"scores": [0.0] * 100},
        {"scores": [0.5] * 98 + [0.4]},
        {"scores": [math.nan] + [0.5] * 98},
        {"scores": [0.5] * 98 + [math.inf]},
        {"scores": [-math.inf] + [0.5] * 98},
        {"scores": ["0.5"] * 99},
        {"scores": 0.5},
        {"source": "manual", "samples": 0, "false_reject_rate": 0.0, "rank": 0},
    ],
)
def test_a_threshold_that_contradicts_itself_is_an_input_error(change):
    document = calibrate(np.linspace(0, 1, 99), 0.01).to_json() | change
    with pytest.raises(InputError, match="|".join(field.name for field in dataclasses.fields(Threshold))):
        Threshold.from_json(document)


@pytest.mark.parametrize(
    ("n", "rate", "above"),
    [
        (3, 0.5, 4),  # (3 + 1) * 0.5 - 1 = 1 image of 4 pixels may lie above
        (4, 0.3, 2),  # 5 * 0.3 - 1 = 0.5
        (3, 0.3, 0),  # 4 * 0.3 - 1 = 0.2 of an image is no whole pixel
        (9, 0.1, 0),  # 10 * 0.1 - 1 = 0, where the promise needs all of the fresh image
        (99, 0.29, 112),  # 28 images, and 27.999999999999996 in float arithmetic
        (5, 0.99, 19),  # 4.94 of 5 images
    ],
)
def test_map_threshold_is_the_rank_of_conformal_risk_control(n, rate, above):
    pixels = np.random.default_rng(0).permutation(4 * n).astype(np.float32)
    threshold = calibrate_map(iter(pixels.reshape(n, 2, 2)), n, rate)
    assert threshold == MapThreshold(4.0 * n - 1 - above, n, rate)
    assert np.sum(pixels > threshold.value) == above


@pytest.mark.parametrize("levels", [None, 50])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.7])
def test_map_threshold_of_many_maps_is_that_of_all_pixels_at_once(rate, levels):
    maps = np.random.default_rng(1).gamma(2.0, size=(80, 16, 16)).astype(np.float32)
    if levels:
        maps = np.round(maps * levels / 10)  # ties
    ascending = np.sort(maps.ravel())
    allowed = math.floor((81 * round(rate * 100) - 100) / 100 * 256)
    assert calibrate_map((each for each in maps), 80, rate).value == ascending[-1 - allowed]


def test_fresh_good_images_are_marked_at_no_more_than_the_stated_rate():
    rng = np.random.default_rng(2)
    n, rate, trials, fresh = 99, 0.1, 60, 100

    def maps(count):
        return (rng.gamma(2.0, size=(count, 1, 1)) * rng.gamma(1.0, size=(count, 6, 6))).astype(np.float32)

    marked = [np.mean(maps(fresh) > calibrate_map(maps(n), n, rate).value) for _ in range(trials)]
    # the expectation lies in [rate - 2 / (n + 1), rate]; its standard error here is about 0.002
    assert rate - 0.026 < np.mean(marked) < rate + 0.006


def test_the_promise_is_kept_exactly_where_images_are_marked_whole_or_not_at_all():
    """The worst case: with no 1/(n + 1) for the fresh image the rate would be 0.15."""
    rng = np.random.default_rng(3)
    marked = []
    for _ in range(4000):
        scores = rng.random((20, 1, 1)).astype(np.float32)
        threshold = calibrate_map(np.repeat(scores[:19], 4, axis=2), 19, 0.1)
        marked.append(float(scores[19, 0, 0]) > threshold.value)
    assert abs(np.mean(marked) - 0.1) < 0.015  # the standard error is 0.005


@pytest.mark.parametrize(("rate", "needed"), [(0.001, 999), (0.01, 99), (0.3, 3), (0.5, 1), (0.07, 14)])
def test_too_few_maps_for_the_rate_is_an_input_error_that_says_how_many(rate, needed):
    maps = np.zeros((needed, 2, 2), np.float32)
    assert calibrate_map(maps, needed, rate).samples == needed
    with pytest.raises(InputError, match=f"false-pixel rate of {rate} needs {needed} good images, got {needed - 1}"):
        calibrate_map(maps[1:], needed - 1, rate)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 30])
def test_a_map_that_is_not_finite_is_an_input_error(bad, at):
    maps = np.random.default_rng(4).random((40, 4, 4), np.float32)
    maps[at, 3, 0] = bad
    with pytest.raises(InputError, match="anomaly map of a good image is NaN or infinite"):
        calibrate_map(maps, 40, 0.1)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_a_rate_of_pixels_outside_0_to_1_is_an_input_error(rate):
    with pytest.raises(InputError, match="false_pixel_rate"):
        calibrate_map(np.zeros((100, 2, 2), np.float32), 100, rate)


def test_a_map_threshold_survives_json():
    threshold = calibrate_map(np.random.default_rng(5).random((20, 4, 4), np.float32), 20, 0.1)
    assert MapThreshold.from_json(json.loads(json.dumps(threshold.to_json()))) == threshold


@pytest.mark.parametrize(
    "change",
    [
        {"value": math.nan},
        {"value": "0.5"},
        {"samples": 0},
        {"samples": 2.0},
        {"false_pixel_rate": 0.0},
        {"false_pixel_rate": math.nan},
    ],
)
def test_a_map_threshold_that_contradicts_itself_is_an_input_error(change):
    with pytest.raises(InputError, match=next(iter(change))):
        MapThreshold.from_json(MapThreshold(0.5, 20, 0.1).to_json() | change)


@pytest.mark.parametrize(
    ("samples", "rate"), [(1, 0.5), (3, 0.25), (12, 0.077), (60, 0.017), (999, 0.001), (1000, 0.001)]
)
def test_the_lowest_rate_of_so_many_images_is_allowed_and_a_lower_one_is_not(samples, rate):
    assert lowest_rate(samples) == rate
    assert rank_of(samples, rate) == samples
    with pytest.raises(InputError, match=f"got {samples}, with which {rate} is the lowest"):
        rank_of(samples, 0.98 / (samples + 1))
