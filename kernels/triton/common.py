"""Device functions that several kernels call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sample_offset(i_n, stride):
    """Offset of sample i_n in elements: 64 bits, since n·H·W·C passes 2^31 within a large batch."""
    return i_n.to(tl.int64) * stride


@triton.jit
def merge_channels(b_mean, b_m2, count, C: tl.constexpr, GROUPS: tl.constexpr):
    """Merge the statistics of channels of `count` values each into those of groups.

    Means and sums of squared deviations, [C] to [GROUPS].
    """
    b_mean = tl.reshape(b_mean, [GROUPS, C // GROUPS])
    b_merged = tl.sum(b_mean, axis=1) / (C // GROUPS)
    b_off = b_mean - b_merged[:, None]
    b_m2 = tl.sum(tl.reshape(b_m2, [GROUPS, C // GROUPS]) + count * b_off * b_off, axis=1)
    return b_merged, b_m2


@triton.jit
def store_partial(p_partial, i_n, i_chunk, chunks, b_mean, b_m2, count, C: tl.constexpr, GROUPS: tl.constexpr):
    """Write mean, M2 and count of a chunk's groups to [N, chunks, 3, GROUPS], its only writer."""
    o_g = tl.arange(0, GROUPS)
    p_slot = p_partial + sample_offset(i_n, chunks * 3 * GROUPS) + i_chunk * 3 * GROUPS + o_g
    tl.store(p_slot, b_mean)
    tl.store(p_slot + GROUPS, b_m2)
    tl.store(p_slot + 2 * GROUPS, tl.zeros([GROUPS], tl.float32) + count * (C // GROUPS))


@triton.jit
def reciprocal_deviation(b_variance, eps):
    """1 / sqrt(variance + eps); NaN of an infinite variance, where 0 would make the whole group a
    finite constant.
    """
    return tl.where(b_variance < float("inf"), 1.0 / tl.sqrt_rn(b_variance + eps), float("nan"))


@triton.jit
def swish(b_y):
    """y·sigmoid(y)."""
    return b_y / (1.0 + tl.exp(-b_y))


@triton.jit
def load_affine(p_affine, i_n, o_c, C: tl.constexpr):
    """a and b of sample i_n, each in the shape of o_c."""
    p_row = p_affine + sample_offset(i_n, 2 * C) + o_c
    return tl.load(p_row), tl.load(p_row + C)
