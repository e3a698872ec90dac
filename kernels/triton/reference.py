"""Every operator in plain torch: the truth that the kernels are tested against, and their
documentation.

Feature maps are (N, C, H, W). Sample n is draw n % D of image n // D, where D is the number of
draws of an image over all sigma levels. Arithmetic is float32 whatever the storage (float64 stays
float64), and results are rounded to the storage type once, where they are stored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5  # of every GroupNorm
ONE_PASS_PIXELS = 1024  # maps up to this size go through `group_norm_swish`, whose one launch then beats three
TAPS = 27  # inputs of a 3x3 convolution over three channels
TAPS_PADDED = 32  # rows of a packed weight


def pack_weight(weight: Tensor) -> Tensor:
    """The weight of the first convolution as `noise_conv3x3` and `perturb_conv3x3` take it.

    Args:
        weight: (C, 3, 3, 3).

    Returns:
        (32, C): row 9·channel + 3·(dy + 1) + dx + 1, then five rows of zeros.
    """
    return F.pad(weight.flatten(1).mT, (0, 0, 0, TAPS_PADDED - TAPS)).contiguous()


def noise_conv3x3(z: Tensor, std: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = conv3x3(std·z): what each draw adds to the first convolution.

    Args:
        z: (D, N, 3, H, W) float32 standard-normal draws, N the number of images or 1.
        std: (D,) float32, standard deviation of each draw's perturbation.
        weight: (32, C) float32, as `pack_weight` makes it.
        out: (N·D, C, H, W) in the storage type, written; zero padding of one pixel.
    """
    out.copy_(_convolved((std[:, None, None, None, None] * z).transpose(0, 1).flatten(0, 1), weight))


def perturb_conv3x3(
    x: Tensor,
    noise: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    out: Tensor,
    arrived: Tensor,
) -> Tensor:
    """out = conv3x3(x) + noise, the perturbed images' convolution without its bias; and the affine
    of the GroupNorm behind it.

    Args:
        x: (B, 3, H, W) float32 images.
        noise: (D or B·D, C, H, W) in the storage type, as `noise_conv3x3` writes it.
        weight: (32, C) float32, as `pack_weight` makes it.
        bias, gamma, beta, groups: as in `norm_affine`.
        out: (B·D, C, H, W) in the storage type, written; zero padding of one pixel.
        arrived: (B·D + 2,) int32, zeros are written: what the norms behind start from.

    Returns:
        (B·D, 2, C) float32: `norm_affine(out, ...)`, of the values as stored.
    """
    draws = out.shape[0] // x.shape[0]
    out.copy_((_convolved(x, weight)[:, None] + _wide(noise).unflatten(0, (-1, draws))).flatten(0, 1))
    arrived.zero_()
    return norm_affine(out, bias, gamma, beta, groups)


def group_norm_affine(raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, arrived: Tensor) -> Tensor:
    """`norm_affine`, in several programs a sample.

    Args:
        raw, bias, gamma, beta, groups: as in `norm_affine`.
        arrived: (N + 2,) int32, zeros before and after; meanwhile it counts the programs that are
            done with each sample, and in `norm_swish` and its like the samples that are done with
            and the programs that know.

    Returns:
        (N, 2, C) float32: a and b of each sample and channel.
    """
    return norm_affine(raw, bias, gamma, beta, groups)


