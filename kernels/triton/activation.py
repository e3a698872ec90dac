"""What follows a normalisation's statistics: affine, swish and embedding in one pass, with what
comes next in the network.

Four endings: nothing, a 2x2 maximum, bilinear upsampling by 2 (both writing into their half of a
concatenation), and the 1x1 head with residual, square and mean. Rows of [pixels, channels] blocks
are whole pixels, so that loads and stores are 128 bits wide.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sprfast.kernels.triton import launch
from sprfast.kernels.triton.common import load_affine, sample_offset, swish


@triton.jit(do_not_specialize=["pixels"])
def _affine_swish_kernel(
    p_raw,  # [N, pixels, C]
    p_affine,  # [N, 2, C] float32
    p_out,  # [N, pixels, C], written
    pixels,
    raw_stride,
    out_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of pixels."""
    swish_block(p_raw, p_affine, p_out, tl.program_id(0), tl.program_id(1), pixels, raw_stride, out_stride, C, BLOCK)


@triton.jit
def swish_block(p_raw, p_affine, p_out, i_p, i_n, pixels, raw_stride, out_stride, C: tl.constexpr, BLOCK: tl.constexpr):
    """Block i_p of sample i_n; other arguments as in the kernel."""
    o_c = tl.arange(0, C)[None, :]
    o_p = (i_p * BLOCK + tl.arange(0, BLOCK))[:, None]
    m_p = o_p < pixels
    b_a, b_b = load_affine(p_affine, i_n, o_c, C)  # [1, C]
    b_x = tl.load(p_raw + sample_offset(i_n, pixels * raw_stride) + o_p * raw_stride + o_c, mask=m_p, other=0.0).to(
        tl.float32
    )
    b_y = swish(b_x * b_a + b_b).to(p_out.dtype.element_ty)
    tl.store(p_out + sample_offset(i_n, pixels * out_stride) + o_p * out_stride + o_c, b_y, mask=m_p)


