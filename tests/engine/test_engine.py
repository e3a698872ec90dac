import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch

import sprfast
from sprfast.backends import registry as backends
from sprfast.data.images import load_image
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import MAX_BATCH
from sprfast.errors import BackendError, ModelFileError
from sprfast.formats import model as model_file
from sprfast.method import noise, scoring, threshold, unet
from sprfast.method.threshold import Verdict
from support.scoring_mode_cases import with_mode


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(small_model, "eager", "cpu")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def same(one, other):
    """Bit for bit, the time taken apart."""
    arrays = all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("anomaly_map", "error_map", "pred_mask")
    )
    return arrays and (one.pred_score, one.verdict, one.source_size) == (
        other.pred_score,
        other.verdict,
        other.source_size,
    )


def is_error(result, reason):
    assert result.verdict is Verdict.ERROR
    assert result.pred_label
    assert reason in result.reason
    return True


@pytest.mark.parametrize("size", [(32, 32), (40, 61), (90, 50)])
def test_path_pil_image_array_and_tensor_score_alike(engine, small_model, tmp_path, size):
    array = picture(*size)
    path = tmp_path / "part.png"
    PIL.Image.fromarray(array).save(path)
    tensor = torch.from_numpy(load_image(path, small_model.preprocessing).pixels)
    expected = engine.predict(path)
    assert expected.verdict is not Verdict.ERROR
    assert same(engine.predict(str(path)), expected)
    assert same(engine.predict(PIL.Image.fromarray(array)), expected)
    assert same(engine.predict(array, channel_order="rgb"), expected)
    assert same(engine.predict(np.ascontiguousarray(array[..., ::-1]), channel_order="bgr"), expected)
    assert same(dataclasses.replace(engine.predict(tensor), source_size=size), expected)  # a tensor knows no other size


def test_result_says_what_the_definition_says(engine, small_model, pictures):
    result = engine.predict(pictures[1])
    x = torch.from_numpy(load_image(pictures[1], small_model.preprocessing).pixels)[None]
    bank = noise.noise_bank(small_model.schedule, 32, 32, small_model.noise_seed)
    network = unet.from_weights(small_model.network, small_model.weights)
    errors = scoring.error_map(network, x, small_model.schedule, bank)
    anomalies = scoring.anomaly_map(errors)
    np.testing.assert_allclose(result.error_map, errors[0, 0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(result.anomaly_map, anomalies[0, 0], rtol=1e-5)
    assert result.pred_score == pytest.approx(float(scoring.image_score(anomalies)), rel=1e-5)
    assert result.pred_score == result.anomaly_map.max()
    assert result.error_map.shape == (32, 32)
    assert result.error_map.dtype == result.anomaly_map.dtype == np.float32
    assert result.source_size == (32, 32)
    assert result.milliseconds > 0


def test_threshold_decides_verdict_label_and_mask(small_model, pictures):
    score = Engine(small_model).predict(pictures[0]).pred_score
    passed, rejected = (
        Engine(with_mode(small_model, threshold=threshold.manual(value))).predict(pictures[0])
        for value in (score, math.nextafter(score, 0.0))
    )
    assert passed.verdict is Verdict.PASS
    assert passed.pred_label is False
    assert passed.threshold == score
    assert not passed.pred_mask.any()
    assert rejected.verdict is Verdict.REJECT
    assert rejected.pred_label is True
    assert rejected.pred_mask.shape == (256, 256)
    # rounding the threshold to float32 would empty it
    assert np.array_equal(rejected.pred_mask, rejected.anomaly_map == score)
    assert rejected.pred_mask.any()
    assert passed.reason is rejected.reason is None


def test_without_a_threshold_nothing_passes(small_model, pictures):
    result = Engine(with_mode(small_model, threshold=None)).predict(pictures[0])
    assert is_error(result, "no threshold")
    assert math.isfinite(result.pred_score)
    assert result.anomaly_map is not None
    assert result.pred_mask is None


def test_a_bad_image_among_good_ones_is_an_error_and_leaves_the_others_alone(engine, pictures, tmp_path):
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(pictures[0].read_bytes()[:200])
    expected = engine.predict(pictures)
    results = engine.predict([pictures[0], truncated, pictures[1], tmp_path / "missing.png", *pictures[2:]])
    assert is_error(results[1], "truncated.png")
    assert is_error(results[3], "missing.png")
    assert math.isnan(results[1].pred_score)
    assert results[1].anomaly_map is results[1].error_map is results[1].pred_mask is None
    assert all(map(same, [results[0], results[2], *results[4:]], expected))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1.5])
