"""The TensorRT session's plans: built, checked, cached and refused.

Where there is no GPU a device is simulated, as in test_tensorrt.py; on a GPU all of it is real.
"""

import inspect
import json

import numpy as np
import pytest

from sprfast.backends.sessions import cuda, tensorrt, tensorrt_build
from sprfast.backends.sessions.session import TensorRtOptions
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import Probe, probe_image
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import onnx_model
from sprfast.lowering.probe import probe
from support import ROOT, simulated_cuda
from support.tensorrt_cases import FLAVOURS, SIZE, close_to, graph

pytest.importorskip("onnxruntime")
NO_GPU = cuda.unavailable()


@pytest.fixture(scope="module")
def built(small_model):
    pytest.importorskip("tensorrt_rtx")
    return tensorrt_build.build(graph(small_model), "tensorrt_rtx", tensorrt_build.Options())


@pytest.fixture
def simulated(monkeypatch, tmp_path, small_model, noise, built):
    """`Graph.open` with a real plan and cache: plans that come to be loaded, graphs that are
    built and devices that were opened.
    """
    monkeypatch.setenv("SPRFAST_CACHE_DIR", str(tmp_path / "cache"))
    loaded, devices, builds = [], [], []
    facts = cuda.Facts("Simulated GPU", "8.9", "13.0")
    monkeypatch.setattr(cuda, "facts", lambda index: facts)
    monkeypatch.setattr(tensorrt, "unavailable", lambda flavour: None)

    def open_device(index):
        devices.append(simulated_cuda.SimulatedDevice())
        return devices[-1]

    def engine(plan, flavour, weights):
        loaded.append(plan)
        return None, simulated_cuda.SimulatedEngine(
            graph(small_model), devices[-1], noise.shape, tensorrt_build.BUCKETS
        )

    def build(onnx, flavour, options, *, timing_cache, on_progress):
        assert devices[-1].is_current
        builds.append(onnx)
        return built

    monkeypatch.setattr(cuda, "open_device", open_device)
    monkeypatch.setattr(tensorrt, "_engine", engine)
    monkeypatch.setattr(tensorrt_build, "build", build)

    def call(onnx=None, wanted=None, quantization=None):
        return tensorrt.Graph(
            onnx or graph(small_model),
            flavour="tensorrt_rtx",
            probe=wanted or probe(small_model, SIZE, SIZE, 1e-4),
            noise=noise,
            precision="float32",
            quantization=quantization,
            batch=None,
        ).open()

    call.loaded, call.devices, call.builds, call.folder = loaded, devices, builds, tmp_path / "cache"
    return call


def test_a_plan_is_built_once_and_certified(simulated, images, noise, expected):
    first = simulated()
    assert first.origin == "built"
    second = simulated()
    assert second.origin == "loaded"
    assert simulated.loaded[0] == simulated.loaded[1]
    assert len(simulated.builds) == 1
    for session in (first, second):
        close_to(session.maps(images[:3], noise), expected, 3)
        session.close()
    (document,) = simulated.folder.glob("*.json")
    certificate = json.loads(document.read_text())["certificate"]
    assert certificate["probe_relative_rms"] < 1e-5
    assert certificate["tolerance"] == 1e-4
    assert certificate["gpu"] == "Simulated GPU"
    assert certificate["by"].startswith("tensorrt_rtx 1.")
    assert certificate["network"]["layers"]["CONVOLUTION"] == 19
    assert all(device.closed for device in simulated.devices)


@pytest.mark.parametrize("damage", ["plan", "document", "cut", "link"])
def test_bytes_of_a_bad_entry_never_come_to_be_loaded(simulated, damage, tmp_path):
    simulated().close()
    (plan,), (document,) = simulated.folder.glob("*.plan"), simulated.folder.glob("*.json")
    content = plan.read_bytes()
    if damage == "plan":
        plan.write_bytes(b"evil" + content[4:])
    elif damage == "document":
        document.write_text(document.read_text().replace("Simulated GPU", "Simulated gpu"))
    elif damage == "cut":
        plan.write_bytes(content[:100])
    else:
        plan.rename(tmp_path / "elsewhere")
        plan.symlink_to(tmp_path / "elsewhere")
    simulated.loaded.clear()
    session = simulated()
    assert session.origin.startswith("rebuilt: ")
    assert str(simulated.folder) in session.origin
    (loaded,) = simulated.loaded
    assert len(loaded) > 2**20
    assert not loaded.startswith(b"evil")
    assert simulated().origin == "loaded"


def test_only_one_function_loads_plans():
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "sprfast").rglob("*.py"))
    assert sources.count("deserialize_cuda_engine") == 1
    assert "deserialize_cuda_engine" in inspect.getsource(tensorrt._engine)


