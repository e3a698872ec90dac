"""Two settings in turn: which of them decides, what it costs, and that nothing unusable passes."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import sprfast
from sprfast.config import Preprocessing
from sprfast.engine.cascade import Cascade
from sprfast.engine.engine import Engine, predictor
from sprfast.errors import BackendError, InputError
from sprfast.formats import model as model_file
from sprfast.line import Line
from sprfast.method.scoring_mode import CascadeSetting
from sprfast.method.threshold import Verdict, manual
from support.line_cases import PATIENCE, Network, frame
from support.scoring_mode_cases import with_settings

FRAMES = [frame(seed) for seed in range(10)]


@pytest.fixture(scope="module")
def model(small_model):
    return with_settings(small_model)


@pytest.fixture(scope="module")
def alone(model):
    """Each frame's result with either setting, as an engine of its own gives it."""
    return [Engine(model.using(name), "eager", "cpu").predict(FRAMES, "rgb") for name in ("quick", "published")]


@pytest.fixture(scope="module")
def setting(alone):
    """Four of the ten frames in the band, and thresholds that pass some and reject some on either
    stage.
    """
    first, second = ([result.pred_score for result in results] for results in alone)
    scales = float(np.median(first)), float(np.median(second))
    ranked = sorted(score / scales[0] for score in first)
    return CascadeSetting(
        "quick", "published", *scales, (ranked[2] + ranked[3]) / 2, (ranked[6] + ranked[7]) / 2, manual(1.0)
    )


class Watched(Network):
    """The network of a stage; where `poison` is true of an image, its maps are NaN."""

    poison = staticmethod(lambda x: False)

    def maps(self, x, noise):
        errors, anomalies = super().maps(x, noise)
        for index, image in enumerate(x):
            if self.poison(image):
                errors[index], anomalies[index] = torch.nan, torch.nan
        return errors, anomalies


def watched(model, setting):
    """A cascade, and the networks of its two stages."""
    models = [model.using(name) for name in (setting.first, setting.second)]
    networks = [Watched(each) for each in models]
    engines = [Engine(each, network) for each, network in zip(models, networks, strict=True)]
    return Cascade(*engines, setting), *networks


@pytest.fixture
def cascade(model, setting):
    return watched(model, setting)[0]


def same(one, other):
    """Bit for bit, the time taken apart."""
    names = [
        each.name for each in dataclasses.fields(one) if each.name not in ("milliseconds", "anomaly_map", "error_map")
    ]
    values = all(getattr(one, name) == getattr(other, name) for name in names)
    return (
        values and np.array_equal(one.anomaly_map, other.anomaly_map) and np.array_equal(one.error_map, other.error_map)
    )


def test_the_second_setting_decides_in_the_band_and_the_first_outside(cascade, setting, alone):
    seconds = 0
    for result, first, second in zip(cascade.predict(FRAMES, "rgb"), *alone, strict=True):
        inside = setting.low <= first.pred_score / setting.first_scale <= setting.high
        decided, scale = (second, setting.second_scale) if inside else (first, setting.first_scale)
        seconds += inside
        assert result.pred_score == decided.pred_score / scale
        assert result.verdict is (Verdict.PASS if result.pred_score <= 1.0 else Verdict.REJECT)
        assert np.array_equal(result.anomaly_map, decided.anomaly_map)
        assert np.array_equal(result.error_map, decided.error_map)
        assert result.map_threshold == decided.map_threshold
        assert result.passes == (1 + 2 if inside else 1)
        assert (result.threshold, result.reason, result.source_size) == (1.0, None, (32, 32))
    assert seconds == 4


def test_the_fixture_has_frames_for_which_the_stage_matters(cascade, alone, setting):
    """Without a frame whose verdict the second stage changes, and both verdicts on both stages, the
    tests here say little.
    """
    results = cascade.predict(FRAMES, "rgb")
    assert {(result.passes, result.verdict) for result in results} == {
        (n, v) for n in (1, 3) for v in (Verdict.PASS, Verdict.REJECT)
    }
    changed = [
        result.passes == 3 and (first.pred_score > setting.first_scale) != (result.pred_score > 1.0)
        for result, first in zip(results, alone[0], strict=True)
    ]
    assert any(changed)


