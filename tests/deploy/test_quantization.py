import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from sprfast.backends.sessions import onnxruntime as runtime
from sprfast.config import Level, Schedule
from sprfast.deploy.quantization import HEADROOM, calibrate
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import QUANTIZED_TOLERANCE, TOLERANCE, probe_image
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import LARGEST, OUTPUTS, QUANTIZED, onnx_model
from sprfast.method import scoring, unet
from sprfast.method.folded import BLOCKS
from sprfast.method.noise import noise_bank
from support.scoring_mode_cases import with_mode

SIZE = (48, 50)
BOTH = pytest.mark.parametrize("quantization", ["int8", "float8"])


@pytest.fixture(scope="module")
def model(small_model):
    return with_mode(small_model, schedule=Schedule((Level(1e-3, 2), Level(0.02, 1))))


@pytest.fixture(scope="module")
def plan(model):
    return fold(model)


@pytest.fixture(scope="module")
def images():
    """Three images, the last one of more contrast than the others."""
    x = probe_image(*SIZE)
    return np.concatenate([0.4 * x, 0.5 * x[..., ::-1], x])


@pytest.fixture(scope="module")
def noise(model):
    return noise_bank(model.schedule, *SIZE, model.noise_seed)


@pytest.fixture(scope="module")
def scales(plan, images, noise):
    return {quantization: calibrate(plan, images, drawn(noise), quantization) for quantization in LARGEST}


def drawn(noise):
    return torch.cat(noise)[:, 0].numpy()


def run(made, images, noise, outputs=OUTPUTS):
    """Tensors of a graph by their names."""
    made.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs if name not in OUTPUTS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, {"image": images, "noise": drawn(noise)}), strict=True))


def convolutions(network):
    """The definition's by their names in a plan."""
    for name in BLOCKS:
        double = next(
            part for part in getattr(network, name).modules() if isinstance(part, unet.DoubleConv)
        ).double_conv
        yield from ((f"{name}.first", double[0]), (f"{name}.second", double[3]))


def rounded(x, scale, quantization, storage=torch.float32):
    """To 8 bits and back, the scale and what comes back in the storage type."""
    scale = torch.as_tensor(scale).to(storage).float()
    steps = x.float() / scale
    back = (
        steps.round().clamp(-128, 127)
        if quantization == "int8"
        else steps.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    )
    return (back * scale).to(storage).float()


def rounded_weight(weight, quantization, storage=torch.float32):
    """int8 has a scale for each output channel, float8 one for all."""
    scale = weight.abs().amax((1, 2, 3) if quantization == "int8" else None, keepdim=True) / LARGEST[quantization]
    return rounded(weight, scale.clamp_min(torch.finfo(storage).smallest_normal), quantization, storage)


@torch.inference_mode()
def error_map(model, images, noise, prepare=lambda network: None):
    network = unet.from_weights(model.network, {name: value.clone() for name, value in model.weights.items()})
    prepare(network)
    return scoring.error_map(network, torch.from_numpy(images), model.schedule, noise).numpy()


def relative(got, expected):
    return np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected)


@BOTH
def test_scales_cover_what_good_images_show_with_headroom(model, plan, images, noise, quantization):
    largest = {}

    def watch(network):
        for name, layer in convolutions(network):
            layer.register_forward_pre_hook(
                lambda _, given, name=name: largest.update(
                    {name: max(largest.get(name, 0.0), float(given[0].abs().max()))}
                )
            )

    error_map(model, images, noise, watch)
    assert largest.pop("inc.first") > 0
    got = calibrate(plan, images, drawn(noise), quantization)
    assert tuple(got) == QUANTIZED == tuple(largest)
    factor = HEADROOM[quantization] / LARGEST[quantization]
    assert list(got.values()) == pytest.approx([factor * value for value in largest.values()], rel=1e-5)
    assert got == calibrate(plan, images[::-1], drawn(noise), quantization)
    fewer = calibrate(plan, images[:1], drawn(noise), quantization)
    assert all(fewer[name] <= got[name] for name in QUANTIZED)
    assert fewer != got


