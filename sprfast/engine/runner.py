"""The engine without PyTorch: an export in, and for each image a verdict, a score and an anomaly
map out.

    from sprfast.engine import runner

    with_onnx = runner.load("screw.onnx")
    with_our_kernels = runner.load("screw.plan.safetensors")
    result = with_onnx.predict(frame, channel_order="bgr")  # as `Engine.predict`

What runs the network is imported when an export is opened, and never PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sprfast.backends.sessions import session as runtimes
from sprfast.backends.sessions.session import Session
from sprfast.config import Precision
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import Map, Predictor
from sprfast.errors import BackendError, InputError
from sprfast.formats import export as export_file
from sprfast.formats.export import Export
from sprfast.formats.export_metadata import probe_image
from sprfast.formats.manifest import PathLike
from sprfast.method import draws
from sprfast.system import torchrun as ranks

if TYPE_CHECKING:
    from sprfast.backends.sessions.tensorrt import Flavour, TensorRtSession

BACKENDS = ("cpu", "onnxruntime", "tensorrt", "tensorrt_rtx")


@dataclasses.dataclass(frozen=True)
class TensorRtOptions:
    """How TensorRT builds and runs."""

    capture: bool = False  # replay each batch as a CUDA graph; needs cuda-bindings
    shared_plan: bool = False  # without the weights, so that all models of one structure share it
    workspace_bytes: int | None = None  # that a layer may use on the device; None: all there is
    # while a plan is built: what is done, steps done, their number
    on_progress: Callable[[str, int, int], None] | None = None


def load(
    path: PathLike,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    tensorrt: TensorRtOptions | None = None,
) -> Runner:
    """A runner for a file that `sprfast export` wrote, which must compute the right error map of
    its probe image first.

    Args:
        backend: "auto", or one of `BACKENDS`. A plan runs on "cpu" only; an ONNX file on the
            others, "auto" being onnxruntime.
        device: "cpu", "cuda" or "cuda:N"; None: a CUDA device for TensorRT, else the CPU. "cuda" is
            the first, or under torchrun this process's own.
        threads: that compute on a CPU; None: `runtimes.default_threads`.
        tensorrt: how TensorRT builds and runs; None: `TensorRtOptions()`.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        InputError: an argument is not allowed.
        BackendError: the backend cannot run here, or computes wrong error maps.
    """
    return Runner(export_file.read(path), backend, device, threads, tensorrt)


def unavailable(backend: str) -> str | None:
    """None where one of `BACKENDS` can run on this machine, else the reason and what to install."""
    if backend in ("tensorrt", "tensorrt_rtx"):
        from sprfast.backends.sessions import tensorrt

        return tensorrt.unavailable(cast("Flavour", backend))
    return importlib.import_module(f"sprfast.backends.sessions.{backend}").unavailable()  # type: ignore[no-any-return]


class Runner(Predictor):
    """Scores images with one export on one backend; safe to call from several threads. Arguments as
    of `load`.
    """

    def __init__(
        self,
        export: Export,
        backend: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        tensorrt: TensorRtOptions | None = None,
    ) -> None:
        metadata = export.metadata
        super().__init__(metadata.preprocessing, metadata.scoring_mode)
        self.metadata = metadata
        self._backend = chosen(export, backend)
        self.device = device or ("cuda" if self._backend.startswith("tensorrt") else "cpu")
        if self.device == "cuda" and ranks.local_rank():
            self.device = f"cuda:{ranks.local_rank()}"
        self._noise = functools.lru_cache(maxsize=8)(self._draws)
        self._session = self._opened(export, threads, tensorrt or TensorRtOptions())
        self.probe_error = self.self_test()

    @property
    def backend(self) -> str:
        """Name of the backend in use, for "auto" the one that was chosen."""
        return self._backend

    @property
    def precision(self) -> Precision:
        """Of stored feature maps."""
        return self.metadata.precision

    @property
    def model_sha256(self) -> str:
        """Of the weights that the export was made from."""
        return self.metadata.model_sha256

    @property
    def input_size(self) -> tuple[int, int]:
        """As `Predictor.input_size`; of an export for one size that one."""
        return self.metadata.size or super().input_size

    def close(self) -> None:
        """Release what the backend holds on a device; the runner cannot be used afterwards."""
        if close := getattr(self._session, "close", None):
            close()

    def maps(self, x: Map) -> tuple[Map, Map]:
        """Error maps and anomaly maps of network inputs of one size.

        Args:
            x: (B, 3, H, W) float32 in [-1, 1], contiguous.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256), float32.
        """
        self.require_own_process()
        return self._session.maps(x, self._noise(*x.shape[2:]))

    def prepare(self, source: Any, channel_order: ChannelOrder | None = None) -> images.Image:
        """As `Predictor.prepare`, for the size that the export takes."""
        image = super().prepare(source, channel_order)
        name = images.display_name(source) if isinstance(source, (str, os.PathLike)) else "image"
        self.metadata.require_size(image.pixels.shape[1:], name)
        return image

    def self_test(self) -> float:
        """As `Predictor.self_test`."""
        probe = self.metadata.probe
        errors, _ = self.maps(probe_image(*probe.error_map.shape))
        return probe.check(errors[0, 0], f"backend {self.backend}")

    def _maps(self, prepared: Sequence[images.Image]) -> tuple[Map, Map]:
        return self.maps(np.stack([image.pixels for image in prepared]))

    def _draws(self, height: int, width: int) -> Map:
        metadata = self.metadata
        return draws.stacked(metadata.schedule, height, width, metadata.noise_seed)

    def _opened(self, export: Export, threads: int | None, options: TensorRtOptions) -> Session:
        if threads is not None and threads < 1:
            raise InputError(f"threads: {threads} is not allowed, expected at least 1")
        count = threads or runtimes.default_threads()
        if export.folded is not None:
            from sprfast.backends.sessions.cpu import CpuSession

            if self.device != "cpu":
                raise BackendError(f"backend cpu: cannot run on {self.device}; use device cpu, or another backend")
            return CpuSession(export.folded, count)
        assert export.graph is not None  # an export has one of the two
        if self._backend == "onnxruntime":
            from sprfast.backends.sessions.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(export.graph, self.device, count, self.metadata.batch, self.metadata.precision)
        return self._tensorrt_session(export.graph, options)

    def _tensorrt_session(self, graph: bytes, options: TensorRtOptions) -> TensorRtSession:
        from sprfast.backends.sessions import tensorrt

        metadata = self.metadata
        kind, _, index = self.device.partition(":")
        if kind != "cuda" or not (index or "0").isdecimal():
            raise BackendError(f"backend {self._backend}: cannot run on {self.device}; use device cuda or cuda:N")
        return tensorrt.open_session(
            graph,
            flavour=cast("Flavour", self._backend),
            probe=metadata.probe,
            noise=self._noise(*metadata.probe.error_map.shape),
            precision=metadata.precision,
            quantization=metadata.quantization,
            batch=metadata.batch,
            on_progress=options.on_progress,
            device=int(index or 0),
            workspace_bytes=options.workspace_bytes,
            capture=options.capture,
            stripped=options.shared_plan,
        )


def chosen(export: Export, backend: str) -> str:
    """The backend that `backend` stands for, which must be one for this kind of export."""
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"backend: {backend!r} is not known for an export, choose from auto, {', '.join(BACKENDS)}")
    if export.folded is not None:
        if backend not in ("auto", "cpu"):
            raise InputError(
                f"backend: a plan runs on cpu, not {backend}; export the model with --to onnx or tensorrt for that"
            )
        return "cpu"
    if backend == "cpu":
        raise InputError("backend: cpu takes a plan, this is an ONNX file; export the model with --to plan for that")
    return "onnxruntime" if backend == "auto" else backend
