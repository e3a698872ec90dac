"""What `triton` does around its network: one thread launches, each shape is bound once."""

import contextlib
import gc
import threading
import types

import pytest
import torch

from sprfast.backends import convolved_draws
from sprfast.backends import triton as triton_backend
from sprfast.errors import BackendError
from sprfast.kernels.triton.launch import UnsupportedError

CPU = torch.device("cpu")


class Network:
    """Of `FusedUNet` what the backend calls; notes the threads and streams of its passes."""

    def __init__(self):
        self.bound, self.threads, self.streams, self.convolved = [], set(), [], 0

    def empty_noise(self, z):
        return torch.empty(z.shape[1], 1, *z.shape[3:])

    def convolve_noise(self, z, out):
        self.convolved += 1
        out.copy_(z[0, :, :1])

    def bind(self, x, z, noise):
        self.bound.append((tuple(x.shape), x.dtype))
        if x.shape[2] < 4:
            raise UnsupportedError("too small")

        def run(x, z, noise):
            self.threads.add(threading.current_thread())
            self.streams.append((x.shape[0], getattr(current, "stream", None)))
            return x[:, :1] + noise, x[:, :1] * 2

        return run

    def self_test(self, height, width):
        self.threads.add(threading.current_thread())


current = threading.local()


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(triton_backend, "network_on", lambda *arguments: network)
    return network


@pytest.fixture
def backend(network, small_model):
    return triton_backend.TritonBackend(small_model, CPU)


def images(count, size=4, dtype=torch.float32):
    return torch.full((count, 3, size, size), float(count), dtype=dtype)


def noise(size=4):
    return [torch.ones(2, 1, 3, size, size)]


def in_threads(work, counts):
    """`work` of each count, in a thread of its own that then ends."""
    threads = [threading.Thread(target=work, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return threads


def test_one_thread_launches_for_all_that_come_and_go(backend, network):
    # torch keeps the plans of convolutions by thread: with another thread, all would be built again
    got = {}
    callers = in_threads(lambda count: got.update({count: backend.maps(images(count), noise())}), range(1, 9))
    assert {count: maps[0].unique().tolist() for count, maps in got.items()} == {n: [n + 1] for n in range(1, 9)}
    assert len(network.threads) == 1
    assert network.threads.isdisjoint(callers)


def test_a_call_is_launched_on_its_callers_stream(network, small_model, monkeypatch):
    @contextlib.contextmanager
    def stream(chosen):
        before, current.stream = getattr(current, "stream", None), chosen
        yield
        current.stream = before

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: getattr(current, "stream", "default"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(triton_backend, "running_on", lambda device: contextlib.nullcontext())
    backend = triton_backend.TritonBackend(small_model, torch.device("cuda", 0))
    monkeypatch.setattr(backend._draws, "of", lambda noise, images: (noise[0], noise[0][0, :, :1]))
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device: x)

    def on_a_stream(count):
        with torch.cuda.stream(f"stream {count}"):
            backend.maps(images(count), noise())

    in_threads(on_a_stream, range(1, 9))
    assert sorted(network.streams) == [(count, f"stream {count}") for count in range(1, 9)]
    assert len(network.threads) == 1  # the self-test's convolutions too


def test_a_list_is_bound_once_for_each_shape_type_and_alignment(backend, network):
    aligned = images(1)
    shifted = torch.empty(aligned.numel() + 1)[1:].view_as(aligned).copy_(aligned)
    different = (aligned, images(2), images(1, dtype=torch.float64), shifted)
    for _ in range(2):
        for x in different:
            backend.maps(x, noise())
        backend.maps(images(1), noise(4))
    assert len(network.bound) == len(different)


def test_draws_that_all_images_share_are_convolved_once_until_they_change(backend, network):
    draws = noise()
    for _ in range(3):
        backend.maps(images(2), draws)
    assert network.convolved == 1
    draws[0] += 1  # in place
    assert backend.maps(images(2), draws)[0].unique().tolist() == [4]
    assert backend.maps(images(2), noise())[0].unique().tolist() == [3]
    assert network.convolved == 3


def test_draws_of_each_image_are_not_kept(backend, network):
    draws = [torch.ones(2, 3, 3, 4, 4)]
    for _ in range(2):
        backend.maps(images(3), draws)
    assert network.convolved == 2
    assert not backend._draws._kept


def test_kept_draws_are_waited_for_and_stay_for_every_stream_that_reads_them(network, monkeypatch):
    waited, streams = [], []

    class Recorded(torch.Tensor):
        def record_stream(self, stream):
            streams.append(stream)

    stream = types.SimpleNamespace(record_event=lambda: "ready", wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(convolved_draws, "draws_of", lambda noise, images, device: noise[0].as_subclass(Recorded))
    monkeypatch.setattr(network, "empty_noise", lambda z: torch.empty(1, 1, 4, 4).as_subclass(Recorded))
    draws, given = convolved_draws.ConvolvedDraws(network, torch.device("cuda", 0)), noise()
    first = draws.of(given, 1)
    assert waited == []
    assert all(mine is theirs for mine, theirs in zip(draws.of(given, 1), first, strict=True))
    assert waited == ["ready"]
    assert streams == [stream, stream]


def test_the_list_that_was_not_used_for_longest_is_dropped(backend, network, monkeypatch):
    monkeypatch.setattr(triton_backend, "MAX_BOUND", 2)
    for count in (1, 2, 1, 3, 1, 2):
        backend.maps(images(count), noise())
    assert [shape[0] for shape, _ in network.bound] == [1, 2, 3, 2]


def test_an_error_reaches_its_caller_and_the_next_call_runs(backend):
    with pytest.raises(BackendError, match="backend triton: too small"):
        backend.maps(images(1, size=2), noise(size=2))
    assert backend.maps(images(1), noise())[0].unique().tolist() == [2]


def test_the_thread_ends_with_its_backend(network, small_model):
    backend = triton_backend.TritonBackend(small_model, CPU)
    backend.maps(images(1), noise())
    (thread,) = network.threads
    del backend
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()