@triton.jit(do_not_specialize=["height", "width", "draws"])
def _affine_swish_pool_kernel(
    p_raw,  # [N, height, width, C]
    p_affine,  # [N, 2, C] float32
    p_embedding,  # [draws, C] float32
    p_out,  # [N, height, width, C], written
    p_pooled,  # [N, height // 2, width // 2, C], written
    height,
    width,
    raw_stride,
    out_stride,
    pooled_stride,
    draws,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of 2x2 windows, the incomplete ones at the right and lower edge included."""
    pool_block(
        p_raw,
        p_affine,
        p_embedding,
        p_out,
        p_pooled,
        tl.program_id(0),
        tl.program_id(1),
        height,
        width,
        raw_stride,
        out_stride,
        pooled_stride,
        draws,
        C,
        BLOCK,
    )


@triton.jit
def pool_block(
    p_raw,
    p_affine,
    p_embedding,
    p_out,
    p_pooled,
    i_q,
    i_n,
    height,
    width,
    raw_stride,
    out_stride,
    pooled_stride,
    draws,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Block i_q of sample i_n; other arguments as in the kernel."""
    o_c = tl.arange(0, C)[None, :]
    o_q = (i_q * BLOCK + tl.arange(0, BLOCK))[:, None]
    windows = (width + 1) // 2  # in a row
    o_y, o_x = o_q // windows, o_q % windows
    b_a, b_b = load_affine(p_affine, i_n, o_c, C)  # [1, C]
    b_e = tl.load(p_embedding + (i_n % draws) * C + o_c)
    p_in = p_raw + sample_offset(i_n, height * width * raw_stride) + o_c
    p_to = p_out + sample_offset(i_n, height * width * out_stride) + o_c
    b_max = tl.full([BLOCK, C], float("-inf"), tl.float32)
    for k in tl.static_range(4):
        o_row, o_column = 2 * o_y + k // 2, 2 * o_x + k % 2
        m_p = (o_row < height) & (o_column < width)
        o_p = o_row * width + o_column
        b_x = tl.load(p_in + o_p * raw_stride, mask=m_p, other=0.0).to(tl.float32)  # [BLOCK, C]
        b_y = swish(b_x * b_a + b_b) + b_e
        tl.store(p_to + o_p * out_stride, b_y.to(p_out.dtype.element_ty), mask=m_p)
        b_max = tl.maximum(b_max, b_y, propagate_nan=tl.PropagateNan.ALL)
    m_q = (o_y < height // 2) & (o_x < width // 2)
    p_to = p_pooled + sample_offset(i_n, (height // 2) * (width // 2) * pooled_stride) + o_c
    tl.store(p_to + (o_y * (width // 2) + o_x) * pooled_stride, b_max.to(p_pooled.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "draws"])
def _affine_swish_up2_kernel(
    p_raw,  # [N, height, width, C]
    p_affine,  # [N, 2, C] float32
    p_embedding,  # [draws, C] float32
    p_out,  # [N, out_height, out_width, C], written
    height,
    width,
    out_height,
    out_width,
    raw_stride,
    out_stride,
    draws,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A strip of BLOCK output columns, going down ROWS input rows.

    Output pixel i lies at i·(n - 1) / (2n - 1) of the n input pixels; integers make that exact.
    Each input row is activated and interpolated sideways once, and serves the two or three output
    rows between it and the next.
    """
    i_x, i_y, i_n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_c = tl.arange(0, C)[None, :]
    b_a, b_b = load_affine(p_affine, i_n, o_c, C)  # [1, C]
    b_e = tl.load(p_embedding + (i_n % draws) * C + o_c)
    p_in = p_raw + sample_offset(i_n, height * width * raw_stride) + o_c
    p_to = p_out + sample_offset(i_n, out_height * out_width * out_stride) + o_c

    o_x = (i_x * BLOCK + tl.arange(0, BLOCK))[:, None]  # output columns
    m_x = o_x < out_width
    m_in = o_x < 2 * width  # beyond: the zeros of the padding
    o_left = tl.minimum(o_x * (width - 1) // (2 * width - 1), width - 1)
    o_right = tl.minimum(o_left + 1, width - 1)
    b_wx = (o_x * (width - 1) - o_left * (2 * width - 1)).to(tl.float32) / (2 * width - 1)

    first = i_y * ROWS
    last = tl.minimum(first + ROWS, height)
    steps = tl.maximum(height - 1, 1)
    b_above = _activated_row(p_in + first * width * raw_stride, o_left, o_right, b_wx, raw_stride, b_a, b_b, b_e)
    for y in tl.range(first, last, num_stages=STAGES):
        below = tl.minimum(y + 1, height - 1)
        b_below = _activated_row(p_in + below * width * raw_stride, o_left, o_right, b_wx, raw_stride, b_a, b_b, b_e)
        start = (y * (2 * height - 1) + steps - 1) // steps  # the first output row at or below y
        for j in tl.static_range(3):
            o_row = start + j
            numerator = o_row * (height - 1)
            m_row = (o_row < 2 * height) & (numerator // (2 * height - 1) == y)
            wy = (numerator - y * (2 * height - 1)).to(tl.float32) / (2 * height - 1)
            b_y = tl.where(m_in, b_above + wy * (b_below - b_above), 0.0)
            tl.store(p_to + (o_row * out_width + o_x) * out_stride, b_y.to(p_out.dtype.element_ty), mask=m_x & m_row)
        b_above = b_below
    if (last == height) & (out_height > 2 * height):
        b_zero = tl.zeros([BLOCK, C], p_out.dtype.element_ty)
        tl.store(p_to + (2 * height * out_width + o_x) * out_stride, b_zero, mask=m_x)


@triton.jit
def _activated_row(p_row, o_left, o_right, b_wx, raw_stride, b_a, b_b, b_e):
    """One input row, activated and interpolated at the strip's columns: [BLOCK, C] float32."""
    b_left = swish(tl.load(p_row + o_left * raw_stride).to(tl.float32) * b_a + b_b)
    b_right = swish(tl.load(p_row + o_right * raw_stride).to(tl.float32) * b_a + b_b)
    return b_left + b_wx * (b_right - b_left) + b_e


@triton.jit(do_not_specialize=["pixels", "z_draw_stride", "z_image_stride", "draws"])
def _affine_swish_head_kernel(
    p_raw,  # [B·draws, pixels, C]
    p_affine,  # [B·draws, 2, C] float32
    p_weight,  # [3, C] float32
    p_head_bias,  # [draws, 3] float32
    p_z,  # [draws, 1 or B, 3, pixels] float32
    p_scale,  # [draws] float32
    p_out,  # [B, pixels] float32, written
    pixels,
    raw_stride,
    z_draw_stride,
    z_image_stride,
    draws,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of pixels of one image, all its draws one after another."""
    head_block(
        p_raw,
        p_affine,
        p_weight,
        p_head_bias,
        p_z,
        p_scale,
        p_out,
        tl.program_id(0),
        tl.program_id(1),
        pixels,
        raw_stride,
        z_draw_stride,
        z_image_stride,
        draws,
        C,
        BLOCK,
    )


@triton.jit
def head_block(
    p_raw,
    p_affine,
    p_weight,
    p_bias,
    p_z,
    p_scale,
    p_out,
    i_p,
    i_b,
    pixels,
    raw_stride,
    z_draw_stride,
    z_image_stride,
    draws,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Block i_p of image i_b; other arguments as in the kernel."""
    o_c = tl.arange(0, C)[None, :]
    o_p = i_p * BLOCK + tl.arange(0, BLOCK)
    m_p = o_p < pixels
    b_errors = tl.zeros([BLOCK], tl.float32)
    for d in range(draws):
        i_n = i_b * draws + d
        b_a, b_b = load_affine(p_affine, i_n, o_c, C)  # [1, C]
        p_in = p_raw + sample_offset(i_n, pixels * raw_stride) + o_p[:, None] * raw_stride + o_c
        b_h = swish(tl.load(p_in, mask=m_p[:, None], other=0.0).to(tl.float32) * b_a + b_b)  # [BLOCK, C]
        p_draw = p_z + sample_offset(i_b, z_image_stride) + d * z_draw_stride + o_p
        b_squares = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(3):
            b_f = tl.sum(b_h * tl.load(p_weight + k * C + o_c), axis=1)
            b_r = b_f + tl.load(p_bias + d * 3 + k) + tl.load(p_draw + k * pixels, mask=m_p, other=0.0)
            b_squares += b_r * b_r
        b_errors += tl.load(p_scale + d) * b_squares
    tl.store(p_out + sample_offset(i_b, pixels) + o_p, b_errors, mask=m_p)


def affine_swish(raw: Tensor, affine: Tensor, out: Tensor) -> None:
    """`reference.affine_swish` in one launch.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    _require_input(raw, affine)
    launch.require_output("out", out, raw, tuple(raw.shape))
    samples, channels, height, width = raw.shape
    tile = launch.tile("affine_swish", channels, raw.device)
    launch.run(
        _affine_swish_kernel,
        (triton.cdiv(height * width, tile.pixels), samples),
        (raw, affine, out, height * width, launch.pixel_stride(raw), launch.pixel_stride(out)),
        {"C": channels, "BLOCK": tile.pixels},
        tile.warps,
    )


def affine_swish_pool(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor, pooled: Tensor) -> None:
    """`reference.affine_swish_pool` in one launch.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    _require_input(raw, affine)
    samples, channels, height, width = raw.shape
    draws = launch.require_draws("embedding", embedding, samples, channels)
    launch.require_output("out", out, raw, tuple(raw.shape))
    launch.require_output("pooled", pooled, raw, (samples, channels, height // 2, width // 2))
    tile = launch.tile("affine_swish_pool", channels, raw.device)
    windows = triton.cdiv(height, 2) * triton.cdiv(width, 2)
    strides = [launch.pixel_stride(x) for x in (raw, out, pooled)]
    launch.run(
        _affine_swish_pool_kernel,
        (triton.cdiv(windows, tile.pixels), samples),
        (raw, affine, embedding, out, pooled, height, width, *strides, draws),
        {"C": channels, "BLOCK": tile.pixels},
        tile.warps,
    )


def affine_swish_up2(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor) -> None:
    """`reference.affine_swish_up2` in one launch.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    _require_input(raw, affine)
    samples, channels, height, width = raw.shape
    draws = launch.require_draws("embedding", embedding, samples, channels)
    shapes = [(samples, channels, 2 * height + rows, 2 * width + columns) for rows in (0, 1) for columns in (0, 1)]
    launch.require_output("out", out, raw, *shapes)
    tile = launch.tile("affine_swish_up2", channels, raw.device)
    sizes = (height, width, *out.shape[2:])
    launch.run(
        _affine_swish_up2_kernel,
        (triton.cdiv(out.shape[3], tile.pixels), triton.cdiv(height, tile.blocks), samples),
        (raw, affine, embedding, out, *sizes, launch.pixel_stride(raw), launch.pixel_stride(out), draws),
        {
            "C": channels,
            "BLOCK": tile.pixels,
            "ROWS": tile.blocks,
            "STAGES": launch.stages(raw, tile, 2 * channels),  # an iteration loads two pixels for each it writes
        },
        tile.warps,
    )


def affine_swish_head(
    raw: Tensor, affine: Tensor, weight: Tensor, head_bias: Tensor, z: Tensor, scale: Tensor, out: Tensor
) -> None:
    """`reference.affine_swish_head` in one launch; draws are added up in their order.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    _require_input(raw, affine)
    samples, channels, height, width = raw.shape
    tile = launch.tile("affine_swish_head", channels, raw.device)
    draws = launch.require_draws("scale", scale, samples)
    images = samples // draws
    launch.require_noise(z, draws, images, height, width)
    launch.require_parameters((3, channels), weight=weight)
    launch.require_parameters((draws, 3), head_bias=head_bias)
    launch.require_parameters((images, 1, height, width), out=out)
    numbers = (height * width, launch.pixel_stride(raw), *launch.noise_strides(z), draws)
    launch.run(
        _affine_swish_head_kernel,
        (triton.cdiv(height * width, tile.pixels), images),
        (raw, affine, weight, head_bias, z, scale, out, *numbers),
        {"C": channels, "BLOCK": tile.pixels},
        tile.warps,
    )


def _require_input(raw: Tensor, affine: Tensor) -> None:
    launch.require_map("raw", raw)
    launch.require_parameters((raw.shape[0], 2, raw.shape[1]), affine=affine)
