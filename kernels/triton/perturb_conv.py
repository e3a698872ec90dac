"""Perturbation and the network's first convolution in one pass: the perturbed images are never
stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sprfast.kernels.triton import launch
from sprfast.kernels.triton.common import merge_channels, sample_offset, store_partial
from sprfast.kernels.triton.group_norm import merge_partials
from sprfast.kernels.triton.reference import TAPS_PADDED


@triton.jit(do_not_specialize=["height", "width", "z_draw_stride", "z_image_stride", "draws", "chunks"])
def _perturb_conv3x3_kernel(
    p_x,  # [B, 3, height, width] float32
    p_z,  # [draws, 1 or B, 3, height, width] float32
    p_std,  # [draws] float32
    p_weight,  # [32, C] float32, rows from 27 on are zero
    p_bias,  # [C] float32
    p_raw,  # [B·draws, pixels, C], written
    p_partial,  # [B·draws, chunks, 3, GROUPS] float32, written
    height,
    width,
    z_draw_stride,
    z_image_stride,
    draws,
    chunks,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of pixels, all channels: a [BLOCK, 32] x [32, C] product, then its statistics as
    stored.
    """
    i_chunk, i_n = tl.program_id(0), tl.program_id(1)
    i_b, i_d = i_n // draws, i_n % draws
    pixels = height * width
    o_c = tl.arange(0, C)
    o_p = i_chunk * BLOCK + tl.arange(0, BLOCK)
    o_k = tl.arange(0, TAPS)
    o_y = (o_p // width)[:, None] + (o_k % 9 // 3 - 1)[None, :]  # [BLOCK, TAPS]
    o_x = (o_p % width)[:, None] + (o_k % 3 - 1)[None, :]
    m_tap = (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width) & (o_k < 27)[None, :]
    o_tap = (o_k // 9)[None, :] * pixels + o_y * width + o_x
    b_x = tl.load(p_x + sample_offset(i_b, 3 * pixels) + o_tap, mask=m_tap, other=0.0)
    b_z = tl.load(p_z + sample_offset(i_b, z_image_stride) + i_d * z_draw_stride + o_tap, mask=m_tap, other=0.0)
    b_weight = tl.load(p_weight + o_k[:, None] * C + o_c[None, :])
    b_raw = tl.dot(b_x + tl.load(p_std + i_d) * b_z, b_weight, input_precision=PRECISION).to(p_raw.dtype.element_ty)
    m_p = (o_p < pixels)[:, None]
    tl.store(p_raw + sample_offset(i_n, pixels * C) + o_p[:, None] * C + o_c[None, :], b_raw, mask=m_p)

    count = tl.minimum(pixels - i_chunk * BLOCK, BLOCK).to(tl.float32)
    b_value = tl.where(m_p, b_raw.to(tl.float32) + tl.load(p_bias + o_c)[None, :], 0.0)
    b_mean = tl.sum(b_value, axis=0) / count
    b_off = tl.where(m_p, b_value - b_mean[None, :], 0.0)
    b_rest = tl.sum(b_off, axis=0) / count  # what rounding left in the mean
    b_m2 = tl.sum(b_off * b_off, axis=0) - count * b_rest * b_rest
    b_mean, b_m2 = merge_channels(b_mean + b_rest, b_m2, count, C, GROUPS)
    store_partial(p_partial, i_n, i_chunk, chunks, b_mean, b_m2, count, C, GROUPS)


def perturb_conv3x3(
    x: Tensor,
    z: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    out: Tensor,
    arrived: Tensor,
) -> Tensor:
    """`reference.perturb_conv3x3` in two launches: the convolution with its statistics, then their
    merge. No launch comes before that could clear a counter for the last program to merge.

    The product is IEEE float32 for float32 storage; for 16-bit storage three TF32 products, as good
    as float32 to the rounding of the storage. Never a bfloat16 product: the perturbation is a few
    per cent of the image and would be lost in its rounding.

    Raises:
        launch.UnsupportedError: the kernels do not take these arguments.
    """
    launch.require_normalised("out", out, bias, gamma, beta, groups)
    samples, channels, height, width = out.shape
    tile = launch.tile("perturb_conv3x3", channels, out.device)
    draws = launch.require_draws("std", std, samples)
    images = samples // draws
    launch.require_noise(z, draws, images, height, width)
    launch.require_parameters((images, 3, height, width), x=x)
    launch.require_parameters((TAPS_PADDED, channels), weight=weight)
    launch.require_counters("arrived", arrived, samples)
    chunks = triton.cdiv(height * width, tile.pixels)
    partial = torch.empty((samples, chunks, 3, groups), dtype=torch.float32, device=out.device)
    launch.run(
        _perturb_conv3x3_kernel,
        (chunks, samples),
        (x, z, std, weight, bias, out, partial, height, width, *launch.noise_strides(z), draws, chunks),
        {
            "C": channels,
            "GROUPS": groups,
            "TAPS": TAPS_PADDED,
            "BLOCK": tile.pixels,
            "PRECISION": "ieee" if out.dtype == torch.float32 else "tf32x3",
        },
        tile.warps,
    )
    return merge_partials(partial, bias, gamma, beta, arrived)