def test_only_images_in_the_band_go_through_the_second_network(model, setting):
    cascade, first, second = watched(model, setting)
    cascade.predict(FRAMES, "rgb")
    assert (sum(first.batches), sum(second.batches)) == (10, 4)
    nobody = dataclasses.replace(setting, low=1e6, high=1e6)
    cascade, first, second = watched(model, nobody)
    assert {result.passes for result in cascade.predict(FRAMES, "rgb")} == {1}
    assert (sum(first.batches), second.batches) == (10, [])
    everybody = dataclasses.replace(setting, low=0.0, high=1e6)
    cascade, first, second = watched(model, everybody)
    assert {result.passes for result in cascade.predict(FRAMES, "rgb")} == {3}
    assert sum(second.batches) == 10


def test_the_ends_of_the_band_are_inside_it(model, setting, alone):
    score = alone[0][4].pred_score / setting.first_scale
    for low, high, passes in (
        (score, score, 3),
        (0.0, score, 3),
        (score, 1e6, 3),
        (math.nextafter(score, 2e6), 1e6, 1),
        (0.0, math.nextafter(score, 0), 1),
    ):
        cascade = watched(model, dataclasses.replace(setting, low=low, high=high))[0]
        assert cascade.predict(FRAMES[4], "rgb").passes == passes, (low, high)


def test_images_of_a_batch_get_the_same_result_alone_and_in_any_order(cascade):
    together = cascade.predict(FRAMES, "rgb")
    assert all(map(same, together, [cascade.predict(each, "rgb") for each in FRAMES]))
    assert all(map(same, together[::-1], cascade.predict(FRAMES[::-1], "rgb")))
    assert len({result.pred_score for result in together}) == len(FRAMES)
    assert cascade.predict([]) == []


def test_a_result_takes_the_time_of_both_stages(cascade):
    prepared = [cascade.prepare(each, "rgb") for each in FRAMES]
    first = cascade.first.score(prepared)
    slow = cascade.second.score

    def slower(images):
        return [dataclasses.replace(result, milliseconds=1e6) for result in slow(images)]

    cascade.second.score = slower
    for result in cascade.score(prepared):
        assert (result.milliseconds > 1e6) == (result.passes == 3)
    assert all(result.milliseconds < 1e6 for result in first)


@pytest.mark.parametrize("stage", [0, 1])
def test_nan_from_a_stage_is_an_error_for_that_image_only(model, setting, stage):
    cascade, *networks = watched(model, setting)
    expected = cascade.predict(FRAMES, "rgb")
    victim = next(index for index, result in enumerate(expected) if result.passes == 3)
    pixels = torch.from_numpy(cascade.prepare(FRAMES[victim], "rgb").pixels)
    networks[stage].poison = lambda image: torch.equal(image, pixels)
    results = cascade.predict(FRAMES, "rgb")
    bad = results.pop(victim)
    assert math.isnan(bad.pred_score)
    assert (bad.verdict, bad.reason, bad.pred_label) == (Verdict.ERROR, "the score is nan", True)
    assert bad.passes == (1 if stage == 0 else 3)
    assert all(map(same, results, expected[:victim] + expected[victim + 1 :]))


def test_a_score_beyond_every_number_is_an_error(small_model, setting):
    weights = {**small_model.weights, "outc.conv.weight": small_model.weights["outc.conv.weight"] * 1e30}
    cascade = watched(with_settings(dataclasses.replace(small_model, weights=weights)), setting)[0]
    for result in cascade.predict(FRAMES[:2], "rgb"):
        assert not math.isfinite(result.pred_score)
        assert result.verdict is Verdict.ERROR
        assert "the score is" in result.reason


def test_a_bad_image_and_one_of_another_size_are_errors_and_leave_the_others_alone(cascade, tmp_path):
    expected = cascade.predict(FRAMES[:3], "rgb")
    mixed = [FRAMES[0], np.zeros((32, 32, 3), np.int64), FRAMES[1], frame(1, (40, 80, 3)), FRAMES[2]]
    results = cascade.predict(mixed, "rgb")
    assert [result.verdict is Verdict.ERROR for result in results] == [False, True, False, True, False]
    assert (
        "32x64 pixels (height x width) at the network's input, the error field was fitted at 32x32" in results[3].reason
    )
    assert (results[1].threshold, results[1].passes) == (1.0, 0)
    assert all(map(same, results[::2], expected))
    assert "missing.png" in cascade.predict(tmp_path / "missing.png").reason


