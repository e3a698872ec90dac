"""The C interface gives what Python gives: to the bit, or up to the order of sums on aarch64."""

import dataclasses
import functools
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sprfast
from sprfast._version import __version__
from sprfast.config import Level, Preprocessing, Schedule
from sprfast.data.images import load_image
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.kernels.cpu import library
from sprfast.method.error_field import ErrorField
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold, manual
from support import c_interface as c
from support.c_interface import Frame, RefusedError, cases, picture
from support.machine import current, in_this_process

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


def same(result, expected):
    """Verdict and score."""
    assert c.VERDICTS[result.verdict] == expected.verdict.value, (result.reason, expected.reason)
    assert_equal(result.pred_score, expected.pred_score)
    return True


def assert_equal(got, expected):
    """Up to the machine's tolerance of the largest value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=current().tolerance * np.max(expected))


@pytest.fixture(scope="session")
def tiny(c_library, small_model, tmp_path_factory):
    """An engine of two threads for inputs whose shorter side has 16 pixels, and Python's runner."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.plan"
    mode = ScoringMode(Schedule((Level(1e-3, 1),)), threshold=manual(0.0275))
    model = dataclasses.replace(small_model, preprocessing=Preprocessing(16), scoring_mode=mode)
    export.export(model, path, Request("plan"))
    engine = c_library.open(path, threads=2)
    yield engine, sprfast.load(path, threads=1)
    engine.close()


def test_versions(c_library):
    assert c_library.functions.sprfast_version().decode() == __version__
    assert c_library.functions.sprfast_abi_version() == 1


def test_what_an_export_says_of_itself(machine, engine, runner):
    info = engine.info()
    assert (info.height, info.width) == runner.input_size == (32, 32)
    assert (info.any_size, info.size_policy, info.bit_depth, info.draws, info.threads) == (1, 1, 16, 2, 1)
    assert info.threshold == info.map_threshold == runner.threshold.value
    assert info.probe_error == pytest.approx(runner.probe_error, rel=1e-9, abs=machine.tolerance)
    assert info.model_sha256.decode() == runner.model_sha256
    assert info.instruction_set.decode() == machine.instruction_set()


def test_two_hundred_frames_from_eight_threads_have_pythons_scores_and_verdicts(tiny):
    engine, runner = tiny
    given = list(cases(200))
    frames = [Frame.of(array, order) for array, order in given]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(engine.score, frames))
    for result, (array, order) in zip(results, given, strict=True):
        assert same(result, runner.predict(array, channel_order=order)), (array.shape, array.dtype, order)
        assert (result.code, result.reason, result.passes, result.skipped) == (0, b"", 1, 0.0)
    assert {result.verdict for result in results} == {1, 2}


def test_maps_and_masks_are_pythons(tiny):
    engine, runner = tiny
    for array, order in list(cases(36))[::5]:
        expected = runner.predict(array, channel_order=order)
        result, errors, anomalies, mask = engine.maps(Frame.of(array, order))
        assert same(result, expected)
        assert_equal(errors, expected.error_map)
        assert_equal(anomalies, expected.anomaly_map)
        np.testing.assert_array_equal(mask, expected.pred_mask)


def test_a_batch_has_the_bits_of_each_frame_alone(tiny):
    engine, _ = tiny
    frames = [Frame.of(array, order) for array, order in list(cases(36))[::3]]
    bad = Frame.of(picture(32, 32))
    bad.bytes -= 1
    alone = [engine.score(frame).pred_score for frame in frames]
    results = engine.score_many([*frames[:7], bad, *frames[7:]])
    assert [result.pred_score for result in results[:7] + results[8:]] == alone
    assert results[7].verdict == 0
    assert results[7].code == c.INVALID_ARGUMENT
    assert results[7].reason.startswith(b"frame: ")
    assert math.isnan(results[7].pred_score)
    assert engine.score_many([]) == []


def test_an_export_without_a_threshold_passes_nothing(written):
    engine, runner = written(scoring_mode=ScoringMode(Schedule((Level(1e-3, 2),))))
    array = picture(32, 32)
    result = engine.score(Frame.of(array))
    assert same(result, runner.predict(array, channel_order="rgb"))
    assert (result.verdict, result.code) == (0, 0)
    assert b"threshold" in result.reason
    assert math.isnan(engine.info().threshold)
    assert math.isnan(engine.info().map_threshold)
    assert engine.maps(Frame.of(array), mask=False)[0].pred_score == result.pred_score
    with pytest.raises(RefusedError, match=r"pred_mask.*no threshold") as refused:
        engine.maps(Frame.of(array))
    assert refused.value.code == c.UNSUPPORTED


