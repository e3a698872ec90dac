"""The maps through OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sprfast.bench.libraries.graph import exported
from sprfast.model_file import Model


class OpenVino:
    """An infer request of OpenVINO's CPU plugin for latency, in float32 also where the plugin would rather take bfloat16."""

    def __init__(self, model: Model, noise: Sequence[Tensor]) -> None:
        import openvino

        properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with exported(model, noise) as path:
            compiled = openvino.Core().compile_model(path, "CPU", properties)
        self._request = compiled.create_infer_request()
        self.threads: int = compiled.get_property("INFERENCE_NUM_THREADS")

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `libraries.Runner`."""
        errors, anomalies = self._request.infer([image.numpy()]).to_tuple()
        return torch.from_numpy(errors), torch.from_numpy(anomalies)
