"""Error maps by TensorRT, from the folded plan as an ONNX graph, built on this machine and
cached.
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import torch

from sprfast.backends.graphs import GraphBackend
from sprfast.backends.sessions import tensorrt as runtime
from sprfast.backends.sessions.session import Session
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import TOLERANCE
from sprfast.formats.model import Model
from sprfast.lowering.onnx_graph import onnx_model
from sprfast.lowering.probe import probe
from sprfast.method import draws
from sprfast.method.folded import FoldedModel


class TensorRtBackend(GraphBackend):
    """Maps by TensorRT on an NVIDIA GPU; a plan is built when images of its size come first on this
    machine, which takes minutes.

    A plan is refused unless it gives the definition's error map of the probe image.
    """

    flavour: ClassVar[runtime.Flavour] = "tensorrt"

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        if device.type != "cuda":
            raise BackendError(f"backend {self.flavour}: cannot run on {device}; use --device cuda, or another backend")
        super().__init__(model, device)
        self._model, self._precision = model, precision

    @classmethod
    def unavailable(cls) -> str | None:
        """None where TensorRT, a driver and onnx are installed."""
        if importlib.util.find_spec("onnx") is None:
            return "needs onnx, not installed here: run pip install 'sprfast[onnx]'"
        return runtime.unavailable(cls.flavour)

    def _open(self, folded: FoldedModel, height: int, width: int) -> Session:
        return runtime.open_session(
            onnx_model(folded, height, width, precision=self._precision).SerializeToString(),
            flavour=self.flavour,
            probe=probe(self._model, height, width, TOLERANCE[self._precision]),
            noise=draws.stacked(self._model.schedule, height, width, self._model.noise_seed),
            precision=self._precision,
            quantization=None,
            batch=None,
            device=self.device.index or 0,
        )


class TensorRtRtxBackend(TensorRtBackend):
    """The same by TensorRT-RTX, for RTX cards."""

    flavour: ClassVar[runtime.Flavour] = "tensorrt_rtx"
