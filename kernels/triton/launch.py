"""How a kernel is launched: block sizes by shape class and architecture, and the one place that
launches.

`TABLE` is chosen by reading the compiler's report (`sprfast kernels`: no spills, 128-bit accesses),
not by a search: nothing is tuned at run time. A block never depends on the number of samples, so a
sample gives the same bits alone and in a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: numpy on the CPU, for checks


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one program works on."""

    pixels: int  # of one block
    warps: int  # 32 threads each
    blocks: int = 1  # that one program goes through; for the up-sampling kernel, input rows


def _tiles(values: int, blocks: int = 1, channels: int = 1024) -> dict[int, Tile]:
    """Blocks of so many values a thread, for each power of two from 32 up to `channels`."""
    widths = (32, 64, 128, 256, 512, 1024)
    return {width: Tile(values * 128 // width, 4, blocks) for width in widths if width <= channels}


# Channels up to ... : tile. Chosen from what the compiler reports for sm_80 to sm_100
# (`compile_report`), by these rules: blocks of [pixels, channels] of 64 values a thread for the
# plain pass, 32 for the head, 16 for statistics, for the 2x2 windows, which come four at a time,
# and for the one-pass norm, 8 for up-sampling, which keeps two rows. Where registers spilled for
# any architecture and precision, the block was halved. At least 12 warps then fit on a
# multiprocessor, 8 of the first convolution.
TABLE: dict[str, dict[int, Tile]] = {
    "noise_conv3x3": {32: Tile(128, 4), 64: Tile(128, 4), 128: Tile(32, 4)},
    "perturb_conv3x3": {32: Tile(128, 4), 64: Tile(64, 4), 128: Tile(32, 4)},
    "group_statistics": _tiles(16, blocks=8),
    "group_affine": {1024: Tile(32, 4)},  # pixels: chunks a block
    "group_norm_swish": {1024: Tile(64, 4)},  # of 32 channels or one group, whichever is more
    "affine_swish": _tiles(64),
    "affine_swish_pool": _tiles(16),
    "affine_swish_up2": _tiles(8, blocks=8),
    "affine_swish_head": _tiles(32, channels=128),
    "matmul": {1024: Tile(32, 4)},  # a square block of the map; channels do not matter
}
# Where an architecture wants another tile than TABLE has: (kernel, compute capability as 80, 90,
# ...).
ARCHITECTURES: dict[tuple[str, int], dict[int, Tile]] = {}

LOADS_IN_FLIGHT = 8  # of feature maps, 128 bits each, a thread, where a loop reads ahead

MAX_CHANNELS = max(TABLE["affine_swish"])
MAX_SAMPLES = 65535  # of a CUDA grid's second axis
STORAGE = (torch.float32, torch.bfloat16, torch.float16)


class UnsupportedError(ValueError):
    """An operator was given what its kernel cannot take; the message says what it can."""


class MissingConfigurationError(RuntimeError):
    """A kernel would have to be compiled while a CUDA graph is being captured."""


@dataclasses.dataclass(frozen=True, eq=False)
class Launch:
    """One launch of one kernel."""

    kernel: Any  # a triton.jit function
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float]
    constants: dict[str, Any]
    warps: int
    cooperative: bool = False  # all programs run at once, since they wait for each other

    @property
    def name(self) -> str:
        """Name of the kernel, without underscores."""
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")

    @property
    def configuration(self) -> tuple[Any, ...]:
        """What a compiled kernel depends on (and no less): types, and every number with its
        divisibility.
        """
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        kinds = [(v.dtype, v.data_ptr() % 16 == 0) if isinstance(v, Tensor) else v for v in self.arguments.values()]
        return (self.name, device, *kinds, *self.constants.values(), self.warps, self.cooperative)

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides arguments and constants."""
        return {"num_warps": self.warps, "launch_cooperative_grid": self.cooperative}

    def run(self) -> Any:
        """Launch on the current stream, or record.

        Returns:
            The compiled kernel; None in the interpreter and where it was recorded.

        Raises:
            MissingConfigurationError: the stream is being captured and this configuration has not
                run before.
        """
        if _recorder.launches is not None:
            _recorder.launches.append(self)
            return None
        configuration = self.configuration
        if configuration not in _warm and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise MissingConfigurationError(f"{self.describe()}: not compiled before the capture of a CUDA graph")
        with _interpreter if INTERPRETED else contextlib.nullcontext():
            compiled = self.kernel[self.grid](**self.arguments, **self.constants, **self.options)
        _warm.add(configuration)
        return compiled

    def describe(self) -> str:
        """Kernel, shapes and configuration, for a message."""
        shapes = [
            f"{n} {str(v.dtype).removeprefix('torch.')}{tuple(v.shape)}"
            for n, v in self.arguments.items()
            if isinstance(v, Tensor)
        ]
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.name}({', '.join(shapes)}; {constants}, warps={self.warps})"


def run(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Sequence[Tensor | int | float],
    constants: dict[str, Any],
    warps: int,
    cooperative: bool = False,
) -> None:
    """Launch a kernel on the current stream: `Launch.run` of arguments in the order of its
    parameters.
    """
    Launch(kernel, grid, dict(zip(kernel.arg_names, arguments, strict=False)), constants, warps, cooperative).run()


class _Recorder(threading.local):
    launches: list[Launch] | None = None
    capability: int | None = None
    multiprocessors: int | None = None


_recorder = _Recorder()
_warm: set[tuple[Any, ...]] = set()
_interpreter = threading.Lock()  # the interpreter keeps the program's index in globals


@contextlib.contextmanager
def recorded(capability: int, multiprocessors: int | None = None) -> Iterator[list[Launch]]:
    """Collect the launches of this thread for a GPU of this compute capability (80, 90, ...) and
    with so many multiprocessors, or as many as `multiprocessors` says, instead of running them.

    Operators then take tensors on the meta device.
    """
    outer = _recorder.launches, _recorder.capability, _recorder.multiprocessors
    launches: list[Launch] = []
    _recorder.launches, _recorder.capability, _recorder.multiprocessors = launches, capability, multiprocessors
    try:
        yield launches
    finally:
        _recorder.launches, _recorder.capability, _recorder.multiprocessors = outer


def capability(device: torch.device) -> int:
    """Compute capability of a CUDA device as 80, 90, ...; 90 for another device."""
    if _recorder.capability is not None:
        return _recorder.capability
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; 132, as an H100 and an H200 have, for another device."""
    if _recorder.multiprocessors is not None:
        return _recorder.multiprocessors
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 132


def tile(kernel: str, channels: int, device: torch.device) -> Tile:
    """The tile for this many channels on this device.

    Raises:
        UnsupportedError: the table has no row for so many channels.
    """
    table = ARCHITECTURES.get((kernel, capability(device)), TABLE[kernel])
    for limit, chosen in table.items():
        if channels <= limit:
            return chosen
    raise UnsupportedError(f"{kernel}: {channels} channels, at most {max(table)} are supported")


def stages(raw: Tensor, tile: Tile, values: int) -> int:
    """Iterations of a loop in flight at once, the one at work included, so that a thread has
    `LOADS_IN_FLIGHT`; 1, nothing read ahead, where an iteration alone loads more.

    Args:
        raw: the feature map that the loop reads.
        tile: of the kernel.
        values: that an iteration loads for each of the tile's pixels.
    """
    loads = max(tile.pixels * values * raw.element_size() // (16 * 32 * tile.warps), 1)
    return 1 + LOADS_IN_FLIGHT // loads


def require_map(name: str, x: Tensor) -> None:
    """Raise `UnsupportedError` unless kernels take `x` as a feature map.

    Its pixels must lie one after another at a fixed distance, each with its channels side by side:
    a channels-last tensor, or a slice of the channels of one.
    """
    if x.dim() != 4 or x.dtype not in STORAGE:
        raise UnsupportedError(
            f"{name}: {x.dtype} with {x.dim()} dimensions, expected (N, C, H, W) in float32, bfloat16 or float16"
        )
    samples, channels, height, width = x.shape
    if min(x.shape) < 1 or samples > MAX_SAMPLES:
        raise UnsupportedError(
            f"{name}: shape {tuple(x.shape)}, expected 1 to {MAX_SAMPLES} samples of at least one pixel"
        )
    if channels & (channels - 1) or not 16 <= channels <= MAX_CHANNELS:
        raise UnsupportedError(f"{name}: {channels} channels, expected a power of two from 16 to {MAX_CHANNELS}")
    pixel = pixel_stride(x)
    expected = (height * width * pixel, 1, width * pixel, pixel)
    if any(size > 1 and got != want for size, got, want in zip(x.shape, x.stride(), expected, strict=True)):
        raise UnsupportedError(
            f"{name}: strides {x.stride()}, expected channels-last ({expected}), or a slice of the channels of "
            f"such a tensor"
        )
    if pixel % 8 or x.storage_offset() % 8:
        raise UnsupportedError(
            f"{name}: pixels {pixel} elements apart from {x.storage_offset()} on, expected multiples of 8"
        )
    if height * width * pixel >= 2**31 or max(height, width) >= 2**15:
        raise UnsupportedError(
            f"{name}: {height}x{width} pixels, {pixel} elements apart, are more than 32-bit offsets within a "
            f"sample reach"
        )


def require_normalised(name: str, x: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> None:
    """Raise `UnsupportedError` unless `x` is a feature map, no slice of one, and these normalise
    its channels.
    """
    require_map(name, x)
    channels = x.shape[1]
    if groups < 1 or channels % groups or groups & (groups - 1):
        raise UnsupportedError(f"{groups} groups of {channels} channels, expected a power of two that divides them")
    require_whole(name, x)
    require_parameters((channels,), bias=bias, gamma=gamma, beta=beta)


def require_whole(name: str, x: Tensor) -> None:
    """Raise `UnsupportedError` if the feature map `x` is a slice of one."""
    pixel, channels = pixel_stride(x), x.shape[1]
    if pixel != channels:
        raise UnsupportedError(
            f"{name}: pixels {pixel} elements apart, expected {channels}: a whole tensor, not a slice of one"
        )


def require_output(name: str, out: Tensor, raw: Tensor, *shapes: tuple[int, ...]) -> None:
    """Raise `UnsupportedError` unless `out` is a map like `raw` of one of these shapes; an empty
    one may lie anyhow.
    """
    if out.dtype != raw.dtype or tuple(out.shape) not in shapes:
        raise UnsupportedError(
            f"{name}: {out.dtype} {tuple(out.shape)}, expected {raw.dtype} {' or '.join(map(str, shapes))}"
        )
    if out.numel():
        require_map(name, out)


def require_parameters(shape: tuple[int, ...], **parameters: Tensor) -> None:
    """Raise `UnsupportedError` unless all of these are contiguous float32 of this shape."""
    for name, x in parameters.items():
        if x.dtype != torch.float32 or tuple(x.shape) != shape or not x.is_contiguous():
            raise UnsupportedError(
                f"{name}: {x.dtype} {tuple(x.shape)} with strides {x.stride()}, expected contiguous float32 {shape}"
            )


def require_draws(name: str, x: Tensor, samples: int, *row: int) -> int:
    """Raise `UnsupportedError` unless `x` is contiguous float32 (D, *row), D a divisor of the
    samples; D.
    """
    draws = x.shape[0] if x.dim() else 0
    if draws < 1 or samples % draws:
        raise UnsupportedError(
            f"{name}: shape {tuple(x.shape)}, expected a row for each draw, a divisor of the {samples} samples"
        )
    require_parameters((draws, *row), **{name: x})
    return draws


def require_counters(name: str, x: Tensor, samples: int) -> None:
    """Raise `UnsupportedError` unless `x` is contiguous int32 (samples + 2,)."""
    if x.dtype != torch.int32 or tuple(x.shape) != (samples + 2,) or not x.is_contiguous():
        raise UnsupportedError(
            f"{name}: {x.dtype} {tuple(x.shape)} with strides {x.stride()}, expected contiguous int32 ({samples + 2},)"
        )


def require_noise(z: Tensor, draws: int, images: int, height: int, width: int) -> None:
    """Raise `UnsupportedError` unless `z` is float32 (draws, 1 or images, 3, height, width), each
    image contiguous, and offsets between draws stay within 32 bits.
    """
    if z.shape not in ((draws, 1, 3, height, width), (draws, images, 3, height, width)):
        raise UnsupportedError(f"z: shape {tuple(z.shape)}, expected ({draws}, 1 or {images}, 3, {height}, {width})")
    if z.dtype != torch.float32 or z.stride()[-3:] != (height * width, width, 1):
        raise UnsupportedError(
            f"z: {z.dtype} with strides {z.stride()}, expected float32 with contiguous (3, {height}, {width}) images"
        )
    if draws * z.stride(0) >= 2**31:
        raise UnsupportedError(f"z: {draws} draws, {z.stride(0)} elements apart, are more than 32-bit offsets reach")


def noise_strides(z: Tensor) -> tuple[int, int]:
    """Elements from one draw to the next, and from one image to the next: 0 where they share
    their noise.
    """
    return z.stride(0), z.stride(1) if z.shape[1] > 1 else 0


def pixel_stride(x: Tensor) -> int:
    """Elements from one pixel of a feature map to the next."""
    if x.shape[3] > 1:
        return x.stride(3)
    if x.shape[2] > 1:
        return x.stride(2)
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]