def test_the_size_of_the_second_settings_field_counts_too(model, setting):
    first, second = (Engine(model.using(name), "eager", "cpu") for name in ("published", "quick"))
    result = Cascade(first, second, setting).predict(frame(1, (40, 80, 3)), "rgb")
    assert result.verdict is Verdict.ERROR
    assert "the error field was fitted at 32x32" in result.reason


def test_two_models_do_not_make_a_cascade(model, setting):
    first = Engine(model.using("quick"), "eager", "cpu")
    weights = {name: 1.01 * value for name, value in model.weights.items()}
    for other in (
        dataclasses.replace(model, weights=weights),
        dataclasses.replace(model, preprocessing=Preprocessing(size=48)),
    ):
        with pytest.raises(InputError, match="the two are not of one model"):
            Cascade(first, Engine(other, "eager", "cpu"), setting)


def test_a_model_file_opens_as_a_cascade_by_its_name(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.save(path, model)
    loaded = sprfast.load(path, "eager", "cpu", setting="cascade")
    assert isinstance(loaded, Cascade)
    assert loaded.cascade == model.cascades["cascade"]
    assert (loaded.backend, loaded.precision, loaded.model_sha256, loaded.input_size) == (
        "eager",
        "float32",
        model.sha256,
        (32, 32),
    )
    assert loaded.threshold == loaded.cascade.threshold
    expected = watched(model, model.cascades["cascade"])[0].predict(FRAMES, "rgb")
    assert all(map(same, loaded.predict(FRAMES, "rgb"), expected))
    quick = sprfast.load(path, "eager", "cpu", setting="quick").predict(FRAMES[0], "rgb")
    assert same(quick, Engine(model.using("quick"), "eager", "cpu").predict(FRAMES[0], "rgb"))
    assert quick.passes == 1


def test_a_cascade_of_a_setting_that_is_not_there_is_an_input_error(model):
    broken = dataclasses.replace(model.cascades["cascade"], first="lost")
    with pytest.raises(InputError, match=r"setting 'lost': the model has published, quick, cascade"):
        predictor(dataclasses.replace(model, cascades={"cascade": broken}), "eager", "cpu", setting="cascade")
    nested = dataclasses.replace(broken, first="inner")
    with pytest.raises(InputError, match="setting 'inner': is a cascade of two settings"):
        predictor(
            dataclasses.replace(model, cascades={"cascade": nested, "inner": broken}), "eager", "cpu", setting="cascade"
        )


def test_both_stages_are_tested_and_warmed_up(model, setting):
    cascade, first, second = watched(model, setting)
    assert 0 <= cascade.self_test() <= 1e-4
    first.batches, second.batches = [], []
    cascade.warm_up(32, 32, (1, 3))
    assert (first.batches, second.batches) == ([3, 1], [3, 1])
    for broken in (first, second):
        broken.poison = lambda image: True
        with pytest.raises(BackendError, match="probe image is off by nan"):
            cascade.self_test()
        broken.poison = Watched.poison


def test_a_line_runs_over_a_cascade(cascade):
    expected = cascade.predict(FRAMES, "rgb")
    with Line(cascade, max_batch=4) as line:
        futures = [line.submit(each, index, channel_order="rgb") for index, each in enumerate(FRAMES)]
        wide = line.submit(frame(1, (40, 80, 3)), "wide", channel_order="rgb")
        answers = [future.result(PATIENCE) for future in futures]
        assert wide.result(PATIENCE).verdict is Verdict.ERROR
        health = line.health()
    assert [answer.verdict for answer in answers] == [result.verdict for result in expected]
    assert all(same(answer.result, result) for answer, result in zip(answers, expected, strict=True))
    assert {answer.result.passes for answer in answers} == {1, 3}
    assert health.model.sha256 == cascade.model_sha256


def test_a_line_swaps_to_a_cascade(model, cascade):
    with Line(Engine(model, "eager", "cpu")) as line:
        before = line.submit(FRAMES[0], 0, channel_order="rgb").result(PATIENCE)
        line.swap(cascade)
        after = line.submit(FRAMES[0], 1, channel_order="rgb").result(PATIENCE)
    assert before.result.threshold == model.threshold.value
    assert same(after.result, cascade.predict(FRAMES[0], "rgb"))