def test_scales_without_onnxruntime_are_refused(plan, images, noise, monkeypatch):
    monkeypatch.setattr(runtime, "unavailable", lambda: "needs onnxruntime")
    with pytest.raises(BackendError, match="quantization: needs onnxruntime"):
        calibrate(plan, images, drawn(noise), "int8")


@BOTH
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_each_convolution_computes_what_its_scales_say(model, plan, images, noise, scales, quantization, precision):
    """From the input that the graph itself has there: whole networks drift apart, since a rounding
    error turns into a step.
    """
    narrow = {name: scale / 2 for name, scale in scales[quantization].items()}  # so that values beyond are among them
    made = onnx_model(
        plan, *SIZE, precision=precision, normalization="instance", quantization=quantization, scales=narrow
    )
    before = {
        node.name.removesuffix(".quantized"): node.input[0]
        for node in made.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert tuple(before) == QUANTIZED
    after = {name: f"{name}.conv" for name in QUANTIZED}
    got = run(made, images, noise, (*before.values(), *after.values()))
    storage = torch.float32 if precision == "float32" else torch.float16
    clipped = 0.0
    for name, layer in convolutions(unet.from_weights(model.network, model.weights)):
        if name in QUANTIZED:
            x = torch.from_numpy(got[before[name]])
            assert x.dtype == storage
            clipped += float((x.abs() > narrow[name] * LARGEST[quantization]).float().mean())
            x, weight = (
                rounded(x, narrow[name], quantization, storage),
                rounded_weight(layer.weight, quantization, storage),
            )
            expected = F.conv2d(x.double(), weight.double(), layer.bias.double(), padding=1)
            assert relative(got[after[name]], expected.numpy()) <= {"float32": 1e-5, "float16": 1e-3}[precision], name
    assert clipped > 0.0


@BOTH
def test_the_error_is_what_eight_bits_cost(model, plan, images, noise, scales, quantization):
    def prepare(network):
        for name, layer in convolutions(network):
            if name in QUANTIZED:
                layer.weight.data = rounded_weight(layer.weight, quantization)
                scale = scales[quantization][name]
                layer.register_forward_pre_hook(lambda _, given, scale=scale: (rounded(given[0], scale, quantization),))

    expected = error_map(model, images, noise)
    emulated = error_map(model, images, noise, prepare)
    cost = relative(emulated, expected)
    for normalization in ("group", "instance"):
        made = onnx_model(
            plan, *SIZE, normalization=normalization, quantization=quantization, scales=scales[quantization]
        )
        got = run(made, images, noise)["error_map"]
        assert relative(got, emulated) <= 0.6 * cost
        assert relative(got, expected) == pytest.approx(cost, rel=0.2)
        assert relative(got, expected) <= QUANTIZED_TOLERANCE[quantization]
    assert cost >= 5e-3


@BOTH
def test_bfloat16_and_eight_bits_in_the_reference_evaluator(model, plan, noise, images, scales, quantization):
    made = onnx_model(plan, *SIZE, precision="bfloat16", quantization=quantization, scales=scales[quantization])
    got = ReferenceEvaluator(made).run(None, {"image": images[:1], "noise": drawn(noise)})[0]
    error = relative(got, error_map(model, images[:1], noise))
    assert TOLERANCE["float16"] <= error <= QUANTIZED_TOLERANCE[quantization]


@BOTH
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_quantization_is_explicit(plan, scales, quantization, precision):
    """Each quantized convolution reads two DequantizeLinear, one of an 8-bit constant, as TensorRT
    wants it.
    """
    made = onnx_model(plan, *SIZE, precision=precision, quantization=quantization, scales=scales[quantization])
    nodes = {node.output[0]: node for node in made.graph.node}
    constants = {constant.name: numpy_helper.to_array(constant) for constant in made.graph.initializer}
    seen = []
    for node in made.graph.node:
        if node.op_type == "Conv" and node.name not in ("inc.first.conv", "head.conv"):
            name = node.name.removesuffix(".conv")
            seen.append(name)
            values, weights = (nodes[given] for given in node.input[:2])
            assert {values.op_type, weights.op_type} == {"DequantizeLinear"}
            assert nodes[values.input[0]].op_type == "QuantizeLinear"
            assert list(values.input[1:]) == list(nodes[values.input[0]].input[1:])
            assert constants[values.input[1]].shape == constants[values.input[2]].shape == ()
            assert float(constants[values.input[1]]) == pytest.approx(scales[quantization][name], rel=1e-2)
            assert float(constants[values.input[2]]) == 0.0
            assert weights.input[0] == f"{name}.weight"
            shape = constants[weights.input[0]].shape
            axis, scaled = ([("axis", 0)], shape[:1]) if quantization == "int8" else ([], ())
            assert [(attribute.name, attribute.i) for attribute in weights.attribute] == axis
            assert constants[weights.input[1]].shape == scaled
            assert (
                constants[weights.input[1]].dtype == constants[values.input[1]].dtype == constants[node.input[2]].dtype
            )
    assert tuple(seen) == QUANTIZED


@BOTH
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_weights_are_the_nearest_that_eight_bits_have(plan, scales, quantization, precision):
    made = onnx_model(plan, *SIZE, precision=precision, quantization=quantization, scales=scales[quantization])
    constants = {constant.name: numpy_helper.to_array(constant) for constant in made.graph.initializer}
    for name in QUANTIZED:
        stored, scale = (
            constants[f"{name}.weight"],
            constants[f"{name}.weight.scale"].astype(np.float64).reshape(-1, 1, 1, 1),
        )
        block, place = name.split(".")
        weight = getattr(plan.blocks[block], place).weight
        off = np.abs(stored.astype(np.float64) * scale - weight)
        step = scale if quantization == "int8" else np.maximum(np.abs(weight) / 8, scale * 2.0**-9)
        assert (off <= 0.501 * step + np.abs(weight) * 2.0**-8 * (precision == "bfloat16")).all()
        each = (1, 2, 3) if quantization == "int8" else None
        used = np.abs(stored.astype(np.float64)).max(axis=each) / LARGEST[quantization]
        smallest = 2.0**-14 if precision == "float16" else 0.0  # normal number; a scale is none below
        assert ((used >= 0.98) | (scale.ravel() == smallest)).all()


def test_the_file_is_a_quarter(plan, scales):
    size = len(onnx_model(plan, *SIZE).SerializeToString())
    assert len(onnx_model(plan, *SIZE, quantization="int8", scales=scales["int8"]).SerializeToString()) < 0.3 * size


@BOTH
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_weights_that_are_all_but_zero_are_no_division_by_zero(model, images, noise, scales, quantization, precision):
    weights = {name: value.clone() for name, value in model.weights.items()}
    weights["down1.maxpool_conv.1.double_conv.0.weight"][3] = 0.0
    weights["down2.maxpool_conv.1.double_conv.0.weight"] *= 1e-6
    plan = fold(dataclasses.replace(model, weights=weights))
    made = onnx_model(
        plan,
        *SIZE,
        precision=precision,
        normalization="instance",
        quantization=quantization,
        scales=scales[quantization],
    )
    assert np.isfinite(run(made, images, noise)["pred_score"]).all()


@BOTH
def test_a_nan_in_an_image_is_a_nan_score_of_that_image(plan, images, noise, scales, quantization):
    broken = images.copy()
    broken[1, 0, 47, 49] = np.nan
    made = onnx_model(plan, *SIZE, normalization="instance", quantization=quantization, scales=scales[quantization])
    got = run(made, broken, noise)
    assert np.isnan(got["pred_score"]).tolist() == [False, True, False]
    assert np.isnan(got["error_map"][1]).all()
    assert np.isfinite(got["anomaly_map"][[0, 2]]).all()


def test_a_quantized_graph_is_checked_by_onnx(plan, scales):
    for quantization in LARGEST:
        onnx.checker.check_model(
            onnx_model(plan, *SIZE, quantization=quantization, scales=scales[quantization]), full_check=True
        )
