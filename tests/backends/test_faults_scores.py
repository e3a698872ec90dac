"""Whatever computes the scores: what is not finite inside never passes, and neither threads,
batches nor sizes change a result.
"""

import dataclasses
import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import sprfast
from sprfast.backends import registry as backends
from sprfast.backends.sessions import session
from sprfast.config import Level, Schedule
from sprfast.data import figure
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, CheckFailedError, InputError
from sprfast.formats import export_metadata as contract
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from sprfast.method import threshold
from sprfast.method.threshold import Verdict
from support.scoring_mode_cases import with_mode

ENGINES = ("cpu", "eager", "onnxruntime")
RUNNERS = ("plan", "onnx")
SQUARE_ONLY = ("onnx",)  # a graph of one size, which pictures of one aspect are brought to


def opened(name, model, folder):
    """An engine on a backend, or a runner of an export."""
    if name in ENGINES:
        if reason := backends.unavailable(name):
            pytest.skip(reason)
        return Engine(model, name, "cpu")
    if reason := library.unavailable() if name == "plan" else session.unavailable("onnxruntime"):
        pytest.skip(reason)
    export.export(model, folder / name, Request(name))
    return sprfast.load(folder / name)


@pytest.fixture(scope="module", params=ENGINES + RUNNERS)
def predictor(request, small_model, tmp_path_factory):
    return request.param, opened(request.param, small_model, tmp_path_factory.mktemp("scores"))


def picture(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bits(result):
    """What must not change from one call to the next."""
    maps = tuple(None if found is None else found.tobytes() for found in (result.anomaly_map, result.error_map))
    return result.verdict, result.pred_score, result.source_size, maps


def sizes_for(name):
    """Sizes of pictures, of which some share one at the network's input."""
    if name in SQUARE_ONLY:
        return [(32, 32), (50, 50), (9, 9), (100, 100)]
    return [(32, 32), (50, 50), (32, 48), (48, 32), (64, 96), (33, 47)]


def test_32_threads_on_one_predictor_get_the_bits_of_one(predictor):
    name, loaded = predictor
    sizes = sizes_for(name)
    work = [
        [picture(*sizes[(call + i) % len(sizes)], 10 * call + i) for i in range(1 + call % 4)] for call in range(40)
    ]
    expected = [[bits(result) for result in loaded.predict(batch, channel_order="rgb")] for batch in work]
    assert len({score for batch in expected for _, score, *_ in batch}) > 50
    with ThreadPoolExecutor(32) as pool:
        got = list(
            pool.map(lambda batch: [bits(result) for result in loaded.predict(batch, channel_order="rgb")], work)
        )
    assert got == expected


def test_batch_and_order_change_no_bit(predictor):
    name, loaded = predictor
    sizes = sizes_for(name)
    pictures = [picture(*sizes[seed % len(sizes)], seed) for seed in range(17)]
    alone = [bits(loaded.predict(each, channel_order="bgr")) for each in pictures]
    for count in (2, 3, 16, 17):
        assert [bits(result) for result in loaded.predict(pictures[:count], channel_order="bgr")] == alone[:count]
    assert [bits(result) for result in loaded.predict(pictures[::-1], channel_order="bgr")] == alone[::-1]


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "onnx"])
def test_threads_of_a_computation_stay_within_the_bound(name, small_model, tmp_path):
    """With our kernels they change no bit: tests/test_cpu_backend.py."""
    loaded = opened(name, small_model, tmp_path)
    pictures = [picture(32, 32, seed) for seed in range(3)]
    expected = [result.pred_score for result in loaded.predict(pictures, channel_order="rgb")]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = (
                Engine(small_model, name, "cpu") if name in ENGINES else sprfast.load(tmp_path / name, threads=threads)
            )
            scores = [result.pred_score for result in again.predict(pictures, channel_order="rgb")]
            assert scores == pytest.approx(expected, rel=contract.TOLERANCE["float32"])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3), (33, 47), (200, 5000)])
