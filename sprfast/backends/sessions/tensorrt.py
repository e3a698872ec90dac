"""A TensorRT plan of an exported graph, without PyTorch: built once for this machine, checked by
the graph's probe image, and run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from typing import TYPE_CHECKING, Any

from sprfast._version import __version__
from sprfast.backends.sessions import cuda, tensorrt_build
from sprfast.backends.sessions.cache import MissError, PlanCache, structure_sha256
from sprfast.backends.sessions.session import Flavour, Floats, TensorRtOptions
from sprfast.backends.sessions.tensorrt_build import BUCKETS, Options, imported, logger
from sprfast.backends.sessions.tensorrt_session import TensorRtSession
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import Probe, Quantization, probe_image

if TYPE_CHECKING:
    import tensorrt as trt

FLOAT8_FROM = (8, 9)  # compute capability of the first devices that have it
PROBED = 3  # images of the probe's second batch, which is in another profile than one image


def unavailable(flavour: Flavour) -> str | None:
    """None where a driver, what reaches it and this flavour are installed, else the reason and what
    to install.

    TensorRT itself is not touched: without a driver, or with one that is too old for it, it ends
    the process.
    """
    if reason := cuda.unavailable():
        return reason
    try:
        driver = cuda.facts(0).driver
    except BackendError as error:
        return str(error)
    if importlib.util.find_spec(flavour) is None:
        return f"needs {flavour}, not installed here: run pip install 'sprfast[{flavour.replace('_', '-')}]'"
    needed = _cuda_major(flavour)
    if needed is not None and int(driver.partition(".")[0]) < needed:
        return f"{flavour} is for CUDA {needed}, the driver here runs up to {driver}: install a newer driver"
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A graph, and all that it takes to build and run it."""

    onnx: bytes  # a serialised model as `onnx_graph.onnx_model` makes it
    flavour: Flavour
    probe: Probe  # of the graph's size
    noise: Floats  # (D, 3, H, W), that the probe's error map is of
    precision: Precision
    quantization: Quantization | None
    batch: int | None  # images that the graph is fixed to; None: any number
    device: int = 0  # number of the CUDA device
    # captured batches are padded to 1, 2, 4, 8, 16 or 32 images; a quantized plan is never shared
    options: TensorRtOptions = dataclasses.field(default_factory=TensorRtOptions)

    def open(self) -> TensorRtSession:
        """A session from the cache or newly built, which takes minutes; it gave the right error map
        of the probe image.

        Raises:
            BackendError: the flavour cannot run here, cannot build or load the graph, or computes a
                wrong error map; or the graph is in float8 and the device has none.
        """
        if reason := unavailable(self.flavour) or self._no_float8():
            raise BackendError(f"backend {self.flavour}: {reason}")
        cache = PlanCache("plan")
        try:
            return self._checked(cache, cache.load(self._key), "loaded")[0]
        except (MissError, _UnreadableError) as error:
            reason = str(error)
        built = self._built()
        session, error_of_probe = self._checked(cache, built.plan, f"rebuilt: {reason}" if reason else "built")
        certificate = {
            "by": f"{self.flavour} {self._machine['tensorrt']}",
            "gpu": self._machine["name"],
            "compute_capability": self._machine["compute_capability"],
            "driver": self._machine["driver"],
            "sprfast": __version__,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "probe_relative_rms": error_of_probe,
            "tolerance": self.probe.tolerance,
            "network": built.summary,
        }
        cache.store(self._key, built.plan, certificate)
        return session

    @property
    def _build_options(self) -> Options:
        return Options(
            profiles=BUCKETS if self.batch is None else (),
            workspace_bytes=self.options.workspace_bytes,
            stripped=self.options.shared_plan and self.quantization is None,
        )

    @functools.cached_property
    def _machine(self) -> dict[str, Any]:
        """What timings depend on."""
        version = imported(self.flavour).__version__
        return {"flavour": self.flavour, "tensorrt": version, **dataclasses.asdict(cuda.facts(self.device))}

    @functools.cached_property
    def _key(self) -> dict[str, Any]:
        """What the plan depends on."""
        options = self._build_options
        return {
            **self._machine,
            "sprfast": __version__,
            "graph_sha256": structure_sha256(self.onnx) if options.stripped else hashlib.sha256(self.onnx).hexdigest(),
            "precision": self.precision,
            "quantization": self.quantization,
            "batch": self.batch,
            "size": list(self.probe.error_map.shape),
            "options": dataclasses.asdict(options),
        }

    def _no_float8(self) -> str | None:
        """The reason where the graph is in float8 and the device has none. It is asked before a
        build, since TensorRT-RTX builds for other devices too and would fail when it loads the
        plan.
        """
        if self.quantization != "float8":
            return None
        facts = cuda.facts(self.device)
        if tuple(map(int, facts.compute_capability.split("."))) >= FLOAT8_FROM:
            return None
        return (
            f"a graph in float8 needs a GPU of compute capability {'.'.join(map(str, FLOAT8_FROM))} or newer, "
            f"{facts.name} has {facts.compute_capability}; export with --quantize int8 or none"
        )

    def _built(self) -> tensorrt_build.Built:
        """A new plan; what was timed is kept for the next one."""
        timings = PlanCache("timings")
        try:
            known = timings.load(self._machine)
        except MissError:
            known = b""
        on_progress = self.options.on_progress
        with contextlib.closing(cuda.open_device(self.device)) as device, device.current():
            built = tensorrt_build.build(
                self.onnx, self.flavour, self._build_options, timing_cache=known, on_progress=on_progress
            )
        if built.timing_cache:
            timings.store(self._machine, built.timing_cache, {})
        return built

    def _checked(self, cache: PlanCache, plan: bytes, origin: str) -> tuple[TensorRtSession, float]:
        """A session whose maps of the probe image are right, and their largest relative RMS
        error.
        """
        weights = self.onnx if self._build_options.stripped else None
        with contextlib.ExitStack() as stack:
            device = cuda.open_device(self.device)
            stack.callback(device.close)
            with device.current():
                engine = _engine(plan, self.flavour, weights)
            capture = self.options.capture
            session = TensorRtSession(*engine, device, self.flavour, self.noise.shape, self.batch, capture, origin)
            stack.pop_all()
        try:
            return session, self._probed(session, cache)
        except BackendError:
            with contextlib.suppress(BackendError):  # of a device that does not answer any more
                session.close()
            raise

    def _probed(self, session: TensorRtSession, cache: PlanCache) -> float:
        """The largest error of the probe image's map, alone and in every place of a batch. Each
        batch runs twice, since a captured graph must still be right after another one was captured.

        Raises:
            BackendError: a map is wrong, and the plan is no longer in the cache.
        """
        image, largest = probe_image(*self.probe.error_map.shape), 0.0
        for count in 2 * (1, self.batch or PROBED):
            errors, _ = session.maps(image.repeat(count, axis=0), self.noise)
            try:
                largest = max(
                    largest, *(self.probe.check(error_map[0], f"backend {self.flavour}") for error_map in errors)
                )
            except BackendError:
                cache.discard(self._key)
                raise
        return largest


class _UnreadableError(BackendError):
    """TensorRT does not take a plan, which may have been made by another version of it."""


def _engine(plan: bytes, flavour: Flavour, weights: bytes | None) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """A runtime, and the engine of a plan that is known; `weights`: a model that has them."""
    if not TYPE_CHECKING:
        trt = imported(flavour)
    log, messages = logger(flavour)
    messages.clear()
    runtime = trt.Runtime(log)
    engine: Any = runtime.deserialize_cuda_engine(plan)  # None where it failed, which its signature leaves out
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
