"""The TensorRT session: what it says where it cannot run, and how it cuts batches.

Where there is no GPU a device is simulated in host memory, and onnxruntime computes what an engine
would.
"""

import numpy as np
import pytest

from sprfast.backends.sessions import cuda, tensorrt, tensorrt_build
from sprfast.backends.sessions.session import CAPTURED, split
from sprfast.backends.sessions.tensorrt_session import TensorRtSession
from sprfast.errors import BackendError, InputError
from support import simulated_cuda
from support.tensorrt_cases import FLAVOURS, SIZE, close_to, graph

ort = pytest.importorskip("onnxruntime")
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
