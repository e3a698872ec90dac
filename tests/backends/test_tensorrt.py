"""The TensorRT session: what it says where it cannot run, and how it cuts batches, checks plans and
uses the cache.

Where there is no GPU a device is simulated in host memory, and onnxruntime computes what an engine
would; on a GPU all of it is real.
"""

import inspect
import json

import numpy as np
import pytest

from sprfast.backends.sessions import cuda, tensorrt, tensorrt_build
from sprfast.backends.sessions.session import CAPTURED, TensorRtOptions, split
from sprfast.backends.sessions.tensorrt_session import TensorRtSession
from sprfast.errors import BackendError, InputError
from sprfast.formats.export_metadata import Probe, probe_image
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import onnx_model
from sprfast.lowering.probe import probe
from sprfast.method.noise import stacked
from support import ROOT, simulated_cuda

ort = pytest.importorskip("onnxruntime")
FLAVOURS = ("tensorrt", "tensorrt_rtx")
SIZE = 32
NO_GPU = cuda.unavailable()
no_driver = pytest.mark.skipif(NO_GPU is None, reason="there is a driver")


def test_importing_takes_neither_torch_nor_tensorrt_nor_cuda():
    names = simulated_cuda.python("""
        import sys
        from sprfast.backends.sessions import cuda
        from sprfast.backends.sessions import cache as plan_cache
        from sprfast.backends.sessions import tensorrt
        from sprfast.backends.sessions import tensorrt_build
        from sprfast.backends.sessions import tensorrt_session
        print(*sys.modules)
    """).split()
    foreign = ("torch", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "onnx")
    assert [name for name in names if name.partition(".")[0] in foreign] == []


@no_driver
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_without_a_driver_the_process_lives_and_says_why(flavour):
    said = simulated_cuda.python(f"""
        import numpy as np
        from sprfast.formats.export_metadata import Probe
        from sprfast.errors import BackendError
        from sprfast.backends.sessions import tensorrt
        print(tensorrt.unavailable("{flavour}"))
        maps = np.ones((32, 32), np.float32)
        try:
            tensorrt.Graph(
                b"", flavour="{flavour}", probe=Probe(maps, 1e-3), noise=maps,
                precision="float32", quantization=None, batch=None,
            ).open()
        except BackendError as error:
            print(error)
    """).splitlines()
    assert "needs an NVIDIA GPU and its driver, none is installed here" in said[0]
    assert said[1] == f"backend {flavour}: {said[0]}"


def test_the_cuda_that_a_flavour_is_for_is_known_by_its_packages():
    pytest.importorskip("tensorrt_rtx")
    assert tensorrt._cuda_major("tensorrt_rtx") == 13


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (1, range(1, 33), [(0, 1, 1)]),
        (7, range(1, 33), [(0, 7, 7)]),
        (32, range(1, 33), [(0, 32, 32)]),
        (33, range(1, 33), [(0, 32, 32), (32, 33, 1)]),
        (70, CAPTURED, [(0, 32, 32), (32, 64, 32), (64, 70, 8)]),
        (3, CAPTURED, [(0, 3, 4)]),
        (3, (4,), [(0, 3, 4)]),
        (9, (4,), [(0, 4, 4), (4, 8, 4), (8, 9, 4)]),
        (70, (64,), [(0, 64, 64), (64, 70, 64)]),
    ],
)
def test_batches_are_cut_and_padded(count, sizes, expected):
    assert [(part.start, part.stop, run) for part, run in split(count, sizes)] == expected


def test_every_batch_is_in_a_profile():
    covered = [run for smallest, _, largest in tensorrt_build.BUCKETS for run in range(smallest, largest + 1)]
    assert covered == list(range(1, 33))
    assert set(CAPTURED) <= set(covered)


@pytest.fixture(scope="module")
def noise(small_model):
    return stacked(small_model.schedule, SIZE, SIZE, small_model.noise_seed)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (40, 3, SIZE, SIZE)).astype(np.float32)


def graph(model, batch=None):
    return onnx_model(fold(model), SIZE, SIZE, normalization="instance", batch=batch).SerializeToString()


@pytest.fixture(scope="module")
def expected(small_model, images, noise):
    session = ort.InferenceSession(graph(small_model), providers=["CPUExecutionProvider"])
    parts = [session.run(("error_map", "anomaly_map"), {"image": x[None], "noise": noise}) for x in images]
    return [np.concatenate(maps) for maps in zip(*parts, strict=True)]


@pytest.fixture
def opened(small_model, noise):
    """A session of a simulated device: (session, device, engine)."""
    pytest.importorskip("tensorrt_rtx")

    def call(batch=None, capture=False):
        device = simulated_cuda.SimulatedDevice()
        profiles = tensorrt_build.BUCKETS if batch is None else ((batch, batch, batch),)
        engine = simulated_cuda.SimulatedEngine(graph(small_model, batch), device, noise.shape, profiles)
        session = TensorRtSession(None, engine, device, "tensorrt_rtx", noise.shape, batch, capture, "built")
        return session, device, engine

    return call