def test_nan_in_a_tensor_is_an_error_and_leaves_the_others_alone(engine, poison):
    good = [torch.rand(3, 32, 32) * 2 - 1 for _ in range(3)]
    bad = good[1].clone()
    bad[2, 31, 0] = poison
    expected = engine.predict(good)
    results = engine.predict([good[0], bad, good[2]])
    assert is_error(results[1], "finite values in [-1, 1]")
    assert same(results[0], expected[0])
    assert same(results[2], expected[2])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 3, 32, 32),
        torch.zeros(32, 32, 3),
        torch.zeros(1, 32, 32),
        torch.zeros(3, 15, 32),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.complex64),
        torch.zeros(0),
        torch.zeros(3, 32, 32).to_sparse(),
        torch.zeros(3, 32, 32, device="meta"),
    ],
    ids=lambda tensor: f"{tensor.layout}-{tensor.dtype}-{tuple(tensor.shape)}-{tensor.device}",
)
def test_tensor_of_another_form_is_an_error_that_says_what_is_accepted(engine, tensor):
    assert is_error(engine.predict(tensor), "expected dense float (3, H, W)")


def test_array_without_channel_order_is_an_error(engine):
    assert is_error(engine.predict(picture(32, 32)), "channel_order")


@pytest.mark.parametrize("source", [None, 3.5, b"part.png", {"image": 1}], ids=repr)
def test_what_is_not_a_picture_is_an_error(engine, source):
    assert is_error(engine.predict(source), "accepted are")


def test_overflow_inside_the_network_is_an_error_and_never_passes(small_model, pictures):
    weights = {**small_model.weights, "outc.conv.weight": small_model.weights["outc.conv.weight"] * 1e30}
    model = dataclasses.replace(with_mode(small_model, threshold=threshold.manual(1e308)), weights=weights)
    result = Engine(model).predict(pictures[0])
    assert not math.isfinite(result.pred_score)
    assert is_error(result, "the score is")


def test_nan_inside_the_network_is_an_error_and_never_passes(small_model, pictures):
    weights = {
        **small_model.weights,
        "inc.double_conv.0.weight": small_model.weights["inc.double_conv.0.weight"] * 1e38,
    }
    result = Engine(dataclasses.replace(small_model, weights=weights)).predict(pictures[3])
    assert math.isnan(result.pred_score)
    assert is_error(result, "the score is nan")
    assert result.pred_mask.all()  # a NaN counts as above the threshold


def test_constant_images_have_finite_scores(engine):
    for level in (0, 128, 255):
        assert math.isfinite(engine.predict(np.full((32, 32, 3), level, np.uint8), channel_order="rgb").pred_score)


def test_mixed_sizes_keep_their_order(engine):
    sizes = [(32, 32), (32, 64), (64, 32), (50, 50), (40, 80), (90, 45), (32, 32)]
    arrays = [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    results = engine.predict(arrays, channel_order="rgb")
    assert [result.source_size for result in results] == sizes
    assert [result.error_map.shape for result in results] == [
        (32, 32),
        (32, 64),
        (64, 32),
        (32, 32),
        (32, 64),
        (64, 32),
        (32, 32),
    ]
    for array, result in zip(arrays, results, strict=True):
        assert same(engine.predict(array, channel_order="rgb"), result)


def test_score_does_not_depend_on_the_batch(engine):
    tensors = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(MAX_BATCH + 3)]
    alone = [engine.predict(tensor) for tensor in tensors]
    assert len({result.pred_score for result in alone}) > MAX_BATCH
    for count in (2, 3, MAX_BATCH):
        assert all(map(same, engine.predict(tensors[:count]), alone))
    assert all(map(same, engine.predict(tensors[::-1]), alone[::-1]))


