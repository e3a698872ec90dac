"""A graph through OpenVINO."""

from __future__ import annotations

import torch
from torch import Tensor

from sprfast.bench.core.libraries.graph import Graph, exported


class OpenVino:
    """An infer request of OpenVINO's CPU plugin for latency, in float32 also where the plugin would
    rather take bfloat16.
    """

    def __init__(self, graph: Graph) -> None:
        import openvino

        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with exported(graph) as path:
            compiled = openvino.Core().compile_model(path, "CPU", properties)
        self._request = compiled.create_infer_request()
        self.threads: int = compiled.get_property("INFERENCE_NUM_THREADS")

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        return tuple(torch.from_numpy(output) for output in self._request.infer([x.numpy()]).to_tuple())
