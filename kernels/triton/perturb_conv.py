"""The network's first convolution, by linearity: of the draws once, of each image once, summed.

conv(x + std·z) = conv(x) + conv(std·z). Draws that all images share are convolved when they are
new, and that map is kept; perturbed images are never stored.
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


@triton.jit
def _convolved(
    p_image,
    scale,
    p_weight,
    o_p,
    height,
    width,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pixels o_p of conv3x3(scale·image) for an image of three channels, [BLOCK, C] float32: a
    [BLOCK, 32] x [32, C] product.
    """
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, TAPS)
    o_y = (o_p // width)[:, None] + (o_k % 9 // 3 - 1)[None, :]  # [BLOCK, TAPS]
    o_x = (o_p % width)[:, None] + (o_k % 3 - 1)[None, :]
    m_tap = (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width) & (o_k < 27)[None, :]
    o_tap = (o_k // 9)[None, :] * height * width + o_y * width + o_x
    b_image = scale * tl.load(p_image + o_tap, mask=m_tap, other=0.0)
    b_weight = tl.load(p_weight + o_k[:, None] * C + o_c[None, :])
    return tl.dot(b_image, b_weight, input_precision=PRECISION)


@triton.jit(do_not_specialize=["height", "width", "z_draw_stride", "z_image_stride", "draws"])
def _noise_conv3x3_kernel(
    p_z,  # [draws, N, 3, height, width] float32
    p_std,  # [draws] float32
    p_weight,  # [32, C] float32, rows from 27 on are zero
    p_out,  # [N·draws, pixels, C], written
    height,
    width,
    z_draw_stride,
    z_image_stride,
    draws,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of pixels of one draw, all channels."""
    i_p, i_n = tl.program_id(0), tl.program_id(1)
    i_b, i_d = i_n // draws, i_n % draws
    pixels = height * width
    o_p = i_p * BLOCK + tl.arange(0, BLOCK)
    p_image = p_z + sample_offset(i_b, z_image_stride) + i_d * z_draw_stride
    b_out = _convolved(p_image, tl.load(p_std + i_d), p_weight, o_p, height, width, C, TAPS, PRECISION)
    p_to = p_out + sample_offset(i_n, pixels * C) + o_p[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(p_to, b_out.to(p_out.dtype.element_ty), mask=(o_p < pixels)[:, None])


@triton.jit(do_not_specialize=["height", "width", "noise_images", "draws", "chunks"])
def _perturb_conv3x3_kernel(
    p_x,  # [B, 3, height, width] float32
    p_noise,  # [noise_images·draws, pixels, C]
    p_weight,  # [32, C] float32, rows from 27 on are zero
    p_bias,  # [C] float32
    p_raw,  # [B·draws, pixels, C], written
    p_partial,  # [B·draws, chunks, 3, GROUPS] float32, written
    height,
    width,
    noise_images,
    draws,
    chunks,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of pixels of one image, all channels: convolved once, then summed with the noise of
    each draw, and the statistics of the sums as stored.
    """
    i_chunk, i_b = tl.program_id(0), tl.program_id(1)
    pixels = height * width
    o_c = tl.arange(0, C)
    o_p = i_chunk * BLOCK + tl.arange(0, BLOCK)
    p_image = p_x + sample_offset(i_b, 3 * pixels)
    b_x = _convolved(p_image, 1.0, p_weight, o_p, height, width, C, TAPS, PRECISION)
    m_p = (o_p < pixels)[:, None]
    o_map = o_p[:, None] * C + o_c[None, :]
    count = tl.minimum(pixels - i_chunk * BLOCK, BLOCK).to(tl.float32)
    b_bias = tl.load(p_bias + o_c)
    for d in range(draws):
        p_draw = p_noise + sample_offset((i_b % noise_images) * draws + d, pixels * C)
        b_noise = tl.load(p_draw + o_map, mask=m_p, other=0.0).to(tl.float32)
        b_raw = (b_x + b_noise).to(p_raw.dtype.element_ty)
        i_n = i_b * draws + d
        tl.store(p_raw + sample_offset(i_n, pixels * C) + o_map, b_raw, mask=m_p)

        b_value = tl.where(m_p, b_raw.to(tl.float32) + b_bias[None, :], 0.0)
        b_mean = tl.sum(b_value, axis=0) / count
        b_off = tl.where(m_p, b_value - b_mean[None, :], 0.0)
        b_rest = tl.sum(b_off, axis=0) / count  # what rounding left in the mean
        b_m2 = tl.sum(b_off * b_off, axis=0) - count * b_rest * b_rest
        b_mean, b_m2 = merge_channels(b_mean + b_rest, b_m2, count, C, GROUPS)
        store_partial(p_partial, i_n, i_chunk, chunks, b_mean, b_m2, count, C, GROUPS)


def noise_conv3x3(z: Tensor, std: Tensor, weight: Tensor, out: Tensor) -> None:
    """`reference.noise_conv3x3` in one launch; products as in `perturb_conv3x3`.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    channels, tile = _first("noise_conv3x3", weight, out)
    samples, _, height, width = out.shape
    draws = launch.require_draws("std", std, samples)
    launch.require_noise(z, draws, samples // draws, height, width)
    if z.shape[1] != samples // draws:
        raise launch.UnsupportedError(f"z: shape {tuple(z.shape)}, expected draws of {samples // draws} images")
    launch.run(
        _noise_conv3x3_kernel,
        (triton.cdiv(height * width, tile.pixels), samples),
        (z, std, weight, out, height, width, *launch.noise_strides(z), draws),
        {"C": channels, "TAPS": TAPS_PADDED, "BLOCK": tile.pixels, "PRECISION": _precision(out)},
        tile.warps,
    )


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
    """`reference.perturb_conv3x3` in two launches: the convolution with its statistics, then their
    merge. No launch comes before that could clear a counter for the last program to merge.

    The product is IEEE float32 for float32 storage; for 16-bit storage three TF32 products, as good
    as float32 to the rounding of the storage.

    Raises:
        launch.UnsupportedError: the kernels do not take these arguments.
    """
    launch.require_normalised("out", out, bias, gamma, beta, groups)
    channels, tile = _first("perturb_conv3x3", weight, out)
    samples, _, height, width = out.shape
    images = x.shape[0] if x.dim() else 0
    if images < 1 or samples % images:
        raise launch.UnsupportedError(f"x: shape {tuple(x.shape)}, expected images that divide the {samples} samples")
    draws = samples // images
    launch.require_parameters((images, 3, height, width), x=x)
    launch.require_output("noise", noise, out, *[(count * draws, channels, height, width) for count in (1, images)])
    launch.require_whole("noise", noise)
    launch.require_counters("arrived", arrived, samples)
    chunks = triton.cdiv(height * width, tile.pixels)
    partial = torch.empty((samples, chunks, 3, groups), dtype=torch.float32, device=out.device)
    launch.run(
        _perturb_conv3x3_kernel,
        (chunks, images),
        (x, noise, weight, bias, out, partial, height, width, noise.shape[0] // draws, draws, chunks),
        {
            "C": channels,
            "GROUPS": groups,
            "TAPS": TAPS_PADDED,
            "BLOCK": tile.pixels,
            "PRECISION": _precision(out),
        },
        tile.warps,
    )
    return merge_partials(partial, bias, gamma, beta, arrived)


def _first(kernel: str, weight: Tensor, out: Tensor) -> tuple[int, launch.Tile]:
    """Channels and tile of the first convolution to `out`."""
    launch.require_map("out", out)
    launch.require_whole("out", out)
    channels = out.shape[1]
    tile = launch.tile(kernel, channels, out.device)
    launch.require_parameters((TAPS_PADDED, channels), weight=weight)
    return channels, tile


def _precision(out: Tensor) -> str:
    return "ieee" if out.dtype == torch.float32 else "tf32x3"