def close_to(maps, expected, count):
    for got, whole in zip(maps, expected, strict=True):
        np.testing.assert_allclose(got, whole[:count], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "capture", "counts", "batches"),
    [
        (None, False, (1, 3, 40, 9, 2, 1), [1, 3, 32, 8, 9, 2, 1]),
        (4, False, (1, 4, 9), [4, 4, 4, 4, 4]),
        (None, True, (1, 3, 3, 4, 40), [1, 1, 4, 4, 32, 32, 8, 8]),  # each once as it is and once captured
        (4, True, (1, 4, 9), [4, 4, 4, 4]),  # for both buffers
    ],
)
def test_maps_of_any_number_of_images(opened, images, noise, expected, batch, capture, counts, batches):
    session, _, engine = opened(batch, capture)
    for count in counts:
        maps = session.maps(images[:count], noise)
        assert [part.shape for part in maps] == [(count, 1, SIZE, SIZE), (count, 1, 256, 256)]
        close_to(maps, expected, count)
    assert engine.batches == batches
    session.close()


def test_contexts_are_made_when_their_profile_comes_first(opened, images, noise):
    session, _, engine = opened()
    assert engine.contexts == []
    for count, contexts in ((1, 1), (1, 1), (5, 2), (8, 2), (20, 3)):
        session.maps(images[:count], noise)
        assert len(engine.contexts) == contexts


def test_each_captured_graph_has_a_context_of_its_own(opened, images, noise, expected):
    session, _, engine = opened(capture=True)
    for count, contexts in ((3, 1), (5, 2), (4, 2), (8, 2), (2, 3), (3, 3)):  # all in one profile
        close_to(session.maps(images[:count], noise), expected, count)
        assert len(engine.contexts) == contexts
    features = [context.features for context in engine.contexts]
    assert len(set(features)) == 1


def test_the_host_copies_while_the_device_computes(opened, images, noise, expected, monkeypatch):
    session, device, _ = opened(4)
    wait, seen = device.synchronise, []
    session.maps(images[:1], noise)

    def synchronise():
        pinned = [array for array in device.pinned_arrays if array.shape == (4, 3, SIZE, SIZE)]
        seen.append({part for part in range(3) for array in pinned if np.array_equal(array, images[4 * part :][:4])})
        wait()

    monkeypatch.setattr(device, "synchronise", synchronise)
    close_to(session.maps(images[:12], noise), expected, 12)
    # before a batch is waited for, the images of the next one are there too
    assert seen == [{0}, {0, 1}, {1, 2}, {1, 2}]


def test_a_batch_that_fails_leaves_none_running(opened, images, noise, expected, monkeypatch):
    session, device, _ = opened(4)
    execute, calls = simulated_cuda.SimulatedContext.execute_async_v3, []

    def second_fails(context, stream):
        calls.append(stream)
        return len(calls) != 2 and execute(context, stream)

    monkeypatch.setattr(simulated_cuda.SimulatedContext, "execute_async_v3", second_fails)
    with pytest.raises(BackendError, match="the plan did not run"):
        session.maps(images[:12], noise)
    assert device.queue == []
    close_to(session.maps(images[:12], noise), expected, 12)


def test_draws_go_to_the_device_when_they_are_others(opened, images, noise):
    session, device, _ = opened()
    uploads = []
    for z in (noise, noise, noise.copy(), noise):
        before = device.uploads
        session.maps(images[:1], z)
        uploads.append(device.uploads - before - 1)  # one is the image
    assert uploads == [1, 0, 1, 1]
    other = session.maps(images[:1], -noise)[0]
    assert not np.allclose(other, session.maps(images[:1], noise)[0], rtol=1e-2)


def test_results_are_in_memory_of_their_own(opened, images, noise, expected):
    session, _, _ = opened()
    first = session.maps(images[:2], noise)
    session.maps(images[5:7], noise)
    close_to(first, expected, 2)


def test_an_image_that_is_not_finite_has_no_finite_maps(opened, images, noise):
    session, _, _ = opened()
    x = images[:3].copy()
    x[1, 0, 5, 5] = np.nan
    errors, anomaly_maps = session.maps(x, noise)
    assert [bool(np.isfinite(maps).all()) for maps in (*errors, *anomaly_maps)] == [True, False, True] * 2


@pytest.mark.parametrize(
    ("shape", "draws"), [((1, 3, 16, 32), 2), ((0, 3, 32, 32), 2), ((1, 1, 32, 32), 2), ((1, 3, 32, 32), 3)]
)
def test_arrays_of_another_size_are_refused(opened, shape, draws):
    session, _, _ = opened()
    with pytest.raises(InputError, match=r"expected images \(B, 3, 32, 32\) and draws \(2, 3, 32, 32\), got "):
        session.maps(np.zeros(shape, np.float32), np.zeros((draws, 3, SIZE, SIZE), np.float32))


def test_a_closed_session_says_so(opened, images, noise):
    session, device, _ = opened()
    session.maps(images[:1], noise)
    session.close()
    assert device.closed
    session.close()
    with pytest.raises(BackendError, match="the session is closed; open another one"):
        session.maps(images[:1], noise)


def test_a_session_that_nobody_holds_is_released(opened, images, noise):
    session, device, _ = opened()
    session.maps(images[:1], noise)
    del session
    assert device.closed


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("set_optimization_profile_async", "profile 0 was refused"),
        ("set_tensor_address", "the memory of image was refused"),
        ("set_input_shape", r"images \(1, 3, 32, 32\) were refused"),
        ("execute_async_v3", "the plan did not run"),
    ],
)
def test_what_tensorrt_refuses_is_an_error(opened, images, noise, monkeypatch, call, said):
    session, _, _ = opened()
    monkeypatch.setattr(simulated_cuda.SimulatedContext, call, lambda *arguments: False)
    with pytest.raises(BackendError, match=rf"backend tensorrt_rtx: {said}: "):
        session.maps(images[:1], noise)


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
