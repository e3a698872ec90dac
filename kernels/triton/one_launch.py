"""A norm and what follows it in one launch, for batches so small that all programs run at once:
statistics, a barrier of the whole grid, activation.

Chunks, their merge and the blocks of the activation are those of the two launches, so that bits are
too. A program that waits for another one that has no place on the GPU would wait for ever, so the
launch is cooperative, and `unsupported` says where not all have one.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sprfast.kernels.triton import launch
from sprfast.kernels.triton.activation import (
    affine_swish,
    affine_swish_head,
    affine_swish_pool,
    head_block,
    pool_block,
    swish_block,
)
from sprfast.kernels.triton.group_norm import Chunked, chunk_statistics, chunks_of
from sprfast.kernels.triton.launch import Launch

STATISTICS, ACTIVATION, BOTH = 1, 2, 3  # phases of a kernel; with both the barrier between them
# Warps that one multiprocessor has room for, with 16-bit storage and with wider one:
# `compile_report` holds every kernel to it.
RESIDENT_WARPS_16_BIT, RESIDENT_WARPS = 16, 12


@triton.jit
def _statistics_phase(
    p_raw,
    p_bias,
    p_gamma,
    p_beta,
    p_arrived,
    p_partial,
    p_affine,
    samples,
    pixels,
    chunks,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    CHUNK_BLOCKS: tl.constexpr,
    CHUNK_STAGES: tl.constexpr,
    CHUNK_CHUNKS: tl.constexpr,
    WAIT: tl.constexpr,
):
    """This program's chunks; with WAIT it then waits until all samples have their affine."""
    p_done = p_arrived + samples  # samples merged, and behind it programs that know
    for i in range(tl.program_id(0), samples * chunks, tl.num_programs(0)):
        is_last = chunk_statistics(
            p_raw,
            p_bias,
            p_gamma,
            p_beta,
            p_arrived,
            p_partial,
            p_affine,
            i % chunks,
            i // chunks,
            pixels,
            chunks,
            eps,
            C,
            GROUPS,
            CHUNK_BLOCK,
            CHUNK_BLOCKS,
            CHUNK_STAGES,
            CHUNK_CHUNKS,
        )
        # As in `chunk_statistics`: the barrier puts the affine's stores by all threads before the
        # addition, which releases them; who finds the full number has acquired them.
        if WAIT:
            tl.debug_barrier()
            if is_last:
                tl.atomic_add(p_done, 1, sem="acq_rel", scope="gpu")
    if WAIT:
        done = tl.atomic_add(p_done, 0, sem="acq_rel", scope="gpu")
        while done < samples:
            done = tl.atomic_add(p_done, 0, sem="acq_rel", scope="gpu")
        # the last one to know sets both counters back: nobody looks at them any more
        if tl.atomic_add(p_done + 1, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
            tl.store(p_done + tl.arange(0, 2), tl.zeros([2], tl.int32))


@triton.jit(do_not_specialize=["samples", "pixels", "chunks"])
def _norm_swish_kernel(
    p_raw,  # up to p_affine as in `chunk_statistics`
    p_bias,
    p_gamma,
    p_beta,
    p_arrived,
    p_partial,
    p_affine,
    samples,
    pixels,
    chunks,
    eps,
    p_out,  # as in `norm_swish`, and so below
    out_stride,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    CHUNK_BLOCKS: tl.constexpr,
    CHUNK_STAGES: tl.constexpr,
    CHUNK_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PHASES: tl.constexpr,
):
    """The statistics' chunks, then blocks of pixels."""
    if PHASES & 1:
        _statistics_phase(
            p_raw, p_bias, p_gamma, p_beta, p_arrived, p_partial, p_affine, samples, pixels, chunks, eps,
            C, GROUPS, CHUNK_BLOCK, CHUNK_BLOCKS, CHUNK_STAGES, CHUNK_CHUNKS, PHASES == 3,
        )  # fmt: skip
    if PHASES & 2:
        blocks = tl.cdiv(pixels, BLOCK)
        for i in range(tl.program_id(0), samples * blocks, tl.num_programs(0)):
            swish_block(p_raw, p_affine, p_out, i % blocks, i // blocks, pixels, C, out_stride, C, BLOCK)


@triton.jit(do_not_specialize=["samples", "pixels", "chunks", "height", "width", "draws"])
def _norm_swish_pool_kernel(
    p_raw,
    p_bias,
    p_gamma,
    p_beta,
    p_arrived,
    p_partial,
    p_affine,
    samples,
    pixels,
    chunks,
    eps,
    p_embedding,
    p_out,
    p_pooled,
    height,
    width,
    out_stride,
    pooled_stride,
    draws,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    CHUNK_BLOCKS: tl.constexpr,
    CHUNK_STAGES: tl.constexpr,
    CHUNK_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PHASES: tl.constexpr,
):
    """The statistics' chunks, then blocks of 2x2 windows."""
    if PHASES & 1:
        _statistics_phase(
            p_raw, p_bias, p_gamma, p_beta, p_arrived, p_partial, p_affine, samples, pixels, chunks, eps,
            C, GROUPS, CHUNK_BLOCK, CHUNK_BLOCKS, CHUNK_STAGES, CHUNK_CHUNKS, PHASES == 3,
        )  # fmt: skip
    if PHASES & 2:
        blocks = tl.cdiv(tl.cdiv(height, 2) * tl.cdiv(width, 2), BLOCK)
        for i in range(tl.program_id(0), samples * blocks, tl.num_programs(0)):
            pool_block(
                p_raw, p_affine, p_embedding, p_out, p_pooled, i % blocks, i // blocks,
                height, width, C, out_stride, pooled_stride, draws, C, BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["samples", "pixels", "chunks", "z_draw_stride", "z_image_stride", "draws"])
def _norm_swish_head_kernel(
    p_raw,
    p_bias,
    p_gamma,
    p_beta,
    p_arrived,
    p_partial,
    p_affine,
    samples,
    pixels,
    chunks,
    eps,
    p_weight,
    p_head_bias,
    p_z,
    p_scale,
    p_out,
    z_draw_stride,
    z_image_stride,
    draws,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    CHUNK_BLOCKS: tl.constexpr,
    CHUNK_STAGES: tl.constexpr,
    CHUNK_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PHASES: tl.constexpr,
):
    """The statistics' chunks, then blocks of pixels of an image."""
    if PHASES & 1:
        _statistics_phase(
            p_raw, p_bias, p_gamma, p_beta, p_arrived, p_partial, p_affine, samples, pixels, chunks, eps,
            C, GROUPS, CHUNK_BLOCK, CHUNK_BLOCKS, CHUNK_STAGES, CHUNK_CHUNKS, PHASES == 3,
        )  # fmt: skip
    if PHASES & 2:
        blocks = tl.cdiv(pixels, BLOCK)
        for i in range(tl.program_id(0), samples // draws * blocks, tl.num_programs(0)):
            head_block(
                p_raw, p_affine, p_weight, p_head_bias, p_z, p_scale, p_out, i % blocks, i // blocks,
                pixels, C, z_draw_stride, z_image_stride, draws, C, BLOCK,
            )  # fmt: skip


def unsupported(raw: Tensor) -> str | None:
    """Why the norm of `raw` and what follows it cannot be one launch, or None.

    Raises:
        launch.UnsupportedError: `raw` has more channels than the kernels take.
    """
    programs, resident = raw.shape[0] * chunks_of(raw), _resident(raw)
    if programs > resident:
        return f"raw: {programs} programs that wait for each other, of which {resident} can run at once"
    return None


def norm_swish(
    raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, arrived: Tensor, out: Tensor
) -> None:
    """`reference.norm_swish` in one launch.

    Raises:
        launch.UnsupportedError: the kernel does not take these arguments, or `unsupported`.
    """
    chunked = _chunked(raw, bias, gamma, beta, groups, arrived)
    with _prepared(raw) as activation:
        affine_swish(raw, chunked.affine, out)
    # half of the block that the plain pass has, whose registers would leave room for fewer programs
    _run(_norm_swish_kernel, chunked, activation, BLOCK=activation[0].constants["BLOCK"] // 2)


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
    """`reference.norm_swish_pool` in one launch; errors as of `norm_swish`."""
    chunked = _chunked(raw, bias, gamma, beta, groups, arrived)
    with _prepared(raw) as activation:
        affine_swish_pool(raw, chunked.affine, embedding, out, pooled)
    _run(_norm_swish_pool_kernel, chunked, activation)


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
    """`reference.norm_swish_head` in one launch; errors as of `norm_swish`."""
    chunked = _chunked(raw, bias, gamma, beta, groups, arrived)
    with _prepared(raw) as activation:
        affine_swish_head(raw, chunked.affine, weight, head_bias, z, scale, out)
    _run(_norm_swish_head_kernel, chunked, activation)


def _resident(raw: Tensor) -> int:
    """Programs that run at once on the device of `raw`."""
    warps = launch.tile("group_statistics", raw.shape[1], raw.device).warps
    resident = RESIDENT_WARPS_16_BIT if raw.element_size() == 2 else RESIDENT_WARPS
    return launch.multiprocessors(raw.device) * resident // warps


def _chunked(raw: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int, arrived: Tensor) -> Chunked:
    chunked = Chunked.of(raw, bias, gamma, beta, groups, arrived)
    if reason := unsupported(raw):
        raise launch.UnsupportedError(reason)
    return chunked


def _prepared(raw: Tensor) -> contextlib.AbstractContextManager[list[Launch]]:
    """Check and prepare an activation's launch, without running it."""
    return launch.recorded(launch.capability(raw.device), launch.multiprocessors(raw.device))


def _run(kernel: Any, chunked: Chunked, activation: list[Launch], **constants: int) -> None:
    """The statistics and the activation as one launch of `kernel`; `constants` in place of the
    activation's.

    Triton's interpreter runs one program after another, so there one program does everything.
    """
    (after,) = activation
    raw, *others = chunked.arguments
    assert isinstance(raw, Tensor)
    samples = raw.shape[0]
    first = (raw, *others[:6], samples, *others[6:])
    given = {**dict(zip(kernel.arg_names, first, strict=False)), **after.arguments}
    programs = min(max(samples * chunked.chunks, math.prod(after.grid)), _resident(raw))
    Launch(
        kernel,
        (1 if launch.INTERPRETED else programs,),
        {name: value for name, value in given.items() if name in kernel.arg_names},
        {**chunked.constants, **after.constants, **constants, "PHASES": BOTH},
        chunked.warps,
        cooperative=True,
    ).run()
