"""The runner of an export: for each image a verdict, a score and an anomaly map, without PyTorch.

What runs the network is imported when an export is opened.
"""

from __future__ import annotations

from typing import cast

from sprfast.backends.sessions.session import (
    BACKENDS,
    Flavour,
    Session,
    TensorRtOptions,
    default_threads,
    require_threads,
)
from sprfast.engine.predictor import Predictor
from sprfast.errors import BackendError, InputError
from sprfast.formats.export import Export
from sprfast.formats.export_metadata import Probe
from sprfast.system import torchrun as ranks


class Runner(Predictor):
    """Scores images with one export on one backend; safe to call from several threads.

    Args:
        export: what is computed.
        backend, device, threads, tensorrt: see `load`.

    Raises:
        InputError: an argument is not allowed.
        BackendError: the backend cannot run here, or computes wrong error maps.
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
        super().__init__(metadata.preprocessing, metadata.scoring_mode, metadata.noise_seed)
        self.metadata, self.precision = metadata, metadata.precision
        self.backend = chosen(export, backend)
        self.device = device or ("cuda" if self.backend.startswith("tensorrt") else "cpu")
        if self.device == "cuda" and ranks.local_rank():
            self.device = f"cuda:{ranks.local_rank()}"
        self._session = self._opened(export, threads, tensorrt or TensorRtOptions())
        self.probe_error = self.self_test()

    @property
    def model_sha256(self) -> str:
        """Hash of the weights that the export was made from."""
        return self.metadata.model_sha256

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels at the network's input, for an export of one size that one."""
        return self.metadata.size or super().input_size

    @property
    def _probe(self) -> Probe:
        return self.metadata.probe

    def _require_size(self, size: tuple[int, ...], name: str) -> None:
        super()._require_size(size, name)
        self.metadata.require_size(size, name)

    def _opened(self, export: Export, threads: int | None, options: TensorRtOptions) -> Session:
        if threads is not None:
            require_threads(threads)
        count, metadata = threads or default_threads(), self.metadata
        if export.folded is not None:
            from sprfast.backends.sessions.cpu import CpuSession

            if self.device != "cpu":
                raise BackendError(f"backend cpu: cannot run on {self.device}; use device cpu, or another backend")
            return CpuSession(export.folded, lambda: count, metadata.precision)
        assert export.graph is not None  # an export has one of the two
        if self.backend == "onnxruntime":
            from sprfast.backends.sessions.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(export.graph, self.device, count, metadata.batch, metadata.precision)
        from sprfast.backends.sessions import tensorrt

        kind, _, index = self.device.partition(":")
        if kind != "cuda" or not (index or "0").isdecimal():
            raise BackendError(f"backend {self.backend}: cannot run on {self.device}; use device cuda or cuda:N")
        return tensorrt.Graph(
            export.graph,
            flavour=cast(Flavour, self.backend),
            probe=metadata.probe,
            noise=self._noise(*metadata.probe.error_map.shape),
            precision=metadata.precision,
            quantization=metadata.quantization,
            batch=metadata.batch,
            device=int(index or 0),
            options=options,
        ).open()


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