def test_another_graph_has_another_plan(simulated, small_model):
    simulated().close()
    other = onnx_model(fold(small_model), SIZE, SIZE, normalization="instance")
    other.doc_string = "other"
    assert simulated(other.SerializeToString()).origin == "built"
    assert len(list(simulated.folder.glob("*.plan"))) == len(simulated.builds) == 2


def test_wrong_maps_are_refused_and_what_was_cached_goes(simulated, small_model):
    wrong = Probe(probe(small_model, SIZE, SIZE, 1e-4).error_map * np.float32(1.1), 1e-4)
    with pytest.raises(BackendError, match=r"backend tensorrt_rtx: the error map of the probe image is off by 0\.09"):
        simulated(wanted=wrong)
    assert list(simulated.folder.glob("*.plan")) == []
    simulated().close()
    assert len(list(simulated.folder.glob("*.plan"))) == 1
    with pytest.raises(BackendError, match="nothing may be scored with it"):
        simulated(wanted=wrong)
    assert list(simulated.folder.glob("*.plan")) == []
    assert all(device.closed for device in simulated.devices)


def test_maps_that_are_wrong_in_one_place_of_a_batch_are_refused(simulated, monkeypatch):
    engine = tensorrt._engine

    class Network:
        def __init__(self, network):
            self._network = network

        def run(self, outputs, inputs):
            errors, *others = self._network.run(outputs, inputs)
            errors[2:] *= 1.1  # the third image, and those after it
            return [errors, *others]

    def wrong(*arguments):
        runtime, made = engine(*arguments)
        made.network = Network(made.network)
        return runtime, made

    monkeypatch.setattr(tensorrt, "_engine", wrong)
    with pytest.raises(BackendError, match=r"the error map of the probe image is off by 0\.1"):
        simulated()
    assert list(simulated.folder.glob("*.plan")) == []


@pytest.mark.parametrize(("capability", "refused"), [("8.6", True), ("8.9", False), ("12.0", False)])
def test_float8_is_refused_before_it_is_built_where_the_device_has_none(simulated, monkeypatch, capability, refused):
    monkeypatch.setattr(cuda, "facts", lambda index: cuda.Facts("Simulated GPU", capability, "13.0"))
    if refused:
        with pytest.raises(
            BackendError,
            match=r"backend tensorrt_rtx: a graph in float8 needs a GPU of compute capability 8\.9 or newer, "
            r"Simulated GPU has 8\.6; export with --quantize int8 or none",
        ):
            simulated(quantization="float8")
        simulated(quantization="int8").close()
    else:
        simulated(quantization="float8").close()
    assert len(simulated.builds) == 1


def test_a_device_that_fails_costs_no_plan(simulated, monkeypatch):
    simulated().close()
    monkeypatch.setattr(simulated_cuda.SimulatedContext, "execute_async_v3", lambda *arguments: False)
    with pytest.raises(BackendError, match="the plan did not run"):
        simulated()
    assert len(list(simulated.folder.glob("*.plan"))) == 1
    assert all(device.closed for device in simulated.devices)


def test_a_plan_that_tensorrt_does_not_take_is_built_again(simulated, monkeypatch):
    simulated().close()
    engine, calls = tensorrt._engine, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise tensorrt._UnreadableError("backend tensorrt_rtx: the plan could not be loaded: other version")
        return engine(*arguments)

    monkeypatch.setattr(tensorrt, "_engine", once)
    session = simulated()
    assert session.origin == "rebuilt: backend tensorrt_rtx: the plan could not be loaded: other version"
    session.close()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("batch", "capture"), [(None, False), (None, True), (4, False)])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_real_session_has_the_definitions_maps(request, monkeypatch, flavour, batch, capture, stripped):
    if reason := tensorrt.unavailable(flavour):
        pytest.skip(reason)
    small_model, images, noise, expected, folder = map(
        request.getfixturevalue, ("small_model", "images", "noise", "expected", "tmp_path")
    )
    monkeypatch.setenv("SPRFAST_CACHE_DIR", str(folder / "cache"))
    onnx = onnx_model(fold(small_model), SIZE, SIZE, batch=batch).SerializeToString()
    for origin in ("built", "loaded"):
        session = tensorrt.Graph(
            onnx,
            flavour=flavour,
            probe=probe(small_model, SIZE, SIZE, 1e-4),
            noise=noise,
            precision="float32",
            quantization=None,
            batch=batch,
            options=TensorRtOptions(capture=capture, shared_plan=stripped),
        ).open()
        assert session.origin == origin
        for count in (1, 3, 3, 40):
            close_to(session.maps(images[:count], noise), expected, count)
        x = probe_image(SIZE, SIZE)
        x[0, 0, 5, 5] = np.nan
        assert not np.isfinite(session.maps(x, noise)[1]).all()
        session.close()
