"""The inference plan: a model with everything that is fixed at build time folded into constants.

The time of every draw is known, so the time-embedding network becomes one vector a block and draw;
the last of them, and the factors std(t) around the score, fold into the 1x1 head and the mean:

    r = std·(f + z),  f = W·(h + c) + b = W·h + (W·c + b)
    error map = sum over draws of weight·std² / (3·K) · sum over channels of (f + z)²
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprfast import sde, unet
from sprfast.model_file import Model

BLOCKS = ("inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4")


@dataclasses.dataclass(frozen=True, eq=False)
class ConvNorm:
    """A 3x3 convolution with bias, and the GroupNorm behind it."""

    weight: Tensor  # (out, in, 3, 3)
    bias: Tensor  # (out,)
    gamma: Tensor  # (out,), scale of the normalisation
    beta: Tensor  # (out,), its shift


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Two convolutions with their normalisations, and what is added behind the second swish."""

    first: ConvNorm
    second: ConvNorm
    embedding: Tensor | None  # (D, out) for D draws; None where it is folded into the head


@dataclasses.dataclass(frozen=True, eq=False)
class InferencePlan:
    """A model as constants; pure data. D counts the draws of one image over all sigma levels, in their order."""

    base_width: int
    groups: int  # of every GroupNorm
    blocks: dict[str, Block]  # by `BLOCKS`
    std: Tensor  # (D,), standard deviation of the perturbation
    head_weight: Tensor  # (3, base_width)
    head_bias: Tensor  # (D, 3), with the last embedding
    scale: Tensor  # (D,), weight of the level · std² / (3 · its draws)

    @property
    def draws(self) -> int:
        """D: network passes an image."""
        return self.std.shape[0]


@torch.inference_mode()
def fold(model: Model, dtype: torch.dtype = torch.float32) -> InferencePlan:
    """The plan of `model`, on the CPU in `dtype`, in memory of its own.

    The embeddings are computed as the network computes them in `dtype`; in float64 the plan is the
    definition to rounding.
    """
    network = unet.from_weights(model.network, {name: value.to(dtype, copy=True) for name, value in model.weights.items()})
    levels = model.schedule.levels
    counts = torch.tensor([level.draws for level in levels])
    e = F.silu(network.embed(torch.tensor([level.t for level in levels], dtype=dtype)))

    def per_draw(dense: nn.Module) -> Tensor:
        vectors: Tensor = dense(e)  # (levels, channels, 1, 1)
        return vectors.flatten(1).repeat_interleave(counts, dim=0)

    blocks = {}
    for name in BLOCKS:
        dense = getattr(network, "dense_in" if name == "inc" else f"dense_{name[0]}{name[-1]}")
        blocks[name] = _block(getattr(network, name), None if name == "up4" else per_draw(dense))
    weight, bias = (getattr(network.outc.conv, name) for name in ("weight", "bias"))
    weight = weight.flatten(1)
    std = [sde.std(level.t) for level in levels]
    scale = [share * s**2 / (3 * level.draws) for share, s, level in zip(model.schedule.weights, std, levels, strict=True)]
    return InferencePlan(
        model.network.base_width,
        unet.GROUPS,
        blocks,
        torch.tensor(std, dtype=dtype).repeat_interleave(counts),
        weight,
        per_draw(network.dense_u4) @ weight.mT + bias,
        torch.tensor(scale, dtype=dtype).repeat_interleave(counts),
    )


def inputs(x: Tensor, noise: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), and the draws of all levels as one tensor (D, 1 or B, 3, H, W), as what runs a plan takes them."""
    shared = all(z.shape[1] == 1 for z in noise)
    draws = [z if shared else z.expand(-1, x.shape[0], -1, -1, -1) for z in noise]
    z = draws[0] if len(draws) == 1 else torch.cat(draws)
    return x.to(device).contiguous(), z.to(device).contiguous()


def _block(module: nn.Module, embedding: Tensor | None) -> Block:
    double = next(part for part in module.modules() if isinstance(part, unet.DoubleConv)).double_conv
    pairs = [ConvNorm(double[i].weight, double[i].bias, double[i + 1].weight, double[i + 1].bias) for i in (0, 3)]  # type: ignore[arg-type]
    return Block(pairs[0], pairs[1], embedding)
