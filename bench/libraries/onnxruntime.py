"""The maps through onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sprfast.bench.libraries.graph import INPUT, OUTPUTS, exported
from sprfast.model_file import Model


class OnnxRuntime:
    """A session of onnxruntime's CPU provider, with all its graph optimisations."""

    def __init__(self, model: Model, noise: Sequence[Tensor]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with exported(model, noise) as path:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.threads: int = self._session.get_session_options().intra_op_num_threads

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `libraries.Runner`."""
        errors, anomalies = self._session.run(OUTPUTS, {INPUT: image.numpy()})
        return torch.from_numpy(errors), torch.from_numpy(anomalies)
