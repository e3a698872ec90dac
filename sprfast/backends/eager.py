"""The definition run in eager PyTorch, channels-last, one image with all its draws at a time on a
CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sprfast.backends.group_norm import replace_norms
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.lowering.fold import fold
from sprfast.method import scoring, unet
from sprfast.method.overflow import watched


class EagerBackend:
    """`scoring.error_map` in float32 on a CPU or a CUDA device.

    On a CPU a batch is worked off image by image: the feature maps of one image stay in the caches,
    and an image scores the same bits alone and among others. On a CUDA device the batch goes
    through as one; convolution algorithms then depend on its size, and scores agree to rounding
    only. `network` is the network as it is run, channels-last.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        if precision != "float32":
            raise BackendError(
                f"backend eager: computes in float32, not {precision}; use --backend triton or cuda_graph for that"
            )
        self.device = device
        self._mode = model.scoring_mode
        weights = {name: value.to(device, copy=True) for name, value in model.weights.items()}
        self.network = unet.from_weights(model.network, weights).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        replace_norms(self.network, watched(fold(model)))
        for module in self.network.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = True

    @staticmethod
    def unavailable() -> str | None:
        """Always None: it needs nothing but torch."""
        return None

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps; see `registry.Backend`."""
        with _exact(self.device):
            errors = self._error_map(x.to(self.device), [z.to(self.device) for z in noise])
            return errors, scoring.anomaly_map(errors, self._mode.window)

    def _error_map(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        if self.device.type == "cuda":
            return scoring.error_map(self.network, x, self._mode.schedule, noise)
        shared = [z.expand(-1, x.shape[0], -1, -1, -1) for z in noise]
        images = [
            scoring.error_map(self.network, x[i : i + 1], self._mode.schedule, [z[:, i : i + 1] for z in shared])
            for i in range(len(x))
        ]
        return torch.cat(images)


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No TensorFloat-32, cuDNN's default and cuBLAS's by choice; for the process, so kept short."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
