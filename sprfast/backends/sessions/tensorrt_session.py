"""Batches of images through a TensorRT engine."""

from __future__ import annotations

import bisect
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sprfast.backends.sessions import cuda
from sprfast.backends.sessions.session import CAPTURED, Flavour, Floats, split
from sprfast.backends.sessions.tensorrt_build import BUCKETS, imported, logger
from sprfast.errors import BackendError, InputError
from sprfast.method.anomaly_map import MAP_SIZE

if TYPE_CHECKING:
    import tensorrt as trt


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
                for part, run in split(len(x), self._sizes):
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


class _Lane:
    """A profile's execution context and memory; `shape`: its largest batch, height, width."""

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
        if not TYPE_CHECKING:
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
        # memory of this profile alone; the other strategy takes the largest one's for each context
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        self._context = engine.create_execution_context(strategy)
        self._require(self._context is not None, "the plan does not run")  # which its signature leaves out
        done = self._context.set_optimization_profile_async(profile, device.stream)
        self._require(done, f"profile {profile} was refused")
        for name, address in self._addresses.items():
            self._require(self._context.set_tensor_address(name, address), f"the memory of {name} was refused")
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
            raise BackendError(f"backend {self._flavour}: {what}: {logger(self._flavour)[1].reason()}")
