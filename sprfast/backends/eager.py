"""The definition run in eager PyTorch: channels-last everywhere, one sample at a time on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sprfast import scoring, unet
from sprfast.model_file import Model


class EagerBackend:
    """`scoring.error_map` in float32 on a CPU or a CUDA device."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.device = device
        self._schedule = model.schedule
        weights = {name: value.to(device).clone() for name, value in model.weights.items()}
        network = unet.from_weights(model.network, weights).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _swish_in_place(network)
        self._network: scoring.ScoreNetwork = network
        if device.type == "cpu":
            if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
                _pack_convolutions(network)
            self._network = _SampleBySample(network)

    @staticmethod
    def unavailable() -> str | None:
        """Always None: it needs nothing but torch."""
        return None

    @torch.inference_mode()
    def error_map(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """(B, 3, H, W) float32 images in [-1, 1] and one (K, 1 or B, 3, H, W) tensor of draws a level to (B, 1, H, W)."""
        return scoring.error_map(self._network, x.to(self.device), self._schedule, [z.to(self.device) for z in noise])


class _SampleBySample:
    """A network that never sees a batch: a sample's feature maps then stay in the caches, and an
    image scores the same bits alone and among others.
    """

    def __init__(self, network: unet.ScoreUNet) -> None:
        self._network = network

    def scaled_score(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.cat([self._network.scaled_score(x[i : i + 1], t[i : i + 1]) for i in range(x.shape[0])])


class _PackedConv(nn.Module):
    """A 3x3 convolution whose weights are laid out for oneDNN once instead of at every call."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        geometry = ([1, 1], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(convolution.weight.to_mkldnn(), *geometry)
        self._bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        return torch.mkldnn_convolution(x, self._weight, self._bias, [1, 1], [1, 1], [1, 1], 1)


def _swish_in_place(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = True


def _pack_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                setattr(module, name, _PackedConv(child))
