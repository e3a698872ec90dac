"""The score network s(x, t): a time-conditioned U-Net in eager PyTorch (supplement, Table 1).

Module and parameter names are those of the published checkpoints, which also fix the decoder's
widths: the first convolution of each `up` block is twice as wide as Table 1 prints it.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprfast.config import GROUPS, NetworkConfig
from sprfast.method import sde

FOURIER_SCALE = 30.0  # standard deviation of the fixed frequencies W


class ScoreUNet(nn.Module):
    """Estimates the score of images perturbed by the SDE at time t; 17.84 M parameters at
    width 64.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, features = config.base_width, config.embedding_dim
        self.config = config
        self.embed = nn.Sequential(FourierFeatures(features), nn.Linear(features, features))
        self.inc = DoubleConv(3, width, width)
        self.down1 = Down(width, 2 * width)
        self.down2 = Down(2 * width, 4 * width)
        self.down3 = Down(4 * width, 8 * width)
        self.down4 = Down(8 * width, 8 * width)
        self.up1 = Up(16 * width, 4 * width)
        self.up2 = Up(8 * width, 2 * width)
        self.up3 = Up(4 * width, width)
        self.up4 = Up(2 * width, width)
        self.outc = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, 3, 1)))
        self.dense_in = Dense(features, width)
        self.dense_d1 = Dense(features, 2 * width)
        self.dense_d2 = Dense(features, 4 * width)
        self.dense_d3 = Dense(features, 8 * width)
        self.dense_d4 = Dense(features, 8 * width)
        self.dense_u1 = Dense(features, 4 * width)
        self.dense_u2 = Dense(features, 2 * width)
        self.dense_u3 = Dense(features, width)
        self.dense_u4 = Dense(features, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The score s(x, t).

        Args:
            x: (B, 3, H, W) float, perturbed image, of any H, W >= 16.
            t: (B,) float, time of each image in (0, 1].

        Returns:
            (B, 3, H, W), gradient of the log density at x.
        """
        return self.scaled_score(x, t) / sde.std(t)[:, None, None, None]

    def scaled_score(self, x: Tensor, t: Tensor) -> Tensor:
        """std(t)·s(x, t), which is what the last convolution computes: an estimate of minus the
        noise z.

        Args and shape as `forward`. Loss and residual use it to spare the division and the
        multiplication that undoes it.
        """
        e = F.silu(self.embed(t))
        x0 = self.inc(x).add_(self.dense_in(e))
        x1 = self.down1(x0).add_(self.dense_d1(e))
        x2 = self.down2(x1).add_(self.dense_d2(e))
        x3 = self.down3(x2).add_(self.dense_d3(e))
        h = self.down4(x3).add_(self.dense_d4(e))
        h = self.up1(h, x3).add_(self.dense_u1(e))
        h = self.up2(h, x2).add_(self.dense_u2(e))
        h = self.up3(h, x1).add_(self.dense_u3(e))
        h = self.up4(h, x0).add_(self.dense_u4(e))
        return self.outc(h)  # type: ignore[no-any-return]


class FourierFeatures(nn.Module):
    """[sin(2 pi t W), cos(2 pi t W)] with frequencies W drawn once and never trained."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(features // 2), requires_grad=False)
        if not self.W.is_meta:  # where normal numbers, unlike uniform ones, would import PyTorch's compiler: a second
            self.W.normal_().mul_(FOURIER_SCALE)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times to (B, features)."""
        angle = t[:, None] * self.W[None, :] * (2.0 * math.pi)
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class Dense(nn.Module):
    """A linear layer whose output is one value a channel, shaped to be added to a feature map."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, channels)

    def forward(self, e: Tensor) -> Tensor:
        """(B, features) to (B, channels, 1, 1)."""
        return self.dense(e)[:, :, None, None]  # type: ignore[no-any-return]


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution with bias, GroupNorm(32), swish; (B, in, H, W) to (B, out, H, W)."""

    double_conv: nn.Sequential

    def __init__(self, channels_in: int, channels_middle: int, channels_out: int) -> None:
        layers = nn.Sequential(
            nn.Conv2d(channels_in, channels_middle, 3, padding=1),
            nn.GroupNorm(GROUPS, channels_middle),
            nn.SiLU(),
            nn.Conv2d(channels_middle, channels_out, 3, padding=1),
            nn.GroupNorm(GROUPS, channels_out),
            nn.SiLU(),
        )
        super().__init__(OrderedDict(double_conv=layers))


class Down(nn.Sequential):
    """2x2 max pooling, then DoubleConv; (B, in, H, W) to (B, out, H // 2, W // 2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        layers = nn.Sequential(nn.MaxPool2d(2), DoubleConv(channels_in, channels_out, channels_out))
        super().__init__(OrderedDict(maxpool_conv=layers))


class Up(nn.Module):
    """Bilinear upsampling by 2 (align_corners), concatenation after the skip, DoubleConv."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = DoubleConv(channels_in, channels_in // 2, channels_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in/2, h, w) and a skip of (B, in/2, H, W) to (B, out, H, W).

        Where pooling dropped an odd row or column, the upsampled map is zero-padded to the skip's
        size, left and top getting the floor of half of the difference.
        """
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.conv(torch.cat([skip, x], dim=1))  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every parameter of the network; all are float32."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in ScoreUNet(config).state_dict().items()}


def from_weights(config: NetworkConfig, weights: dict[str, Tensor]) -> ScoreUNet:
    """A network in evaluation mode that holds `weights` themselves (no copy), without gradients."""
    with torch.device("meta"):
        network = ScoreUNet(config)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
