"""TensorRT-RTX really parses and builds our graphs here, since its builder needs no GPU; nothing is
run.
"""

import dataclasses
import os
import signal

import onnx
import pytest

from sprfast.backends.sessions import cuda, tensorrt, tensorrt_build
from sprfast.backends.sessions.tensorrt_build import BUCKETS, Options
from sprfast.config import Level, Schedule
from sprfast.errors import BackendError
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import QUANTIZED, onnx_model
from support.scoring_mode_cases import with_mode

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
RTX = "tensorrt_rtx"
ONE = Options(profiles=((1, 1, 1),))
STORED = {"float32": None, "float16": "HALF", "bfloat16": "BF16"}


def graph(model, height=192, width=192, **options):
    return onnx_model(fold(model), height, width, **options)


def parsed(model):
    """Builder and network, which lives no longer than the builder."""
    builder = trt.Builder(tensorrt_build.logger(RTX)[0])
    return builder, tensorrt_build.parsed(model.SerializeToString(), builder, RTX)


def build(model, options=ONE, **arguments):
    return tensorrt_build.build(model.SerializeToString(), RTX, options, **arguments)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_our_graph_builds_with_the_profiles_of_all_batches(small_model, precision):
    built = build(graph(small_model, precision=precision), Options())
    assert len(built.plan) > 2**20
    assert built.timing_cache == b""  # RTX times nothing
    found = built.summary
    assert found["layers"]["CONVOLUTION"] == 19
    assert found["layers"]["NORMALIZATION"] == 18  # one layer, rather than what it is made of
    assert found["layers"].get("CAST", 0) == (0 if precision == "float32" else 34)
    assert set(found["types"]) - {"INT32", "INT64"} == {"FLOAT", STORED[precision]} - {None}
    assert found["inputs"] == {
        "image": {"type": "FLOAT", "shape": [-1, 3, 192, 192]},
        "noise": {"type": "FLOAT", "shape": [2, 3, 192, 192]},
    }
    assert found["outputs"] == {
        "error_map": {"type": "FLOAT", "shape": [-1, 1, 192, 192]},
        "anomaly_map": {"type": "FLOAT", "shape": [-1, 1, 256, 256]},
        "pred_score": {"type": "FLOAT", "shape": [-1]},
    }
    assert found["profiles"] == [[[batch, 3, 192, 192] for batch in sizes] for sizes in BUCKETS]


def test_the_builder_may_neither_round_nor_fold_away_a_nan(small_model):
    builder, network = parsed(graph(small_model, 32, 32))
    config = tensorrt_build.configured(builder, network, Options(workspace_bytes=2**30), RTX)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_flag(trt.BuilderFlag.STRICT_NANS)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    assert not config.get_flag(trt.BuilderFlag.STRIP_PLAN)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**30
    assert config.num_optimization_profiles == len(BUCKETS)
    shapes = [tuple(map(tuple, profile)) for profile in tensorrt_build.summary(network, BUCKETS)["profiles"]]
    assert shapes[1] == ((2, 3, 32, 32), (8, 3, 32, 32), (8, 3, 32, 32))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_fixed_batch_needs_no_profile(small_model, precision):
    built = build(graph(small_model, 64, 64, batch=4, precision=precision), Options(profiles=()))
    assert built.summary["inputs"]["image"]["shape"] == [4, 3, 64, 64]
    assert built.summary["profiles"] == []


def test_an_odd_size_builds(small_model):
    built = build(graph(small_model, 50, 70, precision="float16"), Options())
    assert built.summary["outputs"]["error_map"]["shape"] == [-1, 1, 50, 70]


def test_draws_at_several_times_build(small_model):
    model = with_mode(small_model, schedule=Schedule((Level(1e-3, 2), Level(0.1, 1, 0.5))))
    assert build(graph(model, 32, 32), Options()).summary["inputs"]["noise"]["shape"] == [3, 3, 32, 32]


def test_the_graph_for_other_runtimes_builds_too(small_model):
    found = build(graph(small_model, 64, 64, normalization="instance", precision="float16")).summary
    assert found["layers"]["NORMALIZATION"] == 18


@pytest.mark.parametrize(("quantization", "stored"), [("int8", "INT8"), ("float8", "FP8")])
def test_a_quantized_graph_has_its_convolutions_in_eight_bits(small_model, quantization, stored):
    model = graph(
        small_model, 64, 64, precision="float16", quantization=quantization, scales=dict.fromkeys(QUANTIZED, 0.05)
    )
    _, network = parsed(model)
    tensorrt_build.check_pins(network)
    found = tensorrt_build.summary(network, ())
    assert found["layers"]["QUANTIZE"] == len(QUANTIZED)
    assert found["layers"]["DEQUANTIZE"] == 2 * len(QUANTIZED)  # inputs and weights
    assert stored in found["types"]


@pytest.mark.parametrize(
    ("quantization", "capability", "builds"),
    [
        ("float8", tensorrt.FLOAT8_FROM, True),
        ("float8", (8, 6), False),  # the newest without
        ("int8", (8, 6), True),
    ],
)
def test_float8_builds_from_the_compute_capability_on_that_a_graph_asks_for(
    small_model, quantization, capability, builds
):
    scales = dict.fromkeys(QUANTIZED, 0.05)
    builder, network = parsed(graph(small_model, 32, 32, precision="float16", quantization=quantization, scales=scales))
    config = tensorrt_build.configured(builder, network, ONE, RTX)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, "SM{}{}".format(*capability)), 0)
    assert (builder.build_serialized_network(network, config) is not None) == builds
    if not builds:
        assert "fp8_e4m3" in tensorrt_build.logger(RTX)[1].reason()