def test_no_images_give_no_results(engine):
    assert engine.predict([]) == []
    assert engine.predict(()) == []


def test_two_engines_of_one_model_score_alike(small_model, pictures, engine):
    assert all(map(same, Engine(small_model, "eager", "cpu").predict(pictures), engine.predict(pictures)))


def test_another_noise_seed_gives_another_score(small_model, pictures, engine):
    other = Engine(dataclasses.replace(small_model, noise_seed=1), "eager", "cpu").predict(pictures[0])
    assert other.pred_score != engine.predict(pictures[0]).pred_score


def test_eight_threads_get_the_results_of_one(engine):
    batches = [[picture(32 + 16 * (seed % 2), 48, seed + i) for i in range(1 + seed % 3)] for seed in range(16)]
    expected = [engine.predict(batch, channel_order="rgb") for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda batch: engine.predict(batch, channel_order="rgb"), batches))
    assert all(same(a, b) for one, other in zip(got, expected, strict=True) for a, b in zip(one, other, strict=True))


def test_inputs_of_any_strides_score_alike_and_are_never_written(engine):
    array = picture(32, 48)
    tensor = torch.rand(3, 32, 48)
    read_only = array.copy()
    read_only.setflags(write=False)
    padded = np.zeros((32, 64, 3), np.uint8)[:, :48]
    padded[:] = array
    flipped = np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    expected = engine.predict(array, channel_order="rgb")
    for form in (read_only, padded, flipped, np.asfortranarray(array)):
        assert same(engine.predict(form, channel_order="rgb"), expected)
        assert np.array_equal(form, array)
    before = tensor.clone()
    expected = engine.predict(tensor)
    assert torch.equal(tensor, before)
    assert same(engine.predict(tensor.permute(2, 1, 0).contiguous().permute(2, 1, 0)), expected)
    assert same(engine.predict(tensor.clone().requires_grad_(True)), expected)
    assert same(engine.predict(tensor.double()), expected)


def test_writing_into_a_result_does_not_change_another(engine):
    tensors = [torch.zeros(3, 32, 32), torch.rand(3, 32, 32)]
    first, second = engine.predict(tensors)
    first.anomaly_map[:] = first.error_map[:] = np.nan
    assert np.isfinite(second.anomaly_map).all()
    assert same(engine.predict(tensors)[1], second)
    assert np.isfinite(engine.predict(tensors)[0].anomaly_map).all()


def test_load_reads_a_model_file(small_model, pictures, engine, tmp_path):
    model_file.save(tmp_path / "part.safetensors", small_model)
    loaded = sprfast.load(tmp_path / "part.safetensors", backend="eager", device="cpu")
    assert loaded.device == torch.device("cpu")
    assert all(map(same, loaded.predict(pictures), engine.predict(pictures)))


def test_load_raises_what_its_parts_raise(small_model, tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        sprfast.load(tmp_path / "missing.safetensors")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="no CUDA device"):
            Engine(small_model, "eager", "cuda")


@pytest.mark.interpreter
def test_warm_up_leaves_nothing_to_compile_and_changes_no_score(small_model):
    if backends.unavailable("triton"):
        pytest.skip(backends.unavailable("triton"))
    from sprfast.kernels.triton import launch

    engine = Engine(small_model, "triton")
    engine.warm_up(16, 32, batches=(1, 2))
    before = set(launch._warm)
    x = np.random.default_rng(0).random((2, 3, 16, 32), np.float32)
    together = engine.maps(x)[1]
    assert np.array_equal(engine.maps(x[:1])[1], together[:1])
    assert launch._warm == before


@pytest.mark.parametrize("name", ["cpu", "onnxruntime"])
def test_a_session_is_given_no_tensor_on_a_cpu(small_model, pictures, monkeypatch, name):
    if reason := backends.unavailable(name):
        pytest.skip(reason)
    engine = Engine(small_model, name, "cpu")
    expected = engine.predict(pictures)
    for made in ("from_numpy", "tensor", "as_tensor", "stack"):
        monkeypatch.setattr(torch, made, None)
    monkeypatch.setattr(torch.Tensor, "numpy", None)
    engine._noise.cache_clear()
    assert all(map(same, engine.predict(pictures), expected))
