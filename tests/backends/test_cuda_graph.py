"""What `cuda_graph` does around its graphs, on streams that only note who waits for whom."""

import contextlib
import threading

import pytest
import torch

from sprfast.backends import cuda_graph, triton
from sprfast.backends.tensors import draws_of, parted
from sprfast.method.anomaly_map import MAP_SIZE

CPU = torch.device("cpu")


class Stream:
    """Of a CUDA stream, what it waited for."""

    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


class Network:
    """Of `FusedUNet` what makes a map of draws; here their sum."""

    def empty_noise(self, z):
        return torch.full((z.shape[1], *z.shape[3:]), torch.nan)

    def convolve_noise(self, z, out):
        out.copy_(z.sum((0, 2)))


class Part:
    """In place of a captured graph: an error map is an image's first channel with the draws added,
    an anomaly map the mean of that.
    """

    def __init__(self, height, width, bucket, noises):
        self.bucket, self.x = bucket, None
        self.noise = cuda_graph._Noise(Network(), torch.zeros(2, noises, 3, height, width))
        self.result = torch.full((bucket * (MAP_SIZE**2 + height * width),), torch.nan)

    def replay(self, x):
        errors, anomaly_maps = parted(self.result, *x.shape[2:])
        draws = self.noise.convolved[: len(x), None]
        errors[: len(x)] = x[:, :1] + draws
        anomaly_maps[: len(x)] = errors[: len(x)].mean((2, 3), keepdim=True)
        self.x = x

    copy = cuda_graph._Graph.copy


class NoMemory(Part):
    def replay(self, x):
        raise torch.OutOfMemoryError("no memory")


@pytest.fixture
def caller(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(triton, "running_on", lambda device: contextlib.nullcontext())
    return stream


@pytest.fixture
def backend(caller):
    made = cuda_graph.CudaGraphBackend.__new__(cuda_graph.CudaGraphBackend)
    made.device, made._lock, made._stream = CPU, threading.Lock(), Stream()
    made.parts = {}

    def graph(height, width, bucket, noises):
        return made.parts.setdefault((bucket, noises), Part(height, width, bucket, noises))

    made._graph = graph
    return made


def images(count):
    return torch.rand(count, 3, 16, 16)


def draws(noises=1):
    return [torch.rand(2, noises, 3, 16, 16)]


def expected(x, noise):
    errors = x[:, :1] + noise[0].sum((0, 2))[:, None]
    return errors, errors.mean((2, 3), keepdim=True).expand(-1, -1, MAP_SIZE, MAP_SIZE)


@pytest.mark.parametrize("count", [1, 3, 32, 33])  # a bucket, part of one, the largest, and more
@pytest.mark.parametrize("per_image", [False, True])
def test_maps_of_all_parts_are_those_of_their_images_and_draws(backend, count, per_image):
    for _ in range(2):
        x, noise = images(count), draws(count if per_image else 1)
        for got, maps in zip(backend.maps(x, noise), expected(x, noise), strict=True):
            torch.testing.assert_close(got, maps)


def test_draws_that_all_images_share_are_copied_once_until_they_change(backend, monkeypatch):
    copied = []
    monkeypatch.setattr(cuda_graph, "draws_of", lambda *given: copied.append(given) or draws_of(*given))
    x, noise = images(1), draws()
    for _ in range(3):
        backend.maps(x, noise)
    assert len(copied) == 1
    noise[0] += 1  # in place
    torch.testing.assert_close(backend.maps(x, noise)[0], expected(x, noise)[0])
    other = [noise[0].clone()]
    backend.maps(x, other)
    assert len(copied) == 3


def test_draws_of_a_copy_that_failed_are_copied_again(backend):
    x, noise = images(1), draws()
    backend.maps(x, noise)
    with pytest.raises(RuntimeError):
        backend.maps(x, [torch.zeros(3, 1, 3, 16, 16)])  # another number of draws
    with torch.inference_mode():
        backend.parts[1, 1].noise.z.fill_(torch.nan)
    assert backend.maps(x, noise)[0].isfinite().all()


def test_the_caller_waits_for_every_part(backend, caller):
    backend.maps(torch.zeros(32, 3, 16, 16), [torch.zeros(2, 1, 3, 16, 16)])
    assert backend._stream.waited == [caller]
    assert caller.waited == [backend._stream]


def test_the_caller_waits_for_earlier_parts_where_a_later_one_fails(backend, caller):
    # 33 images are a part of 32 and one of 1, which fails; the first goes on reading the images
    backend.parts[1, 1] = NoMemory(16, 16, 1, 1)
    with pytest.raises(torch.OutOfMemoryError):
        backend.maps(torch.zeros(33, 3, 16, 16), [torch.zeros(2, 1, 3, 16, 16)])
    assert caller.waited == [backend._stream]
    assert not backend._lock.locked()
