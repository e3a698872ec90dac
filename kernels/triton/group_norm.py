"""GroupNorm of a convolution's output: statistics in chunks with the affine that follows from them,
and one pass for small maps.

Statistics are shifted sums (the shift is a channel's first pixel, or the mean of its first block),
merged by Chan's formula (Chan, Golub & LeVeque 1983) in a fixed order with one writer a slot: never
E[x²] - E[x]², no sum by atomics. The convolution's bias is added here, in float32, instead of in a
pass of its own.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from sprfast.kernels.triton import launch
from sprfast.kernels.triton.common import merge_channels, reciprocal_deviation, sample_offset, store_partial, swish
from sprfast.kernels.triton.reference import EPS


@triton.jit
def _shifted_sums(p_map, o_c, b_shift, first, last, stride, C: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Count, mean [C] and M2 [C] of the pixels from `first` up to `last`; exact as far as `b_shift`
    [C] is near the mean.
    """
    b_sum = tl.zeros([BLOCK, C], tl.float32)
    b_squares = tl.zeros([BLOCK, C], tl.float32)
    for i in tl.range(first, last, BLOCK, num_stages=STAGES):
        o_p = i + tl.arange(0, BLOCK)
        m_p = (o_p < last)[:, None]
        b_x = tl.load(p_map + o_p[:, None] * stride + o_c[None, :], mask=m_p, other=0.0).to(tl.float32)  # [BLOCK, C]
        b_d = tl.where(m_p, b_x - b_shift[None, :], 0.0)
        b_sum += b_d
        b_squares += b_d * b_d
    count = (last - first).to(tl.float32)
    b_total = tl.sum(b_sum, axis=0)
    b_mean = b_total / count
    return count, b_mean + b_shift, tl.sum(b_squares, axis=0) - b_total * b_mean