def test_an_error_field_takes_one_size_and_its_score_the_window(written):
    field = ErrorField(np.linspace(0.5, 2, 32 * 48, dtype=np.float32).reshape(32, 48), 3)
    mode = ScoringMode(Schedule((Level(1e-3, 2),)), field, manual(0.02), MapThreshold(0.03, 3, 0.1), 4)
    engine, runner = written(scoring_mode=mode)
    info = engine.info()
    assert (info.height, info.width, info.any_size, info.map_threshold) == (32, 48, 0, 0.03)
    array = picture(64, 96)
    expected = runner.predict(array, channel_order="rgb")
    result, _, anomalies, mask = engine.maps(Frame.of(array))
    assert same(result, expected)
    np.testing.assert_array_equal(anomalies, expected.anomaly_map)
    np.testing.assert_array_equal(mask, expected.pred_mask)
    result = engine.score(Frame.of(picture(32, 32)))
    assert (result.verdict, result.code) == (0, c.BAD_IMAGE)
    assert b"32x32" in result.reason
    assert b"32x48" in result.reason


@pytest.mark.parametrize("policy", ["stretch", "refuse"])
def test_other_size_policies(written, policy):
    engine, runner = written(preprocessing=Preprocessing(size=32, size_policy=policy, bit_depth=12))
    info = engine.info()
    assert (info.any_size, info.size_policy, info.bit_depth) == (0, {"stretch": 2, "refuse": 3}[policy], 12)
    deep = picture(40, 40, 1, np.uint16) >> 4
    for array in (picture(40, 60), picture(40, 40), deep, deep + 1):
        assert same(
            engine.score(Frame.of(array)), runner.predict(array, channel_order="rgb" if array.ndim == 3 else None)
        )


def test_a_strip_has_pythons_maps(tiny):
    engine, runner = tiny
    array = picture(16, 640)  # the size of the network's input too
    expected = runner.predict(array, channel_order="rgb")
    result, errors, anomalies, _ = engine.maps(Frame.of(array))
    assert same(result, expected)
    assert result.skipped == 0.0
    assert_equal(errors, expected.error_map)
    assert_equal(anomalies, expected.anomaly_map)


def test_a_strip_of_tiles_has_pythons_maps(written):
    mode = ScoringMode(Schedule((Level(1e-3, 1),)), threshold=manual(0.02), window=5, tile=32)
    engine, runner = written(preprocessing=Preprocessing(16), scoring_mode=mode)
    for size in ((16, 500), (16, 40), (16, 32)):  # more tiles than go together, two, and none
        array = picture(*size)
        expected = runner.predict(array, channel_order="rgb")
        result, errors, anomalies, _ = engine.maps(Frame.of(array))
        assert same(result, expected)
        assert_equal(errors, expected.error_map)
        assert_equal(anomalies, expected.anomaly_map)


@pytest.mark.clock
@in_this_process
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_large_frame_takes_at_most_half_of_pillows_time(engine, runner, dtype):
    """From 1920x1200 pixels to the network's input, on one core."""

    def seconds(call, *given):
        started = time.perf_counter()
        call(*given)
        return time.perf_counter() - started

    array, small = picture(1200, 1920, dtype=dtype), Frame.of(picture(32, 51, dtype=dtype))
    large, by_pillow = Frame.of(array), functools.partial(load_image, channel_order="rgb")
    found = [
        (seconds(engine.score, large), seconds(engine.score, small), seconds(by_pillow, array, runner.preprocessing))
        for _ in range(20)
    ]
    whole, beside, pillow = (min(each) for each in zip(*found, strict=True))
    assert whole - beside < pillow / 2


def test_the_file_may_go_once_it_is_open(c_library, good, engine, tmp_path):
    path = tmp_path / "gone.plan"
    path.write_bytes(good.read_bytes())
    other = c_library.open(path)
    path.write_bytes(b"")
    path.unlink()
    frame = Frame.of(picture(32, 32))
    assert other.score(frame).pred_score == engine.score(frame).pred_score
    other.close()


@in_this_process
def test_a_forked_child_goes_on_with_its_parents_engine(c_library, good):
    """While other threads of the parent score, of whose locks the child knows nothing."""
    engine = c_library.open(good, threads=2)
    frames = [Frame.of(array, order) for array, order in list(cases(36))[::7]]
    alone = [engine.score(frame).pred_score for frame in frames]
    with ThreadPoolExecutor(2) as pool:
        going_on = [pool.submit(engine.score, frame) for frame in frames * 4]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, json.dumps([engine.score(frame).pred_score for frame in frames]).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            assert json.loads(answer.read()) == alone
        assert os.waitpid(child, 0)[1] == 0
        assert [future.result().pred_score for future in going_on] == alone * 4
    engine.close()
