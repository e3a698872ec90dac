"""The anomaly map: resampling and box filter as one small float32 matrix product on each
side, of which only the bands with weights are computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sprfast.kernels.triton import launch
from sprfast.kernels.triton.common import sample_offset


@triton.jit(do_not_specialize=["M", "N", "K", "reach"])
def _matmul_kernel(
    p_left,  # [B or 1, M, K] float32
    p_right,  # [B or 1, K, N] float32
    p_out,  # [B, M, N] float32, written
    M,
    N,
    K,
    left_batch,
    left_row,
    left_column,
    right_batch,
    right_row,
    right_column,
    reach,
    BANDED_LEFT: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """One BLOCK x BLOCK block of left @ right in IEEE float32; TF32 would lose the last three
    digits of a score.

    One side is a smoothing matrix, its places the rows of `left` or the columns of `right`. Steps
    that no place of the block reaches are left out: they would add zeros.
    """
    i_column, i_row, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_row = i_row * BLOCK + tl.arange(0, BLOCK)
    o_column = i_column * BLOCK + tl.arange(0, BLOCK)
    p_left += sample_offset(i_b, left_batch)
    p_right += sample_offset(i_b, right_batch)
    places = M if BANDED_LEFT else N
    o_place = o_row if BANDED_LEFT else o_column
    o_first, o_last = _reached(o_place, places, K, reach)
    i_place = (i_row if BANDED_LEFT else i_column) * BLOCK
    first, _ = _reached(i_place, places, K, reach)
    _, last = _reached(i_place + BLOCK - 1, places, K, reach)
    b_out = tl.zeros([BLOCK, BLOCK], tl.float32)
    for k in range(first // STEP * STEP, last, STEP):
        o_k = k + tl.arange(0, STEP)
        m_left = (o_row < M)[:, None] & (o_k < K)[None, :]
        m_right = (o_k < K)[:, None] & (o_column < N)[None, :]
        if BANDED_LEFT:
            m_left &= (o_k[None, :] >= o_first[:, None]) & (o_k[None, :] < o_last[:, None])
        else:
            m_right &= (o_k[:, None] >= o_first[None, :]) & (o_k[:, None] < o_last[None, :])
        b_left = tl.load(p_left + o_row[:, None] * left_row + o_k[None, :] * left_column, mask=m_left, other=0.0)
        b_right = tl.load(
            p_right + o_k[:, None] * right_row + o_column[None, :] * right_column, mask=m_right, other=0.0
        )
        b_out = tl.dot(b_left, b_right, b_out, input_precision="ieee")
    m_out = (o_row < M)[:, None] & (o_column < N)[None, :]
    tl.store(p_out + sample_offset(i_b, M * N) + o_row[:, None] * N + o_column[None, :], b_out, mask=m_out)


@triton.jit
def _reached(o_place, places, size, reach):
    """First and last + 1 of `size` pixels that a place reaches: `reference.reached`."""
    o_first = tl.maximum(tl.maximum(o_place - reach, 0) * size // places - 1, 0)
    return o_first, tl.minimum((o_place + 1 + reach) * size // places + 2, size)


def anomaly_map(errors: Tensor, rows: Tensor, columns: Tensor, reach: int, out: Tensor) -> None:
    """`reference.anomaly_map` in two launches. A NaN reaches at least the places that its pixel
    counts for.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    if errors.dim() != 4 or rows.dim() != 2 or min(*errors.shape, *rows.shape) < 1:
        raise launch.UnsupportedError(
            f"errors, rows: shapes {tuple(errors.shape)}, {tuple(rows.shape)}, expected (B, 1, H, W) and (S, H)"
        )
    images, _, height, width = errors.shape
    if images > launch.MAX_SAMPLES:
        raise launch.UnsupportedError(f"errors: {images} maps, at most {launch.MAX_SAMPLES}")
    launch.require_parameters((images, 1, height, width), errors=errors)
    launch.require_parameters((rows.shape[0], height), rows=rows)
    launch.require_parameters((rows.shape[0], width), columns=columns)
    places = rows.shape[0]
    launch.require_parameters((images, 1, places, places), out=out)
    between = torch.empty((images, places, width), dtype=torch.float32, device=errors.device)
    _matmul(rows[None], errors[:, 0], between, reach, banded_left=True)
    _matmul(between, columns.mT[None], out[:, 0], reach, banded_left=False)


def _matmul(left: Tensor, right: Tensor, out: Tensor, reach: int, banded_left: bool) -> None:
    """(B or 1, M, K) @ (1 or B, K, N) to (B, M, N); the left or the right one is a smoothing
    matrix.
    """
    batch, m, n = out.shape
    tile = launch.tile("matmul", 1, left.device)
    # one matrix serves every map
    strides = [(x.stride(0) if x.shape[0] > 1 else 0, *x.stride()[1:]) for x in (left, right)]
    launch.run(
        _matmul_kernel,
        (triton.cdiv(n, tile.pixels), triton.cdiv(m, tile.pixels), batch),
        (left, right, out, m, n, left.shape[2], *strides[0], *strides[1], reach),
        {"BANDED_LEFT": banded_left, "BLOCK": tile.pixels, "STEP": 16},
        tile.warps,
    )
