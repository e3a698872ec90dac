"""GroupNorm on a CPU whose statistics are right on maps of any size and of any values.

PyTorch's kernel for channels-last maps adds up x and x², each in one float32 sum, and takes one
from the other: an error that grows with the map (1e-4 of a score at 1024², 3e-3 at 2048²), and of
values above 1e19 an infinite variance, which makes a group a finite constant.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from sprfast.method.folded import BLOCKS, HALVINGS
from sprfast.method.unet import DoubleConv, ScoreUNet

# Of the network's input, up to which PyTorch's kernel is exact enough and maps have the bits of
# earlier versions.
PIXELS = 512 * 512


class GroupNorm(nn.GroupNorm):
    """As `nn.GroupNorm`, in two passes on maps of more than `pixels`, or always where `watched`.

    A variance that is not finite gives NaN.
    """

    watched = False
    pixels = PIXELS

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        large = x.device.type == "cpu" and x.shape[2] * x.shape[3] > self.pixels
        if not (large or self.watched):
            return super().forward(x)
        out = torch.empty_like(x)
        for sample, result in zip(x, out, strict=True):  # one by one: squares need as much memory as the map
            self._normalise(sample, result)
        return out

    def _normalise(self, x: Tensor, out: Tensor) -> None:
        """One sample (C, H, W) into `out`: deviations from each channel's mean first, so that
        nothing is lost where the mean is far above them; the rest in float64.
        """
        mean = x.mean((1, 2), keepdim=True)
        torch.sub(x, mean, out=out)
        rest, squares = (values.mean((1, 2), keepdim=True).double() for values in (out, out.square()))
        offsets = mean.double() - self._of_groups(mean.double() + rest)  # rest: what rounding left in the mean
        variance = self._of_groups(squares + offsets * (2 * rest + offsets))
        scale = torch.where(variance < torch.inf, (variance + self.eps).rsqrt(), torch.nan)
        scale = scale * self.weight[:, None, None]
        out.mul_(scale.to(x.dtype)).add_((offsets * scale + self.bias[:, None, None]).to(x.dtype))

    def _of_groups(self, values: Tensor) -> Tensor:
        """(C, 1, 1): for each channel the mean over its group."""
        means = values.view(self.num_groups, -1).mean(1)
        return means.repeat_interleave(self.num_channels // self.num_groups)[:, None, None]


def replace_norms(network: ScoreUNet, watched: Collection[str]) -> None:
    """Give `network` these normalisations, with the parameters that it has.

    Args:
        watched: convolutions such as "down1.first" (see `method.overflow`) whose normalisation is
            always in two passes.
    """
    for block in BLOCKS:
        (layers,) = (
            module.double_conv for module in getattr(network, block).modules() if isinstance(module, DoubleConv)
        )
        given_norms = [(place, layer) for place, layer in enumerate(layers) if isinstance(layer, nn.GroupNorm)]
        for name, (place, given) in zip(("first", "second"), given_norms, strict=True):
            norm = GroupNorm(given.num_groups, given.num_channels, given.eps, device="meta")
            norm.weight, norm.bias, norm.watched = given.weight, given.bias, f"{block}.{name}" in watched
            norm.pixels = PIXELS >> 2 * HALVINGS[block]  # of a map of such an input here
            layers[place] = norm
