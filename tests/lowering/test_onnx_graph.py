import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import shape_inference
from onnx.reference import ReferenceEvaluator

from sprfast.config import Level, Schedule
from sprfast.errors import InputError
from sprfast.formats.export_metadata import MAX_BATCH, TOLERANCE
from sprfast.lowering import onnx_graph as graph
from sprfast.lowering.fold import fold
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from support.scoring_mode_cases import with_mode

FLOAT, FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
STORAGE = {"float32": FLOAT, "float16": FLOAT16, "bfloat16": BFLOAT16}
EIGHT_BITS = {"int8": onnx.TensorProto.INT8, "float8": onnx.TensorProto.FLOAT8E4M3FN}
SCALES = dict.fromkeys(graph.QUANTIZED, 0.1)

PUBLISHED = Schedule((Level(1e-3, 3),))
LEVELS = Schedule((Level(1e-3, 2), Level(0.05, 1, weight=0.25), Level(0.2, 3, weight=2.0)))
ANTITHETIC = Schedule((Level(0.01, 2),), noise="antithetic")


def given(model, size, images=2):
    """Images, and noise for them as the definition takes it."""
    x = torch.rand(images, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return x, noise_bank(model.schedule, *size, model.noise_seed)


def feed(x, noise):
    return {"image": x.numpy(), "noise": torch.cat(noise)[:, 0].numpy()}


def session(made):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def definition(model, x, noise):
    """Error maps, anomaly maps and scores."""
    errors = scoring.error_map(unet.from_weights(model.network, model.weights), x, model.schedule, noise)
    maps = scoring.anomaly_map(errors)
    return tuple(value.numpy() for value in (errors, maps, scoring.image_score(maps)))


def relative(got, expected):
    return np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected)


def check(got, expected, tolerance):
    for name, value, wanted in zip(graph.OUTPUTS, got, expected, strict=True):
        assert value.shape == wanted.shape, name
        assert value.dtype == np.float32, name
        assert relative(value, wanted) <= tolerance, name


@pytest.mark.parametrize("normalization", ["group", "instance"])
@pytest.mark.parametrize(
    ("size", "schedule"),
    # of 16x31 a row of one pixel is left
    [((32, 32), PUBLISHED), ((50, 70), LEVELS), ((48, 80), ANTITHETIC), ((16, 31), LEVELS), ((16, 528), PUBLISHED)],
    ids=["square", "odd-on-the-way", "wide", "smallest", "strip"],
)
def test_maps_and_scores_are_the_definitions(small_model, size, schedule, normalization):
    model = with_mode(small_model, schedule=schedule)
    runtime = session(graph.onnx_model(fold(model), *size, normalization=normalization))
    for images in (1, 3):
        x, noise = given(model, size, images)
        check(runtime.run(None, feed(x, noise)), definition(model, x, noise), 1e-5)


@pytest.mark.parametrize("normalization", ["group", "instance"])
def test_a_fixed_batch_takes_that_many_images_only(small_model, normalization):
    runtime = session(graph.onnx_model(fold(small_model), 32, 32, batch=2, normalization=normalization))
    assert [value.shape for value in runtime.get_inputs()] == [[2, 3, 32, 32], [2, 3, 32, 32]]
    assert [value.shape for value in runtime.get_outputs()] == [[2, 1, 32, 32], [2, 1, 256, 256], [2]]
    x, noise = given(small_model, (32, 32))
    check(runtime.run(None, feed(x, noise)), definition(small_model, x, noise), 1e-5)
    with pytest.raises(Exception, match="invalid dimensions"):
        runtime.run(None, feed(x[:1], noise))


@pytest.mark.parametrize("normalization", ["group", "instance"])
def test_float16_is_within_its_tolerance(small_model, normalization):
    x, noise = given(small_model, (50, 70))
    got = session(graph.onnx_model(fold(small_model), 50, 70, precision="float16", normalization=normalization)).run(
        None, feed(x, noise)
    )
    expected = definition(small_model, x, noise)
    check(got, expected, TOLERANCE["float16"])
    assert relative(got[0], expected[0]) >= 1e-5  # it is not float32 in disguise


