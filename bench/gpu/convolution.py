"""An experiment: a 3x3 convolution of our own as a matrix product, with GroupNorm's statistics in
its epilogue. The engine does not use it; `convolution_turns` measures it beside cuDNN.

A feature map is stored as (N, height·(width + 1), channels): rows of pixels one after another, with
one pixel of zeros behind each. That pixel is the padding to the right of its row and to the left of
the next one. So each of the nine taps is an offset in the flat map, and a block of neighbouring
positions is one rectangle that the tensor memory accelerator copies to shared memory. Above the
first and below the last row of a sample it fills in zeros by itself.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sprfast.kernels.triton.common import merge_channels, sample_offset
from sprfast.kernels.triton.launch import Launch

FLOAT8 = torch.float8_e4m3fn
SWIZZLED_BYTES = 128  # of a position that a step takes: the widest row of the accelerator's swizzle
SHARED_BYTES = 112 << 10  # of a block, so that two fit on a multiprocessor of an H100
SUMS = 64  # of a thread; twice as many leave registers enough for the epilogue on Hopper alone
SPREAD = 1.15  # times as many positions as with the tile that has the fewest beyond a sample's end


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one program computes."""

    positions: int
    channels: int


# For each map the fastest is taken, as cuDNN's search does. A larger tile reads less for each
# product; a smaller one gives a small map more programs.
TILES = (Tile(128, 32), Tile(64, 128), Tile(128, 64), Tile(128, 128), Tile(256, 64), Tile(256, 128), Tile(128, 256))


@triton.jit(do_not_specialize=["height", "width", "channels", "steps", "tiles"])  # type: ignore[untyped-decorator]
def _convolution_kernel(  # type: ignore[no-untyped-def]
    x,  # descriptor of [N, height·(width + 1), channels in], loaded as [1, BLOCK, STEP]
    weight,  # descriptor of [9·channels, channels in], loaded as [C, STEP]
    out,  # descriptor of [N, height·(width + 1), channels], stored as [1, BLOCK, C]
    p_scale,  # [channels] float32
    p_bias,  # [channels] float32
    p_partial,  # [N, tiles, 3, groups] float32, written
    height,
    width,
    channels,
    steps,
    tiles,
    C: tl.constexpr,  # of this program: whole groups
    GROUPS: tl.constexpr,  # of this program
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One block of positions of one sample: convolved, scaled, rounded and stored with zeros
    between the rows; then mean, M2 and count of each group of what was stored, with the bias.
    """
    i_c, i_tile, i_n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = i_tile * BLOCK
    pitch = width + 1
    b_sum = tl.zeros([BLOCK, C], tl.float32)
    for i in tl.range(0, 9 * steps, num_stages=STAGES):
        tap, i_k = i % 9, i // 9 * STEP
        shift = (tap // 3 - 1) * pitch + tap % 3 - 1
        b_x = x.load([i_n, first + shift, i_k]).reshape([BLOCK, STEP])
        b_weight = weight.load([tap * channels + i_c * C, i_k])
        b_sum = tl.dot(b_x, b_weight.T, b_sum)

    o_c = i_c * C + tl.arange(0, C)
    o_p = first + tl.arange(0, BLOCK)
    m_pixel = (o_p < height * pitch) & (o_p % pitch < width)
    m_p = m_pixel[:, None]
    b_out = tl.where(m_p, b_sum * tl.load(p_scale + o_c)[None, :], 0.0).to(out.dtype)
    out.store([i_n, first, i_c * C], b_out.reshape([1, BLOCK, C]))

    count = tl.sum(m_pixel.to(tl.int32), axis=0).to(tl.float32)
    b_value = tl.where(m_p, b_out.to(tl.float32) + tl.load(p_bias + o_c)[None, :], 0.0)
    b_mean = tl.sum(b_value, axis=0) / tl.maximum(count, 1.0)  # a tile may have zeros alone
    b_off = tl.where(m_p, b_value - b_mean[None, :], 0.0)
    b_m2 = tl.sum(b_off * b_off, axis=0)
    b_mean, b_m2 = merge_channels(b_mean, b_m2, count, C, GROUPS)
    groups = tl.num_programs(0) * GROUPS
    p_slot = p_partial + sample_offset(i_n, tiles * 3 * groups) + i_tile * 3 * groups
    p_slot += i_c * GROUPS + tl.arange(0, GROUPS)
    tl.store(p_slot, b_mean)
    tl.store(p_slot + groups, b_m2)
    tl.store(p_slot + 2 * groups, tl.zeros([GROUPS], tl.float32) + count * (C // GROUPS))


def padded(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H·(W + 1), C): the layout of the kernel's maps."""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1)).flatten(1, 2).contiguous()


