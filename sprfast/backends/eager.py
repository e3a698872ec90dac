"""The definition run in eager PyTorch, channels-last, one image with all its draws at a time on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sprfast import scoring, unet
from sprfast.model_file import Model


class EagerBackend:
    """`scoring.error_map` in float32 on a CPU or a CUDA device.

    On a CPU a batch is worked off image by image: the feature maps of one image stay in the caches,
    and an image scores the same bits alone and among others. On a CUDA device the batch goes through
    as one; convolution algorithms then depend on its size, and scores agree to rounding only.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.device = device
        self._schedule = model.schedule
        weights = {name: value.to(device, copy=True) for name, value in model.weights.items()}
        self._network = unet.from_weights(model.network, weights).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self._network.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = True

    @staticmethod
    def unavailable() -> str | None:
        """Always None: it needs nothing but torch."""
        return None

    @torch.inference_mode()
    def error_map(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """(B, 3, H, W) float32 images in [-1, 1] and one (K, 1 or B, 3, H, W) tensor of draws a level to (B, 1, H, W)."""
        x = x.to(self.device)
        noise = [z.to(self.device) for z in noise]
        if self.device.type == "cuda":
            return scoring.error_map(self._network, x, self._schedule, noise)
        shared = [z.expand(-1, x.shape[0], -1, -1, -1) for z in noise]
        images = [scoring.error_map(self._network, x[i : i + 1], self._schedule, [z[:, i : i + 1] for z in shared]) for i in range(len(x))]
        return torch.cat(images)
