"""The fused network as CUDA graphs: a call is a copy, a replay and a copy, whatever the number of
kernels.

A graph has fixed shapes, so images go in buckets of 1, 2, 4, 8, 16 or 32, the last one padded. A
graph is captured when its bucket is first needed; `Engine.warm_up` makes that happen before the
line starts.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from sprfast.backends import triton
from sprfast.backends.sessions.session import CAPTURED, split
from sprfast.backends.tensors import Held, draws_of, parted, shared
from sprfast.config import Precision
from sprfast.formats.model import Model
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
        # as long as a graph reads them
        self._noises: weakref.WeakValueDictionary[tuple[int, ...], _Noise] = weakref.WeakValueDictionary()
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
        x = x.to(self.device)
        images, _, height, width = x.shape
        one = shared(noise)
        with self._lock, triton.running_on(self.device):
            result = x.new_empty(images * (MAP_SIZE**2 + height * width))
            errors, anomaly_maps = parted(result, height, width)
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    for part, bucket in split(images, CAPTURED):
                        graph = self._graph(height, width, bucket, 1 if one else bucket)
                        graph.noise.hold(noise, None if one else part, images)
                        graph.replay(x[part])
                        if bucket == images:  # laid out as the call's result
                            result.copy_(graph.result)
                        else:
                            graph.copy(errors[part], anomaly_maps[part])
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
        noise = self._noises.get((height, width, noises)) or _Noise(network, z)
        self._noises[height, width, noises] = noise
        for _ in range(2):  # compiles kernels, times convolution algorithms
            network.result(x, noise.z, noise.convolved)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = network.result(x, noise.z, noise.convolved)
        return _Graph(graph, x, noise, result, network.smoothing(x))


class _Noise:
    """Draws in memory that graphs read: (D, 1 or bucket, 3, H, W), and what the first convolution
    makes of them.
    """

    def __init__(self, network: triton.FusedUNet, z: Tensor) -> None:
        self._network = network
        self.z, self.convolved = z, network.empty_noise(z)
        network.convolve_noise(z, self.convolved)
        self._held: Held | None = None

    def hold(self, noise: Sequence[Tensor], part: slice | None, images: int) -> None:
        """Copy the draws in and convolve them, on the current stream, unless they are here already.

        Args:
            noise: of a call.
            part: the images to take those of; None for draws that all share.
            images: of the call.
        """
        if part is None and self._held is not None and self._held.are(noise):
            return
        self._held = None
        z = draws_of(noise, images, self.z.device)
        z = z if part is None else z[:, part]
        self.z[:, : z.shape[1]].copy_(z)
        self._network.convolve_noise(self.z, self.convolved)
        if part is None:
            self._held = Held(noise)


@dataclasses.dataclass(frozen=True, eq=False)
class _Graph:
    """A captured graph and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor  # (bucket, 3, H, W)
    noise: _Noise
    result: Tensor  # of the bucket, as `parted` takes it
    matrices: list[Tensor]  # read by address: kept here, since their cache may drop them

    def replay(self, x: Tensor) -> None:
        """Copy up to a bucket of images in, and replay, on the current stream."""
        self.x[: x.shape[0]].copy_(x)
        self.graph.replay()

    def copy(self, errors: Tensor, anomaly_maps: Tensor) -> None:
        """Copy the maps of as many images out."""
        for mine, theirs in zip(parted(self.result, *self.x.shape[2:]), (errors, anomaly_maps), strict=True):
            theirs.copy_(mine[: theirs.shape[0]])
