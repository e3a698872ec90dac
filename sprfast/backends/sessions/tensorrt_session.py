"""Batches of images through a TensorRT engine."""

from __future__ import annotations

import bisect
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sprfast.backends.sessions import cuda
from sprfast.backends.sessions.session import CAPTURED, Flavour, Floats, split
from sprfast.backends.sessions.tensorrt_build import BUCKETS, imported, logger
from sprfast.errors import BackendError, InputError
from sprfast.method.anomaly_map import MAP_SIZE

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRtSession:
    """A `session.Session` of TensorRT: one stream, and for each profile in use pinned memory of two
    batches, device memory of one, and an execution context, or one for each captured graph.

    An image may score differently in the last bits in batches of another size. Images that are not
    finite give maps that are not.

    Args:
        runtime, engine: what runs; with weights.
        device: that the engine is on; the session closes it.
        flavour: of TensorRT.
        noise_shape: (D, 3, H, W), of the graph.
        batch: images that the graph is fixed to; None: any number, in the profiles `BUCKETS`.
        capture: replay batches as CUDA graphs.
        origin: of the plan: "built", "loaded" from the cache, or "rebuilt: " and why what was in
            the cache could not be used.
    """

    def __init__(
        self,
        runtime: trt.Runtime,
        engine: trt.ICudaEngine,
        device: cuda.Device,
        flavour: Flavour,
        noise_shape: tuple[int, ...],
        batch: int | None,
        capture: bool,
        origin: str,
    ) -> None:
        self._device, self._flavour, self._capture, self.origin = device, flavour, capture, origin
        self._noise_shape = noise_shape
        self._profiles = [batch] if batch else [largest for *_, largest in BUCKETS]  # the largest batch of each
        any_size = CAPTURED if capture else range(1, BUCKETS[-1][-1] + 1)
        self._sizes: Sequence[int] = (batch,) if batch else any_size  # of batches that run
        self._lock = threading.Lock()
        self._draws: Floats | None = None  # on the device
        with device.current():
            self._noise = device.pinned(noise_shape)
            self._noise_address = device.allocate(self._noise.nbytes)
        self._lanes: dict[int, _Lane] = {}  # by profile
        self._loaded: list[Any] = [runtime, engine]  # until they are released
        self._release = weakref.finalize(self, _released, self._lanes, self._loaded, device)

    def maps(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps of images of the graph's size; see `session.Session`.

        The draws are copied to the device where `z` is another array than last time, so that it
        must not be written to.

        Raises:
            InputError: an array is not of the graph's size.
            BackendError: TensorRT or CUDA failed, or the session is closed.
        """
        size = self._noise_shape[1:]
        if x.shape[1:] != size or z.shape != self._noise_shape or not len(x):
            raise InputError(
                f"backend {self._flavour}: expected images (B, {', '.join(map(str, size))}) and draws "
                f"{self._noise_shape}, got {x.shape} and {z.shape}"
            )
        errors = np.empty((len(x), 1, *size[1:]), np.float32)
        anomaly_maps = np.empty((len(x), 1, MAP_SIZE, MAP_SIZE), np.float32)
        with self._lock:
            if not self._release.alive:
                raise BackendError(f"backend {self._flavour}: the session is closed; open another one")
            with self._device.current():
                self._upload_draws(z)
                self._run(x, errors, anomaly_maps)
        return errors, anomaly_maps

    def close(self) -> None:
        """Release all that the session holds on the device; it cannot be used afterwards."""
        with self._lock:
            self._release()

    def _upload_draws(self, z: Floats) -> None:
        if z is not self._draws:
            self._draws = None  # until they are there
            self._noise[...] = z
            self._device.upload(self._noise_address, self._noise)
            self._device.synchronise()
            self._draws = z

    def _run(self, x: Floats, errors: Floats, anomaly_maps: Floats) -> None:
        """Batch by batch; while the device computes one, the host copies the images of the next one
        and the maps of the one before.
        """
        copies: list[Callable[[], None]] = []  # of the maps of the batch before
        try:
            for index, (part, run) in enumerate(split(len(x), self._sizes)):
                lane, buffer = self._lane(run), index % 2
                lane.fill(buffer, x[part], run)
                self._device.synchronise()
                lane.start(buffer, run)
                while copies:
                    copies.pop()()
                copies.append(functools.partial(lane.copy_maps, buffer, errors[part], anomaly_maps[part]))
        finally:  # also where a batch failed: none may still run when its buffer is written to again
            self._device.synchronise()
        copies.pop()()

    def _lane(self, run: int) -> _Lane:
        """The lane for batches of `run` images."""
        profile = bisect.bisect_left(self._profiles, run)
        if profile not in self._lanes:
            shape = (self._profiles[profile], *self._noise_shape[2:])
            self._lanes[profile] = _Lane(
                self._loaded[-1], self._device, self._flavour, profile, shape, self._noise_address, self._capture
            )
        return self._lanes[profile]


def _released(lanes: dict[int, _Lane], loaded: list[Any], device: cuda.Device) -> None:
    """Contexts, engine and runtime in this order, then the memory that they used."""
    with device.current():
        device.synchronise()
        lanes.clear()
        while loaded:
            loaded.pop()
    device.close()


class _Buffer(NamedTuple):
    """Pinned memory of a batch."""

    image: Floats
    errors: Floats
    anomaly_maps: Floats


class _Lane:
    """A profile's memory and execution contexts; `shape`: its largest batch, height, width.

    Each captured graph has a context of its own, since it is valid for what its context was set to
    ("CUDA Graphs" in TensorRT's documentation). All share the memory of feature maps, since one
    batch runs at a time.
    """

    def __init__(
        self,
        engine: trt.ICudaEngine,
        device: cuda.Device,
        flavour: Flavour,
        profile: int,
        shape: tuple[int, ...],
        noise_address: int,
        capture: bool,
    ) -> None:
        capacity, *size = shape
        self._engine, self._device, self._flavour, self._profile = engine, device, flavour, profile
        self._capture = capture
        shapes = ((capacity, 3, *size), (capacity, 1, *size), (capacity, 1, MAP_SIZE, MAP_SIZE))
        self._buffers = [_Buffer(*(device.pinned(shape) for shape in shapes)) for _ in range(2)]
        image, errors, anomaly_maps = self._buffers[0]
        self._addresses = {
            "image": device.allocate(image.nbytes),
            "noise": noise_address,
            "error_map": device.allocate(errors.nbytes),
            "anomaly_map": device.allocate(anomaly_maps.nbytes),
            "pred_score": device.allocate(4 * capacity),
        }
        self._size_of_features = engine.get_device_memory_size_for_profile_v2(profile)
        self._features = device.allocate(self._size_of_features)
        self._contexts: list[trt.IExecutionContext] = []
        self._graphs: dict[tuple[int, int], Callable[[], None]] = {}  # by buffer and batch

    def fill(self, buffer: int, x: Floats, run: int) -> None:
        """Copy up to `run` images into a buffer; zeros stand for those that are missing."""
        image = self._buffers[buffer].image
        image[: len(x)], image[len(x) : run] = x, 0.0

    def start(self, buffer: int, run: int) -> None:
        """Queue a buffer's batch of `run` images; nothing else is queued."""
        if not self._capture:
            context = self._contexts[0] if self._contexts else self._new_context()
            self._resize(context, run)
            self._queue(context, buffer, run)
            return
        if (buffer, run) not in self._graphs:
            context = self._new_context()
            self._resize(context, run)
            self._queue(context, buffer, run)  # what ran once has nothing left to set up, which cannot be captured
            self._device.synchronise()
            self._graphs[buffer, run] = self._device.captured(lambda: self._queue(context, buffer, run))
        self._graphs[buffer, run]()

    def copy_maps(self, buffer: int, errors: Floats, anomaly_maps: Floats) -> None:
        """Copy the maps of a batch that is done."""
        count = len(errors)
        errors[...] = self._buffers[buffer].errors[:count]
        anomaly_maps[...] = self._buffers[buffer].anomaly_maps[:count]

    def _new_context(self) -> trt.IExecutionContext:
        if not TYPE_CHECKING:
            trt = imported(self._flavour)
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._require(context is not None, "the plan does not run")  # which its signature leaves out
        done = context.set_optimization_profile_async(self._profile, self._device.stream)
        self._require(done, f"profile {self._profile} was refused")
        context.set_device_memory(self._features, self._size_of_features)
        for name, address in self._addresses.items():
            self._require(context.set_tensor_address(name, address), f"the memory of {name} was refused")
        self._device.synchronise()
        self._contexts.append(context)
        return context

    def _resize(self, context: trt.IExecutionContext, run: int) -> None:
        shape = (run, *self._buffers[0].image.shape[1:])
        self._require(context.set_input_shape("image", shape), f"images {shape} were refused")

    def _queue(self, context: trt.IExecutionContext, buffer: int, run: int) -> None:
        """All work of a batch, onto the stream."""
        image, errors, anomaly_maps = self._buffers[buffer]
        self._device.upload(self._addresses["image"], image[:run])
        self._require(context.execute_async_v3(self._device.stream), "the plan did not run")
        self._device.download(errors[:run], self._addresses["error_map"])
        self._device.download(anomaly_maps[:run], self._addresses["anomaly_map"])

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"backend {self._flavour}: {what}: {logger(self._flavour)[1].reason()}")
