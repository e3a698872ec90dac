"""Error maps by onnxruntime, from the folded plan as an ONNX graph."""

from __future__ import annotations

import importlib.util

import torch

from sprfast.backends.graphs import GraphBackend
from sprfast.backends.sessions import onnxruntime as runtime
from sprfast.backends.sessions.session import Session
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.lowering.onnx_graph import onnx_model
from sprfast.method.folded import FoldedModel


class OnnxRuntimeBackend(GraphBackend):
    """Maps by onnxruntime, on a CPU with as many threads as torch is set to use when a size comes
    first, or on CUDA.

    On a CPU an image gives the same bits alone and in a batch.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        super().__init__(model, device)
        self._precision = precision

    @staticmethod
    def unavailable() -> str | None:
        """None where onnxruntime and onnx are installed."""
        if importlib.util.find_spec("onnx") is None:
            return "needs onnx, not installed here: run pip install 'sprfast[onnx]'"
        return runtime.unavailable()

    def _open(self, folded: FoldedModel, height: int, width: int) -> Session:
        graph = onnx_model(
            folded, height, width, precision=self._precision, normalization="instance"
        ).SerializeToString()
        return runtime.OnnxRuntimeSession(graph, str(self.device), torch.get_num_threads(), None, self._precision)
