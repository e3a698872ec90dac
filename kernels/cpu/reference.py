"""Every operator of the CPU kernels in plain torch: what they are tested against, and their
documentation.

Tensors are float32 or float64, all of one call alike. Feature maps are (N, H, W, C), channels last;
images, noise and error maps are planar. Sample n is draw n % D of image n // D, where D is the
number of draws of an image over all sigma levels. Results are new tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sprfast.kernels.triton import reference

Kind = Literal["activation", "pooled", "upsampled"]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What a convolution reads: another convolution's raw output, activated on the way.

    activation: swish(a·raw + b) + embedding, for an output of (h, w).
    pooled: its 2x2 maximum, for (h // 2, w // 2); an odd last row or column is dropped.
    upsampled: its bilinear upsampling by 2 (align_corners), for (2h or 2h + 1, 2w or 2w + 1), zero
    beyond.
    """

    raw: Tensor  # (N, h, w, C)
    affine: Tensor  # (N, 2, C): a and b of the normalisation
    embedding: Tensor | None  # (D, C), added to the samples of each draw
    kind: Kind


def conv3x3(
    sources: Sequence[Source],
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    height: int,
    width: int,
    precision: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """A 3x3 convolution, zero padding of one pixel, and the affine of the GroupNorm behind it.

    Args:
        sources: maps that make up the input, their channels one after the other, I in all.
        weight: (O, I, 3, 3).
        bias: (O,) of the convolution.
        gamma, beta: (O,), scale and shift of the normalisation.
        groups: of the normalisation, a divisor of O.
        height, width: H and W of the output.
        precision: what the input and the weight are rounded to; None: they are not.

    Returns:
        raw: (N, H, W, O), without the bias.
        affine: (N, 2, O): a and b of GroupNorm(raw + bias) = a·raw + b (biased variance, eps 1e-5).
    """
    x = torch.cat([_read(source, height, width) for source in sources], dim=1)
    if precision is not None:
        x, weight = (each.to(precision).to(each.dtype) for each in (x, weight))
    raw = F.conv2d(x, weight, padding=1)
    return _channels_last(raw), reference.norm_affine(raw, bias, gamma, beta, groups)


def pack_perturb(weight: Tensor) -> Tensor:
    """(O, 3, 3, 3) to (27, O): row 9·channel + 3·(dy + 1) + dx + 1."""
    return weight.flatten(1).mT.contiguous()


def perturb_conv3x3(
    image: Tensor, noise: Tensor, std: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The first convolution, of image + std·noise, zero padding of one pixel around the sum.

    Args:
        image: (B, 3, H, W).
        noise: (D, 1 or B, 3, H, W) standard-normal draws, shared by all images or each image's own.
        std: (D,), standard deviation of each draw's perturbation.
        weight: (27, O), as `pack_perturb` makes it.
        bias, gamma, beta, groups: as in `conv3x3`.

    Returns:
        raw (B·D, H, W, O) and affine (B·D, 2, O), as of `conv3x3`.
    """
    n = std[:, None, None, None, None] * noise
    perturbed = (image[:, None] + n.transpose(0, 1)).flatten(0, 1)
    raw = F.conv2d(perturbed, weight.mT.reshape(-1, 3, 3, 3), padding=1)
    return _channels_last(raw), reference.norm_affine(raw, bias, gamma, beta, groups)


def head(raw: Tensor, affine: Tensor, weight: Tensor, bias: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    """The error map: sum over draws d and channels of scale_d·(weight·swish(a·raw + b) + bias_d +
    noise_d)².

    Args:
        raw: (B·D, H, W, C).
        affine: (B·D, 2, C).
        weight: (3, C), the 1x1 convolution.
        bias: (D, 3), its bias with the last embedding folded in.
        noise: as in `perturb_conv3x3`.
        scale: (D,): weight·std² / (3·draws) of each draw's level.

    Returns:
        (B, 1, H, W).
    """
    errors = scale.new_empty(raw.shape[0] // scale.shape[0], 1, *raw.shape[1:3])
    reference.affine_swish_head(_planar(raw), affine, weight, bias, noise, scale, errors)
    return errors


def anomaly_map(errors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows · errors · columnsᵀ: resampling and box filter as one matrix on each side.

    Args:
        errors: (B, 1, H, W).
        rows, columns: (S, H) and (S, W).

    Returns:
        (B, 1, S, S).
    """
    return rows @ errors @ columns.mT


def _read(source: Source, height: int, width: int) -> Tensor:
    """(N, C, height, width): a source as a convolution sees it."""
    raw, channels = _planar(source.raw), source.raw.shape[3]
    embedding = raw.new_zeros(1, channels) if source.embedding is None else source.embedding
    if source.kind == "upsampled":
        upsampled = raw.new_empty(*raw.shape[:2], height, width)
        reference.affine_swish_up2(raw, source.affine, embedding, upsampled)
        return upsampled
    activation = torch.empty_like(raw)
    reference.affine_swish(raw, source.affine, activation)
    activation += embedding.repeat(raw.shape[0] // embedding.shape[0], 1)[:, :, None, None]
    return F.max_pool2d(activation, 2) if source.kind == "pooled" else activation


def _planar(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()
