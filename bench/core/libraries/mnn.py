"""A graph through MNN."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast.bench.core.libraries.graph import INPUT, Graph, convert, exported, quiet

_WINOGRAD_MEMORY_LEVEL = 3  # number of the hint
ALL_TILES = 3  # its values are 0, no Winograd, to 3, MNN's default
SMALL_TILES = 2
_THREAD_NUMBER = 4  # number of the session's information, an int handed out as the bits of a float


class Mnn:
    """A session of MNN on the CPU.

    Args:
        graph: what to run.
        precision: MNN's "high", "normal" or "low", which on x86 processors give the same bits;
            "low" is float16 where MNN has kernels for it.
        tiles: `SMALL_TILES` or `ALL_TILES`; the largest Winograd tiles are the fastest, and put the
            maps outside float32's tolerance.
    """

    def __init__(self, graph: Graph, precision: str, tiles: int) -> None:
        with exported(graph) as path, quiet():
            # Not MNN.tools.mnnconvert: importing that runs pip to install a package for reporting
            # use to MNN's makers.
            converter = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)"]
            options = ["-f", "ONNX", "--bizCode", "sprfast", "--modelFile", str(path), "--MNNModel", f"{path}.mnn"]
            convert([*converter, *options], path.parent)
            self.precision, exact = "float32", None
            if precision == "low":  # MNN does not tell what it runs in: what has the bits of float32 is float32
                self._open(f"{path}.mnn", graph, "high", tiles)
                exact = self(graph.example)
            self._open(f"{path}.mnn", graph, precision, tiles)
        if exact and not all(map(torch.equal, exact, self(graph.example))):
            self.precision = "float16"
        self.threads = int(np.float32(self._interpreter.getSessionInfo(self._session, _THREAD_NUMBER)).view(np.int32))

    def _open(self, path: str, graph: Graph, precision: str, tiles: int) -> None:
        import MNN

        self._interpreter = MNN.Interpreter(path)
        self._interpreter.setSessionHint(_WINOGRAD_MEMORY_LEVEL, tiles)
        config = {"backend": "CPU", "precision": precision, "numThread": torch.get_num_threads()}
        self._session = self._interpreter.createSession(config)
        self._input = self._interpreter.getSessionInput(self._session, INPUT)
        outputs = [self._interpreter.getSessionOutput(self._session, name) for name in graph.outputs]
        self._outputs = [(output, _mnn_tensor(np.empty(output.getShape(), np.float32))) for output in outputs]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        self._input.copyFrom(_mnn_tensor(x.numpy()))
        self._interpreter.runSession(self._session)
        for output, host in self._outputs:
            output.copyToHostTensor(host)
        # its arrays do not own their memory
        return tuple(torch.tensor(host.getNumpyData()) for _, host in self._outputs)


def _mnn_tensor(values: np.ndarray) -> Any:
    """An MNN.Tensor with a copy of (N, C, H, W) float32 values."""
    import MNN

    return MNN.Tensor(values.shape, MNN.Halide_Type_Float, values, MNN.Tensor_DimensionType_Caffe)
