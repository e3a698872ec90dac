"""What `cuda_graph` does around its graphs, on streams that only note who waits for whom."""

import contextlib
import threading

import pytest
import torch

from sprfast.backends import cuda_graph, triton

CPU = torch.device("cpu")


class Stream:
    """Of a CUDA stream, what it waited for."""

    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


class Part:
    """In place of a captured graph; the second one fails."""

    def __init__(self, bucket):
        self.bucket = bucket

    def run(self, x, z, errors, anomaly_maps):
        if self.bucket == 1:
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
    made._graph = lambda height, width, bucket, noises: Part(bucket)
    return made


def test_the_caller_waits_for_every_part(backend, caller):
    backend.maps(torch.zeros(32, 3, 16, 16), [torch.zeros(2, 1, 3, 16, 16)])
    assert backend._stream.waited == [caller]
    assert caller.waited == [backend._stream]


def test_the_caller_waits_for_earlier_parts_where_a_later_one_fails(backend, caller):
    # 33 images are a part of 32 and one of 1, which fails; the first goes on reading the images
    with pytest.raises(torch.OutOfMemoryError):
        backend.maps(torch.zeros(33, 3, 16, 16), [torch.zeros(2, 1, 3, 16, 16)])
    assert caller.waited == [backend._stream]
    assert not backend._lock.locked()
