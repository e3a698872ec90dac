"""What follows a normalisation's statistics: affine, swish and embedding in one pass, with what
comes next in the network.

Four endings: nothing, a 2x2 maximum, bilinear upsampling by 2 (both writing into their half of a
concatenation), and the 1x1 head with residual, square and mean. Rows of [pixels, channels] blocks
are whole pixels, so that loads and stores are 128 bits wide.
"""

from __future__ import annotations

import torch
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
    i_p, i_n = tl.program_id(0), tl.program_id(1)
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
    i_q, i_n = tl.program_id(0), tl.program_id(1)
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
    for y in range(first, last):
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
    p_bias,  # [draws, 3] float32
    p_z,  # [draws, 1 or B, 3, pixels] float32
    p_scale,  # [draws] float32
    p_errors,  # [B, pixels] float32, written
    pixels,
    raw_stride,
    z_draw_stride,
    z_image_stride,
    draws,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of pixels of one image, all its draws one after another."""
    i_p, i_b = tl.program_id(0), tl.program_id(1)
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
    tl.store(p_errors + sample_offset(i_b, pixels) + o_p, b_errors, mask=m_p)


def supports_affine_swish(raw: Tensor, affine: Tensor, out: Tensor) -> str | None:
    """None if `affine_swish` takes these arguments, else the reason."""
    return _unsupported_input(raw, affine) or _unsupported_output("out", out, raw, tuple(raw.shape))


def affine_swish(raw: Tensor, affine: Tensor, out: Tensor) -> None:
    """`reference.affine_swish` in one launch.

    Raises:
        launch.UnsupportedError: see `supports_affine_swish`.
    """
    launch.require(supports_affine_swish(raw, affine, out))
    samples, channels, height, width = raw.shape
    tile = launch.tile("affine_swish", channels, raw.device)
    launch.Launch(
        _affine_swish_kernel,
        (triton.cdiv(height * width, tile.pixels), samples),
        {
            "p_raw": raw,
            "p_affine": affine,
            "p_out": out,
            "pixels": height * width,
            "raw_stride": launch.pixel_stride(raw),
            "out_stride": launch.pixel_stride(out),
        },
        {"C": channels, "BLOCK": tile.pixels},
        tile.warps,
    ).run()


def supports_affine_swish_pool(
    raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor, pooled: Tensor
) -> str | None:
    """None if `affine_swish_pool` takes these arguments, else the reason."""
    if reason := _unsupported_input(raw, affine, embedding) or _unsupported_output("out", out, raw, tuple(raw.shape)):
        return reason
    samples, channels, height, width = raw.shape
    return _unsupported_output("pooled", pooled, raw, (samples, channels, height // 2, width // 2))


def affine_swish_pool(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor, pooled: Tensor) -> None:
    """`reference.affine_swish_pool` in one launch.

    Raises:
        launch.UnsupportedError: see `supports_affine_swish_pool`.
    """
    launch.require(supports_affine_swish_pool(raw, affine, embedding, out, pooled))
    samples, channels, height, width = raw.shape
    tile = launch.tile("affine_swish_pool", channels, raw.device)
    windows = triton.cdiv(height, 2) * triton.cdiv(width, 2)
    launch.Launch(
        _affine_swish_pool_kernel,
        (triton.cdiv(windows, tile.pixels), samples),
        {
            "p_raw": raw,
            "p_affine": affine,
            "p_embedding": embedding,
            "p_out": out,
            "p_pooled": pooled,
            "height": height,
            "width": width,
            "raw_stride": launch.pixel_stride(raw),
            "out_stride": launch.pixel_stride(out),
            "pooled_stride": launch.pixel_stride(pooled),
            "draws": embedding.shape[0],
        },
        {"C": channels, "BLOCK": tile.pixels},
        tile.warps,
    ).run()


def supports_affine_swish_up2(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor) -> str | None:
    """None if `affine_swish_up2` takes these arguments, else the reason."""
    if reason := _unsupported_input(raw, affine, embedding):
        return reason
    samples, channels, height, width = raw.shape
    shapes = [(samples, channels, 2 * height + rows, 2 * width + columns) for rows in (0, 1) for columns in (0, 1)]
    return _unsupported_output("out", out, raw, *shapes)


def affine_swish_up2(raw: Tensor, affine: Tensor, embedding: Tensor, out: Tensor) -> None:
    """`reference.affine_swish_up2` in one launch.

    Raises:
        launch.UnsupportedError: see `supports_affine_swish_up2`.
    """
    launch.require(supports_affine_swish_up2(raw, affine, embedding, out))
    samples, channels, height, width = raw.shape
    tile = launch.tile("affine_swish_up2", channels, raw.device)
    launch.Launch(
        _affine_swish_up2_kernel,
        (triton.cdiv(out.shape[3], tile.pixels), triton.cdiv(height, tile.blocks), samples),
        {
            "p_raw": raw,
            "p_affine": affine,
            "p_embedding": embedding,
            "p_out": out,
            "height": height,
            "width": width,
            "out_height": out.shape[2],
            "out_width": out.shape[3],
            "raw_stride": launch.pixel_stride(raw),
            "out_stride": launch.pixel_stride(out),
            "draws": embedding.shape[0],
        },
        {"C": channels, "BLOCK": tile.pixels, "ROWS": tile.blocks},
        tile.warps,
    ).run()


def supports_affine_swish_head(
    raw: Tensor, affine: Tensor, weight: Tensor, bias: Tensor, z: Tensor, scale: Tensor
) -> str | None:
    """None if `affine_swish_head` takes these arguments, else the reason."""
    if reason := _unsupported_input(raw, affine):
        return reason
    samples, channels, height, width = raw.shape
    draws = scale.numel()
    if channels > max(launch.TABLE["affine_swish_head"]):
        return f"raw: {channels} channels, at most {max(launch.TABLE['affine_swish_head'])} go through the head"
    if scale.dim() != 1 or draws < 1 or samples % draws:
        return f"scale: shape {tuple(scale.shape)}, expected (D,), D a divisor of the {samples} samples of raw"
    if z.shape not in ((draws, 1, 3, height, width), (draws, samples // draws, 3, height, width)):
        return f"z: shape {tuple(z.shape)}, expected ({draws}, 1 or {samples // draws}, 3, {height}, {width})"
    return (
        launch.unsupported_parameters((3, channels), weight=weight)
        or launch.unsupported_parameters((draws, 3), bias=bias)
        or launch.unsupported_parameters((draws,), scale=scale)
        or unsupported_planes("z", z)
    )


def affine_swish_head(raw: Tensor, affine: Tensor, weight: Tensor, bias: Tensor, z: Tensor, scale: Tensor) -> Tensor:
    """`reference.affine_swish_head` in one launch; draws are added up in their order.

    Raises:
        launch.UnsupportedError: see `supports_affine_swish_head`.
    """
    launch.require(supports_affine_swish_head(raw, affine, weight, bias, z, scale))
    samples, channels, height, width = raw.shape
    draws = bias.shape[0]
    errors = torch.empty((samples // draws, 1, height, width), dtype=torch.float32, device=raw.device)
    tile = launch.tile("affine_swish_head", channels, raw.device)
    launch.Launch(
        _affine_swish_head_kernel,
        (triton.cdiv(height * width, tile.pixels), samples // draws),
        {
            "p_raw": raw,
            "p_affine": affine,
            "p_weight": weight,
            "p_bias": bias,
            "p_z": z,
            "p_scale": scale,
            "p_errors": errors,
            "pixels": height * width,
            "raw_stride": launch.pixel_stride(raw),
            "z_draw_stride": z.stride(0),
            "z_image_stride": z.stride(1) if z.shape[1] > 1 else 0,
            "draws": draws,
        },
        {"C": channels, "BLOCK": tile.pixels},
        tile.warps,
    ).run()
    return errors


def unsupported_planes(name: str, x: Tensor) -> str | None:
    """None if every image of `x` (..., 3, H, W) is float32 and contiguous, and no offset between
    draws passes 32 bits.
    """
    height, width = x.shape[-2:]
    if x.dtype != torch.float32 or x.stride()[-3:] != (height * width, width, 1):
        return (
            f"{name}: {x.dtype} with strides {x.stride()}, expected float32 with contiguous (3, {height}, "
            f"{width}) images"
        )
    if x.dim() == 5 and x.shape[0] * x.stride(0) >= 2**31:
        return f"{name}: {x.shape[0]} draws, {x.stride(0)} elements apart, are more than 32-bit offsets reach"
    return None


def _unsupported_input(raw: Tensor, affine: Tensor, embedding: Tensor | None = None) -> str | None:
    if reason := launch.unsupported_map("raw", raw):
        return reason
    samples, channels = raw.shape[:2]
    if reason := launch.unsupported_parameters((samples, 2, channels), affine=affine):
        return reason
    if embedding is None:
        return None
    draws = embedding.shape[0] if embedding.dim() else 0
    if draws < 1 or samples % draws:
        return f"embedding: shape {tuple(embedding.shape)}, expected a divisor of {samples} rows of {channels}"
    return launch.unsupported_parameters((draws, channels), embedding=embedding)


def _unsupported_output(name: str, out: Tensor, raw: Tensor, *shapes: tuple[int, ...]) -> str | None:
    """The reason why `out` is no map like `raw` of one of these shapes, or None; an empty map may
    lie anyhow.
    """
    if out.dtype != raw.dtype or tuple(out.shape) not in shapes:
        return f"{name}: {out.dtype} {tuple(out.shape)}, expected {raw.dtype} {' or '.join(map(str, shapes))}"
    return launch.unsupported_map(name, out) if out.numel() else None
