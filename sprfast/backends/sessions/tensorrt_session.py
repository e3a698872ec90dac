"""Batches of images through a TensorRT engine."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sprfast.backends.sessions import cuda
from sprfast.backends.sessions.session import Floats
from sprfast.backends.sessions.tensorrt_build import BUCKETS, Flavour, imported, logger, optional
from sprfast.errors import BackendError, InputError
from sprfast.method.anomaly_map import MAP_SIZE

if TYPE_CHECKING:
    import tensorrt as trt

CAPTURED = (1, 2, 4, 8, 16, 32)  # batches that a graph is captured of


class TensorRtSession:
    """A `session.Session` of TensorRT: one stream, pinned memory, and for each profile in use an
    execution context of its own.

    An image may score differently in the last bits in batches of another size. Images that are not
    finite give maps that are not.

    Args:
        runtime, engine: what runs; with weights.
        device: that the engine is on; the session closes it.
        flavour: of TensorRT.
        noise_shape: (D, 3, H, W), of the graph.
        batch: images that the graph is fixed to; None: any number, in the profiles `BUCKETS`.
        capture: replay batches as CUDA graphs.
    """

    origin: str = ""  # "built", "loaded" from the cache, or "rebuilt: " and why what was in the cache could not be used
    certificate: dict[str, Any]  # the probe's error and all that it depends on

    def __init__(
        self,
        runtime: trt.Runtime,
        engine: trt.ICudaEngine,
        device: cuda.Device,
        flavour: Flavour,
        noise_shape: tuple[int, ...],
        batch: int | None,
        capture: bool,
    ) -> None:
        self._device, self._flavour, self._noise_shape, self._batch, self._capture = (
            device,
            flavour,
            noise_shape,
            batch,
            capture,
        )
        self._lock = threading.Lock()
        self._draws: Floats | None = None  # on the device
        with device.current():
            self._noise = device.pinned(noise_shape)
            self._noise_address = device.allocate(self._noise.nbytes)
        self._owned = _Owned(runtime, engine)
        self._release = weakref.finalize(self, _released, self._owned, device)

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
                f"{self._noise_shape}, "
                f"got {x.shape} and {z.shape}"
            )
        errors = np.empty((len(x), 1, *size[1:]), np.float32)
        anomaly_maps = np.empty((len(x), 1, MAP_SIZE, MAP_SIZE), np.float32)
        with self._lock:
            if not self._release.alive:
                raise BackendError(f"backend {self._flavour}: the session is closed; open another one")
            with self._device.current():
                self._upload_draws(z)
                for first, count, run in chunks(len(x), self._batch, self._capture):
                    part = slice(first, first + count)
                    self._lane(run).maps(x[part], run, errors[part], anomaly_maps[part])
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

    def _lane(self, run: int) -> _Lane:
        """The lane for batches of `run` images."""
        profile, capacity = lane_of(run, self._batch)
        lanes = self._owned.lanes
        if profile not in lanes:
            assert self._owned.engine is not None  # until it is released
            shape = (capacity, *self._noise_shape[2:])
            lanes[profile] = _Lane(
                self._owned.engine, self._device, self._flavour, profile, shape, self._noise_address, self._capture
            )
        return lanes[profile]


@dataclasses.dataclass(eq=False)
class _Owned:
    """What has to go before the device does."""

    runtime: trt.Runtime | None
    engine: trt.ICudaEngine | None
    lanes: dict[int, _Lane] = dataclasses.field(default_factory=dict)


def _released(owned: _Owned, device: cuda.Device) -> None:
    """Contexts, engine and runtime in this order, then the memory that they used."""
    with device.current():
        device.synchronise()
        owned.lanes.clear()
        owned.engine = None
        owned.runtime = None
    device.close()


class _Lane:
    """An execution context of one profile with its memory; `shape` is the largest batch, height and
    width.
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
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = imported(flavour)
        capacity, height, width = shape
        self._device, self._flavour, self._capture = device, flavour, capture
        self._image = device.pinned((capacity, 3, height, width))
        self._errors = device.pinned((capacity, 1, height, width))
        self._anomaly_maps = device.pinned((capacity, 1, MAP_SIZE, MAP_SIZE))
        self._addresses = {
            "image": device.allocate(self._image.nbytes),
            "noise": noise_address,
            "error_map": device.allocate(self._errors.nbytes),
            "anomaly_map": device.allocate(self._anomaly_maps.nbytes),
            "pred_score": device.allocate(4 * capacity),
        }
        self._graphs: dict[int, Callable[[], None]] = {}
        # memory of this profile alone; the other strategy takes that of the largest one for each
        # context
        context = optional(engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE))
        if context is None:
            raise self._failure("the plan does not run")
        self._context = context
        self._require(context.set_optimization_profile_async(profile, device.stream), f"profile {profile} was refused")
        for name, address in self._addresses.items():
            self._require(context.set_tensor_address(name, address), f"the memory of {name} was refused")
        device.synchronise()

    def maps(self, x: Floats, run: int, errors: Floats, anomaly_maps: Floats) -> None:
        """Maps of up to `run` images; zeros stand for those that are missing."""
        count = len(x)
        self._image[:count], self._image[count:run] = x, 0.0
        if run in self._graphs:
            self._graphs[run]()
        else:
            shape = (run, *self._image.shape[1:])
            self._require(self._context.set_input_shape("image", shape), f"images {shape} were refused")
            self._queue(run)
            if self._capture:  # what ran once has nothing left to set up, which cannot be captured
                self._device.synchronise()
                self._graphs[run] = self._device.captured(lambda: self._queue(run))
        self._device.synchronise()
        errors[...], anomaly_maps[...] = self._errors[:count], self._anomaly_maps[:count]

    def _queue(self, run: int) -> None:
        """All work of a batch, onto the stream."""
        self._device.upload(self._addresses["image"], self._image[:run])
        self._require(self._context.execute_async_v3(self._device.stream), "the plan did not run")
        self._device.download(self._errors[:run], self._addresses["error_map"])
        self._device.download(self._anomaly_maps[:run], self._addresses["anomaly_map"])

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise self._failure(what)

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"backend {self._flavour}: {what}: {logger(self._flavour)[1].reason()}")


def chunks(count: int, batch: int | None, captured: bool) -> list[tuple[int, int, int]]:
    """First image, number of images, and size of the batch that they run in, for `count` images.

    Args:
        count: at least 1.
        batch: that the graph is fixed to; None: up to the largest bucket.
        captured: a batch has one of the sizes in `CAPTURED`.
    """
    step = batch or BUCKETS[-1][-1]
    parts = [(first, min(step, count - first)) for first in range(0, count, step)]
    if batch is not None:
        return [(first, size, batch) for first, size in parts]
    return [(first, size, next(run for run in CAPTURED if run >= size) if captured else size) for first, size in parts]


def lane_of(run: int, batch: int | None) -> tuple[int, int]:
    """The profile of a batch of this size, and the largest batch of that profile."""
    if batch is not None:
        return 0, batch
    return next((index, largest) for index, (_, _, largest) in enumerate(BUCKETS) if run <= largest)