def norm_affine(raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> Tensor:
    """The a and b of GroupNorm(raw + bias) = a·raw + b (Wu & He 2018; biased variance, eps 1e-5).

    Both are NaN where the variance is beyond the type: an a of 0 would hide that.

    Args:
        raw: (N, C, H, W), a convolution without its bias.
        bias, gamma, beta: (C,) float32: the convolution's bias, scale and shift of the
            normalisation.
        groups: number of groups, a divisor of C.

    Returns:
        (N, 2, C) float32: a and b of each sample and channel.
    """
    x = _wide(raw) + bias[:, None, None]
    grouped = x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    per_channel = x.shape[1] // groups
    rstd = torch.where(variance < torch.inf, (variance + EPS).rsqrt(), torch.nan)
    rstd = rstd.repeat_interleave(per_channel, dim=1)
    a = gamma * rstd
    b = beta + (bias - mean.repeat_interleave(per_channel, dim=1)) * a
    return torch.stack((a, b), dim=1)


def group_norm_swish(raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, out: Tensor) -> None:
    """out = swish(GroupNorm(raw + bias)), for maps so small that one program sees a whole group.

    Args as in `norm_affine`; out: (N, C, H, W) in the storage type, written.
    """
    affine_swish(raw, norm_affine(raw, bias, gamma, beta, groups), out)


def affine_swish(raw: Tensor, affine: Tensor, out: Tensor) -> None:
    """out = swish(a·raw + b).

    Args:
        raw: (N, C, H, W).
        affine: (N, 2, C) float32, as `norm_affine` gives it.
        out: (N, C, H, W), written.
    """
    out.copy_(_activation(raw, affine))


def affine_swish_pool(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor, pooled: Tensor) -> None:
    """out = swish(a·raw + b) + embedding, and its 2x2 maximum.

    Args:
        raw, affine: as in `affine_swish`.
        embedding: (D, C) float32, added to the samples of each draw.
        out: (N, C, H, W), written; may be a slice of the channels of a wider tensor.
        pooled: (N, C, H // 2, W // 2), written; an odd last row or column is dropped.
    """
    out.copy_(_activation(raw, affine) + _rows_of(embedding, raw))
    pooled.copy_(F.max_pool2d(out, 2))


def affine_swish_up2(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor) -> None:
    """out = swish(a·raw + b) + embedding, bilinearly upsampled by 2 (align_corners=True), zero
    beyond.

    Args:
        raw, affine, embedding: as in `affine_swish_pool`.
        out: (N, C, 2H or 2H + 1, 2W or 2W + 1), written; may be a slice of the channels of a wider
            tensor.
    """
    upsampled = F.interpolate(_activation(raw, affine), scale_factor=2, mode="bilinear", align_corners=True) + _rows_of(
        embedding, raw
    )
    rows, columns = out.shape[2] - upsampled.shape[2], out.shape[3] - upsampled.shape[3]
    out.copy_(F.pad(upsampled, (0, columns, 0, rows)))


def affine_swish_head(
    raw: Tensor, affine: Tensor, weight: Tensor, head_bias: Tensor, z: Tensor, scale: Tensor, out: Tensor
) -> None:
    """out = the error map: the sum over draws d and channels of
    scale_d·(weight·swish(a·raw + b) + head_bias_d + z_d)².

    Args:
        raw, affine: as in `affine_swish`, N = B·D.
        weight: (3, C) float32, the 1x1 convolution.
        head_bias: (D, 3) float32, its bias with the last embedding folded in.
        z: (D, 1 or B, 3, H, W) float32 draws.
        scale: (D,) float32: weight·std² / (3·draws) of each draw's level.
        out: (B, 1, H, W) float32, written.
    """
    draws = head_bias.shape[0]
    # (B, D, 3, H, W)
    f = F.conv2d(_activation(raw, affine), weight[:, :, None, None]).reshape(-1, draws, 3, *raw.shape[2:])
    r = f + head_bias[:, :, None, None] + z.transpose(0, 1)
    out.copy_((scale[:, None, None] * r.square().sum(2)).sum(1, keepdim=True))


def norm_swish(
    raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, arrived: Tensor, out: Tensor
) -> None:
    """`group_norm_affine`, then `affine_swish`."""
    affine_swish(raw, group_norm_affine(raw, bias, gamma, beta, groups, arrived), out)


def norm_swish_pool(
    raw: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    arrived: Tensor,
    embedding: Tensor,
    out: Tensor,
    pooled: Tensor,
) -> None:
    """`group_norm_affine`, then `affine_swish_pool`."""
    affine_swish_pool(raw, group_norm_affine(raw, bias, gamma, beta, groups, arrived), embedding, out, pooled)


def norm_swish_head(
    raw: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    arrived: Tensor,
    weight: Tensor,
    head_bias: Tensor,
    z: Tensor,
    scale: Tensor,
    out: Tensor,
) -> None:
    """`group_norm_affine`, then `affine_swish_head`."""
    affine = group_norm_affine(raw, bias, gamma, beta, groups, arrived)
    affine_swish_head(raw, affine, weight, head_bias, z, scale, out)


def anomaly_map(errors: Tensor, rows: Tensor, columns: Tensor, reach: int, out: Tensor) -> None:
    """out = rows · errors · columnsᵀ: resampling and box filter as one matrix on each side.

    Args:
        errors: (B, 1, H, W) float32.
        rows, columns: (S, H) and (S, W) float32; their weights count where `reached`.
        reach: places to either side that the box filter averages.
        out: (B, 1, S, S) float32, written.
    """
    places, device = len(rows), rows.device
    rows, columns = (each.where(reached(places, each.shape[1], reach, device), 0) for each in (rows, columns))
    out.copy_(rows @ errors @ columns.mT)


def reached(places: int, size: int, reach: int, device: torch.device | None = None) -> Tensor:
    """(places, size) bool: which pixels a place of an anomaly map may have weights for.

    Those within `reach` places, as far as the resampling looks.
    """
    place, pixel = torch.arange(places, device=device)[:, None], torch.arange(size, device=device)
    first = (place - reach).clamp(min=0) * size // places - 1
    return (pixel >= first) & (pixel < (place + 1 + reach) * size // places + 2)


def _convolved(image: Tensor, weight: Tensor) -> Tensor:
    # one image at a time: on a CPU the bits of one would depend on how many there are
    taps = weight[:TAPS].mT.reshape(-1, 3, 3, 3)
    return torch.cat([F.conv2d(each, taps, padding=1) for each in image.split(1)])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _activation(raw: Tensor, affine: Tensor) -> Tensor:
    a, b = affine[:, :, :, None, None].unbind(1)
    return F.silu(_wide(raw) * a + b)


def _rows_of(embedding: Tensor, raw: Tensor) -> Tensor:
    """(D, C) to (N, C, 1, 1)."""
    return embedding.repeat(raw.shape[0] // embedding.shape[0], 1)[:, :, None, None]
