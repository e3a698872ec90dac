"""A TensorRT plan of an exported graph, without PyTorch: built once for this machine, checked by
the graph's probe image, and run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import re
from typing import TYPE_CHECKING, Any

from sprfast._version import __version__
from sprfast.backends.sessions import cuda, tensorrt_build
from sprfast.backends.sessions.cache import Entry, PlanCache, graph_sha256
from sprfast.backends.sessions.session import Floats, TensorRtOptions
from sprfast.backends.sessions.tensorrt_build import BUCKETS, Flavour, Options, Progress, imported, logger, optional
from sprfast.backends.sessions.tensorrt_session import TensorRtSession
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import Probe, Quantization, probe_image

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["Flavour", "TensorRtSession", "open_session", "unavailable"]

_DEFAULT = TensorRtOptions()
EXTRAS: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


def unavailable(flavour: Flavour) -> str | None:
    """None where a driver, what reaches it and this flavour are installed, else the reason and what
    to install.

    TensorRT itself is not touched: without a driver, or with one that is too old for it, it ends
    the process.
    """
    if reason := cuda.unavailable():
        return reason
    try:
        driver = cuda.facts(0)
    except BackendError as error:
        return str(error)
    if importlib.util.find_spec(flavour) is None:
        return f"needs {flavour}, not installed here: run pip install 'sprfast[{EXTRAS[flavour]}]'"
    needed = _cuda_major(flavour)
    if needed is not None and driver.driver_major < needed:
        return f"{flavour} is for CUDA {needed}, the driver here runs up to {driver.driver}: install a newer driver"
    return None


def open_session(
    onnx: bytes,
    *,
    flavour: Flavour,
    probe: Probe,
    noise: Floats,
    precision: Precision,
    quantization: Quantization | None,
    batch: int | None,
    device: int = 0,
    options: TensorRtOptions = _DEFAULT,
) -> TensorRtSession:
    """A session for one graph, from the cache or newly built, which gave the right error map of the
    probe image.

    Args:
        onnx: a serialised model as `graph.onnx_model` makes it.
        flavour: of TensorRT.
        probe: of the graph's size.
        noise: (D, 3, H, W), that the probe's error map is of.
        precision, quantization: of the graph.
        batch: images that the graph is fixed to; None: any number.
        device: number of the CUDA device.
        options: how to build, which takes minutes, and to run. Batches that are captured are padded
            to 1, 2, 4, 8, 16 or 32 images; a quantized plan is never shared.

    Raises:
        BackendError: the flavour cannot run here, cannot build or load the graph, or computes a
            wrong error map.
    """
    if reason := unavailable(flavour):
        raise BackendError(f"backend {flavour}: {reason}")
    height, width = probe.error_map.shape
    built_with = Options(
        profiles=BUCKETS if batch is None else (),
        workspace_bytes=options.workspace_bytes,
        stripped=options.shared_plan and quantization is None,
    )
    machine = {
        "flavour": flavour,
        "tensorrt": tensorrt_build.version(flavour),
        **dataclasses.asdict(cuda.facts(device)),
    }
    key = {
        **machine,
        "sprfast": __version__,
        "graph_sha256": graph_sha256(onnx, with_weights=not built_with.stripped),
        "precision": precision,
        "quantization": quantization,
        "batch": batch,
        "size": [height, width],
        "options": built_with.to_json(),
    }
    opening = _Opening(
        onnx, flavour, probe, noise, batch, options.on_progress, device, options.capture, built_with, machine, key
    )
    return opening.session()


@dataclasses.dataclass(frozen=True, eq=False)
class _Opening:
    """What a session is opened with."""

    onnx: bytes
    flavour: Flavour
    probe: Probe
    noise: Floats
    batch: int | None
    on_progress: Progress | None
    device: int
    capture: bool
    options: Options
    machine: dict[str, Any]
    key: dict[str, Any]

    def session(self) -> TensorRtSession:
        cache = PlanCache("plan")
        found = cache.load(self.key)
        if isinstance(found, Entry):
            try:
                return self._checked(cache, found.content, "loaded", {})
            except _UnreadableError as error:
                reason: str | None = str(error)
        else:
            reason = found.reason
        built = self._built()
        session = self._checked(
            cache, built.plan, f"rebuilt: {reason}" if reason else "built", {"network": built.summary}
        )
        cache.store(self.key, built.plan, session.certificate)
        return session

    def _built(self) -> tensorrt_build.Built:
        """A new plan; what was timed is kept for the next one."""
        timings = PlanCache("timings")
        known = timings.load(self.machine)
        device = cuda.open_device(self.device)
        try:
            with device.current():
                built = tensorrt_build.build(
                    self.onnx,
                    self.flavour,
                    self.options,
                    timing_cache=known.content if isinstance(known, Entry) else b"",
                    on_progress=self.on_progress,
                )
        finally:
            device.close()
        if built.timing_cache:
            timings.store(self.machine, built.timing_cache, {})
        return built

    def _checked(self, cache: PlanCache, plan: bytes, origin: str, more: dict[str, Any]) -> TensorRtSession:
        """A session of the plan, which gives the definition's error map of the probe image."""
        height, width = self.probe.error_map.shape
        with contextlib.ExitStack() as stack:
            device = cuda.open_device(self.device)
            stack.callback(device.close)
            with device.current():
                engine = _engine(plan, self.flavour, self.onnx if self.options.stripped else None)
            session = TensorRtSession(*engine, device, self.flavour, self.noise.shape, self.batch, self.capture)
            stack.pop_all()
        try:
            errors, _ = session.maps(probe_image(height, width), self.noise)
            error = self._probe_error(cache, errors[0, 0])
        except BackendError:
            with contextlib.suppress(BackendError):  # of a device that does not answer any more
                session.close()
            raise
        session.origin = origin
        session.certificate = {
            "by": f"{self.flavour} {self.machine['tensorrt']}",
            "gpu": self.machine["name"],
            "compute_capability": self.machine["compute_capability"],
            "driver": self.machine["driver"],
            "sprfast": __version__,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "probe_relative_rms": error,
            "tolerance": self.probe.tolerance,
            **more,
        }
        return session

    def _probe_error(self, cache: PlanCache, error_map: Floats) -> float:
        """Check a session's error map; a plan that computes a wrong one is not kept."""
        try:
            return self.probe.check(error_map, f"backend {self.flavour}")
        except BackendError:
            cache.discard(self.key)
            raise


class _UnreadableError(BackendError):
    """TensorRT does not take a plan, which may have been made by another version of it."""


def _engine(plan: bytes, flavour: Flavour, weights: bytes | None) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """A runtime, and the engine of a plan that was built here or came out of the cache checked;
    `weights` is a model that has them.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = imported(flavour)
    log, messages = logger(flavour)
    messages.clear()
    runtime = trt.Runtime(log)
    engine = optional(runtime.deserialize_cuda_engine(plan))
    if engine is None:
        raise _UnreadableError(f"backend {flavour}: the plan could not be loaded: {messages.reason()}")
    if weights is not None:
        tensorrt_build.refitted(engine, weights, flavour)
    return runtime, engine


def _cuda_major(flavour: Flavour) -> int | None:
    """Major version of the CUDA that the installed flavour is for.

    The names of its packages say it; None: they do not.
    """
    pattern = re.compile(rf"{flavour}_cu(\d+)(_bindings|_libs)?")
    names = (re.sub(r"[-.]", "_", distribution.name.lower()) for distribution in importlib.metadata.distributions())
    return max((int(match[1]) for name in names if (match := pattern.fullmatch(name))), default=None)