def cropped(flat: Tensor, height: int, width: int) -> Tensor:
    """The pixels of a map in the kernel's layout, as a view (N, C, H, W)."""
    return flat.view(len(flat), height, width + 1, -1)[:, :, :width].permute(0, 3, 1, 2)


def packed(weight: Tensor) -> Tensor:
    """(channels, channels in, 3, 3) to (9·channels, channels in), tap by tap: the matrix units take
    8-bit operands only with the summed axis side by side.
    """
    return weight.permute(2, 3, 0, 1).flatten(0, 2).contiguous()


def quantised(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`values` in FP8 (e4m3), and the float32 scales that they are to be multiplied by.

    Args:
        values: any shape.
        dims: that share a scale; the largest magnitude over them becomes the largest FP8 number.
    """
    scale = values.abs().amax(dims, keepdim=True).float().clamp_min(1e-12) / torch.finfo(FLOAT8).max
    return (values.float() / scale).to(FLOAT8), scale


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
    """A call of the kernel with its memory; maps and weights as `padded` and `packed` give them.

    Attributes:
        launch: of the kernel.
        out: (N, height·(width + 1), channels), written.
        partial: (N, tiles, 3, groups) float32, written: mean, M2 and count of each tile's values
            with the bias.
    """

    launch: Launch
    out: Tensor
    partial: Tensor

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        size: tuple[int, int],
        groups: int,
        tile: Tile,
        storage: torch.dtype,
    ) -> Convolution:
        """Prepare a call, with new memory for what it writes.

        Args:
            x: (N, height·(width + 1), channels in), 16 bits or FP8; channels are a power of two
                from 32 up.
            weight: (9·channels, channels in) in the same type.
            scale: (channels,) float32, by which sums are multiplied.
            bias: (channels,) float32, of the statistics; it is not in `out`.
            size: height and width.
            groups: of the statistics.
            tile: one of `tiles`.
            storage: of `out`.
        """
        samples, positions, given = x.shape
        channels, count = weight.shape[0] // 9, triton.cdiv(positions, tile.positions)
        out = torch.empty(samples, positions, channels, dtype=storage, device=x.device)
        partial = torch.empty(samples, count, 3, groups, dtype=torch.float32, device=x.device)
        step = min(given, SWIZZLED_BYTES // x.element_size())
        staged = (tile.positions + tile.channels) * step * x.element_size()
        arguments = {
            "x": TensorDescriptor.from_tensor(x, [1, tile.positions, step]),
            "weight": TensorDescriptor.from_tensor(weight, [tile.channels, step]),
            "out": TensorDescriptor.from_tensor(out, [1, tile.positions, tile.channels]),
            **{"p_scale": scale, "p_bias": bias, "p_partial": partial},
            **{"height": size[0], "width": size[1], "channels": channels, "steps": given // step, "tiles": count},
        }
        constants = {
            "C": tile.channels,
            "GROUPS": tile.channels * groups // channels,
            "BLOCK": tile.positions,
            "STEP": step,
            "STAGES": max(3, min(4, SHARED_BYTES // staged)),
        }
        warps = min(max(4, tile.positions * tile.channels // (32 * SUMS)), 8)
        grid = (channels // tile.channels, count, samples)
        return cls(Launch(_convolution_kernel, grid, arguments, constants, warps), out, partial)

    def run(self) -> None:
        """Launch on the current stream."""
        each = self.launch
        each.kernel[each.grid](**each.arguments, **each.constants, **each.options)


def tiles(channels: int, positions: int, capability: int) -> list[Tile]:
    """Those of `TILES` that are worth a trial for a map of so many channels, and positions of a
    sample, on a GPU of this compute capability (90, 100, ...); none for less than 32 channels.
    """
    most = 8 * 32 * SUMS * (2 if capability == 90 else 1)
    fitting = [
        tile
        for tile in TILES
        if min(channels, 128) <= tile.channels <= channels and tile.positions * tile.channels <= most
    ]
    computed = [triton.cdiv(positions, tile.positions) * tile.positions for tile in fitting]
    return [tile for tile, count in zip(fitting, computed, strict=True) if count <= SPREAD * min(computed)]


def merged(partial: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each sample's groups, (N, groups) float64, from `partial`."""
    means, m2, counts = partial.double().unbind(2)
    total = counts.sum(1)
    mean = (counts * means).sum(1) / total
    return mean, (m2 + counts * (means - mean[:, None]).square()).sum(1) / total