def to_half(model, *names):
    """Casts to float32 with these names lead to float16, and the constants after them are in
    float16.
    """
    half = onnx.TensorProto.FLOAT16
    for node in model.graph.node:
        if node.name in names and node.op_type == "Cast":
            node.attribute[0].i = half
    for constant in model.graph.initializer:
        if (
            constant.name.rpartition(".")[0] in {name.removesuffix(".conv.float32") for name in names}
            and constant.data_type != half
        ):
            constant.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant).astype("float16"), constant.name)
            )
    return model


def test_a_normalisation_that_lost_its_pin_is_refused(small_model):
    model = to_half(graph(small_model, 64, 64, precision="float16"), "down1.first.conv.float32")
    with pytest.raises(
        BackendError, match=r"layer down1\.first\.norm has \S+ in HALF, where float32 is needed; export the model again"
    ):
        build(model)


@pytest.mark.parametrize("at", ["perturbed.flat", "head.draws", "residual.squared", "pred_score"])
def test_what_is_rounded_before_the_first_normalisation_or_after_the_last_is_refused(small_model, at):
    """Rounded once, and back: all neighbours are float32, and still something was lost."""
    model = graph(small_model, 64, 64, precision="float16")
    index, node = next((index, node) for index, node in enumerate(model.graph.node) if node.name == at)
    source, node.input[0] = node.input[0], "back"
    down = onnx.helper.make_node("Cast", [source], ["rounded"], "rounded", to=onnx.TensorProto.FLOAT16)
    back = onnx.helper.make_node("Cast", ["rounded"], ["back"], "back", to=onnx.TensorProto.FLOAT)
    for cast in (back, down):
        model.graph.node.insert(index, cast)
    with pytest.raises(BackendError, match=r"layer (rounded|back) has rounded in HALF, where float32 is needed"):
        build(model)


def test_a_graph_without_normalisations_is_refused():
    value = onnx.helper.make_tensor_value_info
    shape = (1, 3, 32, 32)
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["image"], ["error_map"])],
        "other",
        [value("image", onnx.TensorProto.FLOAT, shape)],
        [value("error_map", onnx.TensorProto.FLOAT, shape)],
    )
    with pytest.raises(BackendError, match="has no normalisation that TensorRT knows as one"):
        build(onnx.helper.make_model(made, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)]))


def test_a_node_that_cannot_be_parsed_is_named(small_model):
    model = graph(small_model, 32, 32)
    next(node for node in model.graph.node if node.name == "down2.second.swish").op_type = "Nonsense"
    with pytest.raises(
        BackendError, match=r"backend tensorrt_rtx: graph could not be parsed: node down2\.second\.swish \(Nonsense\): "
    ):
        build(model)


def test_what_is_no_onnx_model_is_refused():
    with pytest.raises(BackendError, match=r"graph could not be parsed: .*Failed to parse the ONNX model"):
        tensorrt_build.build(b"not a graph", RTX, ONE)


def test_a_build_that_fails_says_what_the_builder_said(small_model):
    with pytest.raises(BackendError, match=r"graph could not be built: .*OutOfMemory"):
        build(graph(small_model), Options(workspace_bytes=2**20))


def test_a_profile_that_the_graph_does_not_have_is_refused(small_model):
    with pytest.raises(BackendError, match=r"could not be built|are no profile of this graph"):
        build(graph(small_model, 32, 32, batch=4), Options())


def test_progress_is_told(small_model):
    told = []
    build(graph(small_model, 32, 32), on_progress=lambda *step: told.append(step))
    assert len(told) > 100
    assert all(isinstance(phase, str) and 1 <= done <= total for phase, done, total in told)
    phase, _, total = told[-1]
    assert told[-1] == (phase, total, total)


def test_what_progress_raises_ends_the_build(small_model):
    told = []

    def stop(*step):
        told.append(step)
        if len(told) == 20:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        build(graph(small_model, 32, 32), on_progress=stop)
    assert len(told) == 20
    build(graph(small_model, 32, 32))  # and the next one works


def test_an_interrupt_ends_the_build(small_model):
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told = []

    def interrupt(*step):
        told.append(step)
        if len(told) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            build(graph(small_model, 32, 32), on_progress=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(told) <= 21


def test_a_stripped_plan_takes_other_weights(small_model):
    builder, network = parsed(graph(small_model, 32, 32))
    config = tensorrt_build.configured(builder, network, Options(stripped=True), RTX)
    assert config.get_flag(trt.BuilderFlag.STRIP_PLAN)
    assert config.get_flag(trt.BuilderFlag.REFIT)
    assert not config.get_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def test_a_stripped_plan_is_much_smaller_and_needs_a_gpu_to_build(small_model):
    """RTX compiles what puts weights in for the GPU that is there; without one it says so."""
    model, stripped = graph(small_model, 32, 32), dataclasses.replace(ONE, stripped=True)
    if cuda.unavailable():
        with pytest.raises(BackendError, match=r"graph could not be built: .*Myelin"):
            build(model, stripped)
    else:
        assert len(build(model, stripped).plan) < 0.5 * len(build(model).plan)