def test_tiny_huge_and_odd_pictures_have_maps_in_their_own_geometry(predictor, size):
    name, loaded = predictor
    source = picture(*size, 1)
    result = loaded.predict(source, channel_order="rgb")
    if name in SQUARE_ONLY and size[0] != size[1]:
        assert result.verdict is Verdict.ERROR
        assert "this export takes 32x32 only" in result.reason
        return
    height, width = size
    assert math.isfinite(result.pred_score)
    assert result.source_size == size
    assert result.error_map.shape == ((32, 32 * width // height) if height <= width else (32 * height // width, 32))
    assert figure.overlay(source, result.anomaly_map, 0.023).shape == source.shape


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_constant_picture_has_a_finite_score(predictor, level):
    result = predictor[1].predict(np.full((40, 40), level, np.uint8))
    assert math.isfinite(result.pred_score)
    assert result.pred_score > 0


def overflowing(model, name, scale):
    """The model with a layer so loud that what follows is beyond a storage type; any finite score
    would pass.
    """
    weights = {**model.weights, name: model.weights[name] * scale}
    return dataclasses.replace(with_mode(model, threshold=threshold.manual(1e300)), weights=weights)


@pytest.mark.parametrize("backend", ENGINES)
def test_overflow_inside_a_network_is_an_error_whatever_computes_it(backend, small_model, tmp_path):
    loaded = opened(backend, overflowing(small_model, "outc.conv.weight", 1e30), tmp_path)
    results = loaded.predict([picture(32, 32, seed) for seed in range(3)], channel_order="rgb")
    assert [result.verdict for result in results] == [Verdict.ERROR] * 3
    assert all("the score is" in result.reason for result in results)


LOUD = ("inc.double_conv.0", "down4.maxpool_conv.1.double_conv.3", "up4.conv.double_conv.3")  # first, deepest, last


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@pytest.mark.parametrize(
    ("backend", "layer"),
    [
        *itertools.product(ENGINES, LOUD),
        pytest.param("triton", LOUD[1], marks=pytest.mark.interpreter),
    ],
)
def test_an_infinite_variance_is_an_error_whatever_computes_it(backend, layer, small_model, tmp_path):
    """The normalisation behind the layer would make finite numbers of it, and a finite score."""
    if reason := backends.unavailable(backend):
        pytest.skip(reason)
    loaded = Engine(overflowing(small_model, f"{layer}.weight", 1e25), backend, "cpu")
    results = loaded.predict([picture(32, 32, seed) for seed in range(2)], channel_order="rgb")
    assert [result.verdict for result in results] == [Verdict.ERROR] * 2
    assert all("the score is" in result.reason for result in results)


@pytest.mark.parametrize("backend", ENGINES)
def test_what_is_loud_and_does_not_overflow_has_the_score_that_it_had(backend, small_model):
    """A layer in front of a normalisation may be as loud as it likes."""
    if reason := backends.unavailable(backend):
        pytest.skip(reason)
    loud = overflowing(small_model, "down1.maxpool_conv.1.double_conv.0.weight", 1e14)
    expected = Engine(small_model, "eager", "cpu").predict(picture(32, 32, 0), channel_order="rgb").pred_score
    got = Engine(loud, backend, "cpu").predict(picture(32, 32, 0), channel_order="rgb").pred_score
    assert got == pytest.approx(expected, rel=0.05)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_what_overflows_in_16_bits_only_is_an_error_there(small_model):
    if reason := backends.unavailable("onnxruntime"):
        pytest.skip(reason)
    model = overflowing(small_model, "inc.double_conv.3.weight", 1e7)
    source = picture(32, 32, 0)
    assert Engine(model, "onnxruntime", "cpu").predict(source, channel_order="rgb").verdict is Verdict.PASS
    result = Engine(model, "onnxruntime", "cpu", "float16").predict(source, channel_order="rgb")
    assert result.verdict is Verdict.ERROR
    assert "the score is" in result.reason


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("layer", ["outc.conv", LOUD[1]])
@pytest.mark.parametrize("target", RUNNERS)
def test_a_network_that_overflows_is_not_exported(target, layer, small_model, tmp_path):
    with pytest.raises((BackendError, CheckFailedError), match=r"probe|NaN|not finite") as caught:
        export.export(overflowing(small_model, f"{layer}.weight", 1e30), tmp_path / "model", Request(target))
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_of_each_image_that_its_score_is_no_number(run, small_model, pictures, tmp_path):
    """Infinity is not JSON, and there is no overlay of a map that is not finite; neither may end
    the command.
    """
    model_file.save(tmp_path / "model", overflowing(small_model, "outc.conv.weight", 1e20))
    code, out, err = run("predict", tmp_path / "model", *pictures, "-o", tmp_path / "out", "--json")
    assert code == 1, err
    rows = json.loads(out)["results"]
    assert [row["verdict"] for row in rows] == ["ERROR"] * len(pictures)
    assert [row["pred_score"] for row in rows] == [None] * len(pictures)
    assert all("the score is" in row["reason"] for row in rows)
    assert [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()] == rows


def test_levels_whose_weights_have_no_finite_sum_are_refused():
    """Each would count for nothing, every map would be 0, and every part would pass."""
    with pytest.raises(InputError, match="weights"):
        Schedule((Level(1e-3, 2, 1e308), Level(1e-2, 2, 1e308)))
