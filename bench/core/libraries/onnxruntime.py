"""A graph through onnxruntime."""

from __future__ import annotations

import torch
from torch import Tensor

from sprfast.backends.sessions.onnxruntime import library
from sprfast.bench.core.libraries.graph import INPUT, Graph, exported


class OnnxRuntime:
    """A session of onnxruntime's CPU provider, with all its graph optimisations."""

    precision = None

    def __init__(self, graph: Graph) -> None:
        onnxruntime = library()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with exported(graph) as path:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.threads: int = self._session.get_session_options().intra_op_num_threads

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        return tuple(torch.from_numpy(output) for output in self._session.run(None, {INPUT: x.numpy()}))