@pytest.mark.parametrize("normalization", ["group", "instance"])
def test_bfloat16_is_within_its_tolerance_in_the_reference_evaluator(small_model, normalization):
    """onnxruntime has no bfloat16 convolution on a CPU."""
    x, noise = given(small_model, (16, 22))
    made = graph.onnx_model(fold(small_model), 16, 22, precision="bfloat16", normalization=normalization)
    got, expected = ReferenceEvaluator(made).run(None, feed(x, noise)), definition(small_model, x, noise)
    check(got, expected, TOLERANCE["bfloat16"])
    assert relative(got[0], expected[0]) >= TOLERANCE["float16"] / 3


def types(made):
    """Element type of every tensor that a node makes, as a strict inference finds it."""
    onnx.checker.check_model(made, full_check=True)
    inferred = shape_inference.infer_shapes(made, check_type=True, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    assert found.keys() >= {name for node in made.graph.node for name in node.output}
    return found


STORED_IN_16_BITS = {"MaxPool", "Resize", "Pad", "Concat", "DequantizeLinear"}


@pytest.mark.parametrize("quantization", [None, "int8", "float8"])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("normalization", ["group", "instance"])
def test_every_tensor_has_the_type_that_it_is_computed_in(small_model, normalization, precision, quantization):
    scales = SCALES if quantization else None
    plan = fold(with_mode(small_model, schedule=LEVELS))
    made = graph.onnx_model(
        plan, 50, 70, precision=precision, normalization=normalization, quantization=quantization, scales=scales
    )
    found, storage = types(made), STORAGE[precision]
    found |= {constant.name: constant.data_type for constant in made.graph.initializer}
    found |= {value.name: value.type.tensor_type.elem_type for value in made.graph.input}
    convolutions = {"exact": 0, "stored": 0}
    for node in made.graph.node:
        assert node.domain == ""
        got = found[node.output[0]]
        if node.op_type == "Conv":
            exact = node.name in ("inc.first.conv", "head.conv")
            convolutions["exact" if exact else "stored"] += 1
            assert {got, *(found[name] for name in node.input)} == {FLOAT if exact else storage}, node.name
        elif node.op_type in STORED_IN_16_BITS:
            assert got == storage, node.name
        elif node.op_type == "QuantizeLinear":
            assert got == EIGHT_BITS[quantization], node.name
        elif node.op_type == "Cast":
            assert {got, found[node.input[0]]} == {FLOAT, storage}, node.name
        else:  # the perturbation, normalisations, swish, embeddings, residual and maps
            floats = {found[name] for name in node.input if name} - {onnx.TensorProto.INT64}
            assert {got, *floats} == {FLOAT}, node.name
    assert convolutions == {"exact": 2, "stored": 17}
    assert [(opset.domain, opset.version) for opset in made.opset_import] == [
        ("", 22 if precision == "bfloat16" else 21)
    ]


@pytest.mark.parametrize("normalization", ["group", "instance"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_constants_are_those_of_the_plan_and_all_are_read(small_model, quantization, normalization):
    plan = fold(with_mode(small_model, schedule=LEVELS))
    made = graph.onnx_model(
        plan, 50, 70, normalization=normalization, quantization=quantization, scales=SCALES if quantization else None
    )
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in made.graph.initializer}
    assert len(constants) == len(made.graph.initializer)
    assert constants.keys() - {name for node in made.graph.node for name in node.input} == set()
    arrays = plan.to_arrays()
    assert arrays.keys() <= constants.keys()
    for name, array in arrays.items():
        if constants[name].dtype == np.float32:
            assert np.array_equal(constants[name].ravel(), array.ravel()), name
        else:
            assert name.removesuffix(".weight") in graph.QUANTIZED


def test_draws_at_one_time_share_their_embedding(small_model):
    plan = fold(with_mode(small_model, schedule=PUBLISHED))
    constants = {constant.name: constant for constant in graph.onnx_model(plan, 32, 32).graph.initializer}
    assert list(constants["down1.embedding"].dims) == [64, 1, 1]


def test_equal_arguments_give_equal_bytes(small_model):
    for options in (
        {},
        {"precision": "float16", "normalization": "instance"},
        {"quantization": "float8", "scales": SCALES},
    ):
        one, other = (
            graph.onnx_model(fold(small_model), 32, 48, batch=4, **options).SerializeToString() for _ in range(2)
        )
        assert one == other


@pytest.mark.parametrize(("precision", "normalization"), [("float32", "group"), ("float16", "instance")])
def test_a_nan_in_an_image_is_a_nan_score_of_that_image(small_model, precision, normalization):
    x, noise = given(small_model, (50, 70), images=3)
    x[1, 2, 49, 69] = torch.nan
    made = graph.onnx_model(fold(small_model), 50, 70, precision=precision, normalization=normalization)
    _, maps, scores = session(made).run(None, feed(x, noise))
    assert np.isnan(scores).tolist() == [False, True, False]
    assert np.isfinite(maps[[0, 2]]).all()


@pytest.mark.parametrize("where", [(0, 0), (100, 37), (255, 255)])
def test_a_nan_anywhere_in_an_anomaly_map_is_a_nan_score(small_model, where):
    score = onnx.utils.Extractor(graph.onnx_model(fold(small_model), 32, 32)).extract_model(
        ["anomaly_map"], ["pred_score"]
    )
    maps = np.random.default_rng(0).random((2, 1, 256, 256), np.float32)
    maps[0, 0][where] = np.nan
    scores = session(score).run(None, {"anomaly_map": maps})[0]
    assert np.isnan(scores[0])
    assert scores[1] == maps[1].max()


def squares(made):
    return [node.name.removesuffix(".squares") for node in made.graph.node if node.op_type == "ReduceSumSquare"]


def loud(model, key, factor):
    return dataclasses.replace(model, weights={**model.weights, key: model.weights[key] * factor})


def test_only_what_could_overflow_is_watched(small_model):
    """Graphs of ordinary weights are what they were."""
    assert squares(graph.onnx_model(fold(small_model), 32, 32)) == []
    made = graph.onnx_model(fold(loud(small_model, "down2.maxpool_conv.1.double_conv.0.weight", 1e16)), 32, 32)
    assert squares(made) == ["down2.first"]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_8_bits_do_not_hide_what_overflows_in_16(small_model):
    """Quantized, an infinite number or a NaN is one of 256 steps."""
    model = loud(small_model, "down2.maxpool_conv.1.double_conv.0.weight", 1e9)  # onnxruntime itself goes on in 32
    options = {"precision": "float16", "normalization": "instance", "quantization": "int8", "scales": SCALES}
    x, noise = given(small_model, (32, 32))
    made = graph.onnx_model(fold(model), 32, 32, **options)
    assert squares(made) == ["down2.first"]
    assert not np.isfinite(session(made).run(["pred_score"], feed(x, noise))[0]).any()
    assert squares(graph.onnx_model(fold(small_model), 32, 32, **options)) == []


@pytest.mark.parametrize(
    ("size", "options", "match"),
    [
        ((15, 32), {}, "at least 16 pixels a side and 1 to 4096 images, got 15x32 and a batch of None"),
        ((32, 15), {}, "got 32x15"),
        ((32, 32), {"batch": 0}, "a batch of 0"),
        ((32, 32), {"batch": MAX_BATCH + 1}, "a batch of 4097"),
        ((32, 32), {"quantization": "int8"}, "quantization int8 needs 17 scales.*got 0"),
        ((32, 32), {"scales": SCALES}, "quantization None needs 0 scales.*got 17"),
        ((32, 32), {"quantization": "int8", "scales": {**SCALES, "inc.first": 0.1}}, "got 18"),
        ((32, 32), {"quantization": "int8", "scales": {**SCALES, "up4.second": 0.0}}, "a positive number"),
        ((32, 32), {"quantization": "float8", "scales": {**SCALES, "up4.second": float("nan")}}, "a positive number"),
    ],
)
def test_what_has_no_graph_is_refused(small_model, size, options, match):
    with pytest.raises(InputError, match=match):
        graph.onnx_model(fold(small_model), *size, **options)


def test_a_network_beyond_protobuf_is_refused(small_model, monkeypatch):
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="bytes of weights, an ONNX file holds up to 1000"):
        graph.onnx_model(fold(small_model), 32, 32)
