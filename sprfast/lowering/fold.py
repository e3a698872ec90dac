"""From a trained model to a folded one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprfast.config import GROUPS
from sprfast.formats.model import Model
from sprfast.method import sde, unet
from sprfast.method.folded import BLOCKS, Array, Block, ConvNorm, FoldedModel


@torch.inference_mode()
def fold(model: Model, dtype: torch.dtype = torch.float32) -> FoldedModel:
    """Fold `model` in `dtype` (float32 or float64), in memory of its own.

    The embeddings are computed as the network computes them in `dtype`; in float64 the result is
    the definition to rounding.
    """
    network = unet.from_weights(
        model.network, {name: value.to(dtype, copy=True) for name, value in model.weights.items()}
    )
    levels = model.schedule.levels
    counts = torch.tensor([level.draws for level in levels])
    e = F.silu(network.embed(torch.tensor([level.t for level in levels], dtype=dtype)))

    def per_draw(dense: nn.Module) -> Tensor:
        vectors: Tensor = dense(e)  # (levels, channels, 1, 1)
        return vectors.flatten(1).repeat_interleave(counts, dim=0)

    blocks = {}
    for name in BLOCKS:
        dense = getattr(network, "dense_in" if name == "inc" else f"dense_{name[0]}{name[-1]}")
        embedding = None if name == "up4" else _array(per_draw(dense))
        constants = [_array(value) for value in getattr(network, name).parameters()]  # in the order of a ConvNorm
        blocks[name] = Block(ConvNorm(*constants[:4]), ConvNorm(*constants[4:]), embedding)
    kernel, bias = network.outc.parameters()
    weight = kernel.flatten(1)
    std = [sde.std(level.t) for level in levels]
    scale = [
        share * s**2 / (3 * level.draws) for share, s, level in zip(model.schedule.weights, std, levels, strict=True)
    ]
    return FoldedModel(
        model.network.base_width,
        GROUPS,
        blocks,
        _array(torch.tensor(std, dtype=dtype).repeat_interleave(counts)),
        _array(weight),
        _array(per_draw(network.dense_u4) @ weight.mT + bias),
        _array(torch.tensor(scale, dtype=dtype).repeat_interleave(counts)),
        model.scoring_mode.window,
    )


def _array(value: Tensor) -> Array:
    return np.ascontiguousarray(value.numpy())
