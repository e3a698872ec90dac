"""The fused network as CUDA graphs: a call is two copies, one replay and two copies, whatever the
number of kernels.

A graph has fixed shapes, so images go in buckets of 1, 2, 4, 8, 16 or 32, the last one padded. A
graph is captured when its bucket is first needed; `Engine.warm_up` makes that happen before the
line starts.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from sprfast.backends import triton
from sprfast.backends.sessions.session import CAPTURED, split
from sprfast.backends.tensors import inputs
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.method import scoring
from sprfast.method.anomaly_map import MAP_SIZE

MAX_GRAPHS = 3 * len(CAPTURED)  # kept, the least recently used is dropped; they share their memory


class CudaGraphBackend:
    """`triton.TritonBackend` captured once for each (height, width, bucket) and replayed.

    Convolution algorithms are chosen when a graph is captured and stay as long as it is kept, so
    replays of a graph give the same bits. The choice is the fastest by timing of those whose
    workspace fits into the memory that is free then, and torch keeps it by thread. So scores may
    differ by rounding between buckets, between shared noise and noise of each image, and between
    two captures of one bucket: after its graph was dropped, in another backend, or in another
    process.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        self.device = device
        self._network = triton.network_on(model, device, precision, benchmark=True)
        self._graphs: collections.OrderedDict[tuple[int, ...], _Graph] = collections.OrderedDict()
        self._lock = threading.Lock()
        with triton.running_on(device):
            self._network.self_test(model.preprocessing.size, model.preprocessing.size)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def unavailable() -> str | None:
        """None where there are Triton and a CUDA device."""
        if not torch.cuda.is_available():
            return "no CUDA device here; install an NVIDIA driver and a CUDA build of torch"
        return triton.TritonBackend.unavailable()

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps in the caller's memory, ready on the caller's stream; see `registry.Backend`."""
        x, z = inputs(x, noise, self.device)
        images, _, height, width = x.shape
        with self._lock, triton.running_on(self.device):
            errors = x.new_empty((images, 1, height, width))
            anomaly_maps = x.new_empty((images, 1, MAP_SIZE, MAP_SIZE))
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    shared = z.shape[1] == 1
                    for part, bucket in split(images, CAPTURED):
                        graph = self._graph(height, width, bucket, 1 if shared else bucket)
                        graph.run(x[part], z if shared else z[:, part], errors[part], anomaly_maps[part])
            finally:  # earlier parts read and write the caller's memory even where a later one failed
                caller.wait_stream(self._stream)
            return errors, anomaly_maps

    def _graph(self, *key: int) -> _Graph:
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                self._stream.synchronize()  # nothing is dropped while it runs
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(*key)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _capture(self, height: int, width: int, bucket: int, noises: int) -> _Graph:
        """Test, warm up and capture on the current stream, which is ours, in the shared pool."""
        network = self._network
        network.self_test(height, width)
        x, z = network.blank(bucket, height, width, noises)
        for _ in range(2):  # compiles kernels, times convolution algorithms
            network.maps(x, z)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            errors, anomaly_maps = network.maps(x, z)
        matrices = [scoring.smoothing_matrix(size, self.device) for size in (height, width)]
        return _Graph(graph, x, z, errors, anomaly_maps, matrices)


@dataclasses.dataclass(frozen=True, eq=False)
class _Graph:
    """A captured graph and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor  # (bucket, 3, H, W)
    z: Tensor  # (D, 1 or bucket, 3, H, W)
    errors: Tensor  # (bucket, 1, H, W)
    anomaly_maps: Tensor  # (bucket, 1, 256, 256)
    matrices: list[Tensor]  # read by address: kept here, since their cache may drop them

    def run(self, x: Tensor, z: Tensor, errors: Tensor, anomaly_maps: Tensor) -> None:
        """Copy up to a bucket of images in, replay, copy the maps out, on the current stream."""
        images = x.shape[0]
        self.x[:images].copy_(x)
        self.z[:, : z.shape[1]].copy_(z)
        self.graph.replay()
        errors.copy_(self.errors[:images])
        anomaly_maps.copy_(self.anomaly_maps[:images])