@triton.jit
def chunk_statistics(
    p_raw,  # [N, pixels, C]
    p_bias,  # [C]
    p_gamma,  # [C]
    p_beta,  # [C]
    p_arrived,  # [N, ...] int32, zeros before and after
    p_partial,  # [N, chunks, 3, GROUPS] float32, written
    p_affine,  # [N, 2, C] float32, written
    i_chunk,
    i_n,
    pixels,
    chunks,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Statistics of one chunk of whole pixels, all channels; the last program of a sample to get so
    far merges all chunks of it, CHUNKS at once, and gets True.
    """
    o_c = tl.arange(0, C)
    p_map = p_raw + sample_offset(i_n, pixels * C)
    first = i_chunk * BLOCK * BLOCKS
    b_shift = tl.load(p_map + first * C + o_c).to(tl.float32)  # an outlier of one chunk is lost among the others
    last = tl.minimum(first + BLOCK * BLOCKS, pixels)
    count, b_mean, b_m2 = _shifted_sums(p_map, o_c, b_shift, first, last, C, C, BLOCK, STAGES)
    b_mean, b_m2 = merge_channels(b_mean + tl.load(p_bias + o_c), b_m2, count, C, GROUPS)
    store_partial(p_partial, i_n, i_chunk, chunks, b_mean, b_m2, count, C, GROUPS)
    # Which program merges is a matter of time; what it merges, and in which order, is not. It sees
    # the partials of the others for these reasons. The barrier puts the stores of all threads of a
    # program before the addition, which one thread does. That addition releases them to the whole
    # GPU, and acquires what each program released whose addition came before. Only the last one
    # finds `chunks - 1`, so it has acquired all. Its other threads get the number through shared
    # memory and a barrier, and with it the same view; the loads come after that, and not through
    # the read-only cache, since this kernel writes what they read. After the last addition nobody
    # else uses the counter: it is set back here, and the end of the kernel puts that before the
    # next launch on the stream, a replay of a graph included.
    p_counter = p_arrived + sample_offset(i_n, 1)
    tl.debug_barrier()
    is_last = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu") == chunks - 1
    if is_last:
        _merge_chunks(p_partial, p_bias, p_gamma, p_beta, p_affine, i_n, chunks, eps, C, GROUPS, CHUNKS)
        tl.store(p_counter, 0)
    return is_last


@triton.jit(do_not_specialize=["pixels", "chunks"])
def _group_statistics_kernel(
    p_raw,  # arguments as in `chunk_statistics`
    p_bias,
    p_gamma,
    p_beta,
    p_arrived,
    p_partial,
    p_affine,
    pixels,
    chunks,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One chunk."""
    i_chunk, i_n = tl.program_id(0), tl.program_id(1)
    chunk_statistics(
        p_raw,
        p_bias,
        p_gamma,
        p_beta,
        p_arrived,
        p_partial,
        p_affine,
        i_chunk,
        i_n,
        pixels,
        chunks,
        eps,
        C,
        GROUPS,
        BLOCK,
        BLOCKS,
        STAGES,
        CHUNKS,
    )


@triton.jit(do_not_specialize=["chunks"])
def _group_affine_kernel(
    p_partial,  # [N, chunks, 3, GROUPS] float32
    p_bias,  # [C]
    p_gamma,  # [C]
    p_beta,  # [C]
    p_arrived,  # [N + 2] int32, zeros are written
    p_affine,  # [N, 2, C] float32, written
    chunks,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Merge the chunks of one sample, and clear its counter for the statistics that follow; the
    first program clears the two that belong to no sample.
    """
    i_n = tl.program_id(0)
    _merge_chunks(p_partial, p_bias, p_gamma, p_beta, p_affine, i_n, chunks, eps, C, GROUPS, CHUNKS)
    tl.store(p_arrived + sample_offset(i_n, 1), 0)
    if i_n == 0:
        tl.store(p_arrived + tl.num_programs(0) + tl.arange(0, 2), tl.zeros([2], tl.int32))


@triton.jit
def _merge_chunks(
    p_partial,
    p_bias,
    p_gamma,
    p_beta,
    p_affine,
    i_n,
    chunks,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the chunks of sample i_n and turn them into a and b of each channel."""
    o_g = tl.arange(0, GROUPS)
    p_sample = p_partial + sample_offset(i_n, chunks * 3 * GROUPS)
    b_origin = tl.load(p_sample + o_g)  # [GROUPS], the first chunk's means
    b_count = tl.zeros([BLOCK, GROUPS], tl.float32)
    b_sum = tl.zeros([BLOCK, GROUPS], tl.float32)
    for i in range(0, chunks, BLOCK):
        o_k = i + tl.arange(0, BLOCK)
        m_k = (o_k < chunks)[:, None]
        p_slot = p_sample + o_k[:, None] * (3 * GROUPS) + o_g[None, :]
        b_n = tl.load(p_slot + 2 * GROUPS, mask=m_k, other=0.0)
        b_count += b_n
        b_sum += b_n * (tl.load(p_slot, mask=m_k, other=0.0) - b_origin[None, :])
    b_count = tl.sum(b_count, axis=0)  # [GROUPS]
    b_mean = b_origin + tl.sum(b_sum, axis=0) / b_count
    b_m2 = tl.zeros([BLOCK, GROUPS], tl.float32)
    for i in range(0, chunks, BLOCK):
        o_k = i + tl.arange(0, BLOCK)
        m_k = (o_k < chunks)[:, None]
        p_slot = p_sample + o_k[:, None] * (3 * GROUPS) + o_g[None, :]
        b_off = tl.load(p_slot, mask=m_k, other=0.0) - b_mean[None, :]
        b_m2 += (
            tl.load(p_slot + GROUPS, mask=m_k, other=0.0)
            + tl.load(p_slot + 2 * GROUPS, mask=m_k, other=0.0) * b_off * b_off
        )
    b_rstd = reciprocal_deviation(tl.sum(b_m2, axis=0) / b_count, eps)

    o_c = o_g[:, None] * (C // GROUPS) + tl.arange(0, C // GROUPS)[None, :]  # [GROUPS, C // GROUPS]
    b_a = tl.load(p_gamma + o_c) * b_rstd[:, None]
    b_b = tl.load(p_beta + o_c) + (tl.load(p_bias + o_c) - b_mean[:, None]) * b_a
    p_row = p_affine + sample_offset(i_n, 2 * C) + o_c
    tl.store(p_row, b_a)
    tl.store(p_row + C, b_b)


@triton.jit(do_not_specialize=["pixels"])
def _group_norm_swish_kernel(
    p_raw,  # [N, pixels, CHANNELS]
    p_bias,  # [CHANNELS]
    p_gamma,  # [CHANNELS]
    p_beta,  # [CHANNELS]
    p_out,  # [N, pixels, CHANNELS], pixels `out_stride` apart, written
    pixels,
    out_stride,
    eps,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,  # of this program: whole groups
    GROUPS: tl.constexpr,  # of this program
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Whole groups of one sample: statistics, then the activation; the second reading comes from
    the cache.
    """
    i_c, i_n = tl.program_id(0), tl.program_id(1)
    o_c = i_c * C + tl.arange(0, C)
    p_map = p_raw + sample_offset(i_n, pixels * CHANNELS)
    o_p = tl.arange(0, BLOCK)
    b_x = tl.load(p_map + o_p[:, None] * CHANNELS + o_c[None, :], mask=(o_p < pixels)[:, None], other=0.0).to(
        tl.float32
    )
    b_shift = tl.sum(b_x, axis=0) / tl.minimum(pixels, BLOCK)
    count, b_mean, b_m2 = _shifted_sums(p_map, o_c, b_shift, 0, pixels, CHANNELS, C, BLOCK, STAGES)
    b_bias = tl.load(p_bias + o_c)
    b_mean, b_m2 = merge_channels(b_mean + b_bias, b_m2, count, C, GROUPS)
    b_rstd = reciprocal_deviation(b_m2 / (count * (C // GROUPS)), eps)  # [GROUPS]
    b_a = tl.load(p_gamma + o_c) * _spread(b_rstd, C, GROUPS)
    b_b = tl.load(p_beta + o_c) + (b_bias - _spread(b_mean, C, GROUPS)) * b_a
    p_sample = p_out + sample_offset(i_n, pixels * out_stride)
    for i in tl.range(0, pixels, BLOCK, num_stages=STAGES):
        o_p = i + tl.arange(0, BLOCK)
        m_p = (o_p < pixels)[:, None]
        b_x = tl.load(p_map + o_p[:, None] * CHANNELS + o_c[None, :], mask=m_p, other=0.0).to(tl.float32)
        b_y = swish(b_x * b_a[None, :] + b_b[None, :])
        tl.store(p_sample + o_p[:, None] * out_stride + o_c[None, :], b_y.to(p_out.dtype.element_ty), mask=m_p)


@triton.jit
def _spread(b_group, C: tl.constexpr, GROUPS: tl.constexpr):
    """[GROUPS] to [C]."""
    return tl.reshape(tl.broadcast_to(b_group[:, None], [GROUPS, C // GROUPS]), [C])


def group_norm_affine(raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, arrived: Tensor) -> Tensor:
    """`reference.group_norm_affine` in one launch: statistics of chunks of pixels, merged by the
    last program of each sample.

    Raises:
        launch.UnsupportedError: the kernels do not take these arguments.
    """
    chunked = Chunked.of(raw, bias, gamma, beta, groups, arrived)
    launch.run(
        _group_statistics_kernel,
        (chunked.chunks, raw.shape[0]),
        chunked.arguments,
        {name.removeprefix("CHUNK_"): value for name, value in chunked.constants.items()},
        chunked.warps,
    )
    return chunked.affine


@dataclasses.dataclass(frozen=True)
class Chunked:
    """How a map's statistics are taken: what a kernel gets for `chunk_statistics`.

    Attributes:
        chunks: of a sample.
        affine: (N, 2, C) float32, which the last program of a sample writes.
        arguments: in the order of the kernel's.
        constants: by name; C and GROUPS as they are, the others with CHUNK_ in front.
        warps: of the tile.
    """

    chunks: int
    affine: Tensor
    arguments: tuple[Tensor | int | float, ...]
    constants: dict[str, int]
    warps: int

    @classmethod
    def of(cls, raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, arrived: Tensor) -> Chunked:
        """The chunks of `raw`, with new memory for their statistics.

        Raises:
            launch.UnsupportedError: the kernels do not take these arguments.
        """
        launch.require_normalised("raw", raw, bias, gamma, beta, groups)
        samples, channels, height, width = raw.shape
        launch.require_counters("arrived", arrived, samples)
        tile = launch.tile("group_statistics", channels, raw.device)
        chunks = chunks_of(raw)
        partial = torch.empty((samples, chunks, 3, groups), dtype=torch.float32, device=raw.device)
        affine = torch.empty((samples, 2, channels), dtype=torch.float32, device=raw.device)
        constants = {
            "C": channels,
            "GROUPS": groups,
            "CHUNK_BLOCK": tile.pixels,
            "CHUNK_BLOCKS": tile.blocks,
            "CHUNK_STAGES": launch.stages(raw, tile, channels),
            "CHUNK_CHUNKS": launch.tile("group_affine", channels, raw.device).pixels,
        }
        arguments = (raw, bias, gamma, beta, arrived, partial, affine, height * width, chunks, EPS)
        return cls(chunks, affine, arguments, constants, tile.warps)


def chunks_of(raw: Tensor) -> int:
    """Chunks of a sample of `raw`."""
    tile = launch.tile("group_statistics", raw.shape[1], raw.device)
    return int(triton.cdiv(raw.shape[2] * raw.shape[3], tile.pixels * tile.blocks))


def merge_partials(partial: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, arrived: Tensor) -> Tensor:
    """(N, chunks, 3, groups) means, M2 and counts to (N, 2, C): a and b of every channel. Clears
    `arrived`.
    """
    samples, chunks, _, groups = partial.shape
    channels = gamma.shape[0]
    affine = torch.empty((samples, 2, channels), dtype=torch.float32, device=partial.device)
    tile = launch.tile("group_affine", channels, partial.device)
    launch.run(
        _group_affine_kernel,
        (samples,),
        (partial, bias, gamma, beta, arrived, affine, chunks, EPS),
        {"C": channels, "GROUPS": groups, "CHUNKS": tile.pixels},
        tile.warps,
    )
    return affine


def group_norm_swish(raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, out: Tensor) -> None:
    """`reference.group_norm_swish` in one launch; for maps of up to `reference.ONE_PASS_PIXELS`
    pixels.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments.
    """
    launch.require_normalised("raw", raw, bias, gamma, beta, groups)
    launch.require_output("out", out, raw, tuple(raw.shape))
    samples, channels, height, width = raw.shape
    tile = launch.tile("group_norm_swish", channels, raw.device)
    here = max(channels // groups, min(channels, 32))  # 32 channels: 64 bytes side by side in 16-bit storage
    launch.run(
        _group_norm_swish_kernel,
        (channels // here, samples),
        (raw, bias, gamma, beta, out, height * width, launch.pixel_stride(out), EPS),
        {
            "CHANNELS": channels,
            "C": here,
            "GROUPS": here * groups // channels,
            "BLOCK": tile.pixels,
            "STAGES": launch.stages(raw, tile, here),
        },
        tile.warps,
    )
