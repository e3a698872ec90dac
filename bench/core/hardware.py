"""What the hardware could do at best, and what a candidate takes of it: ceilings, memory,
energy.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sprfast.bench.core import timing
from sprfast.config import NetworkConfig
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.system import environment

# of the operands, by precision
STORAGE = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATRIX = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices
COPIED = {"cuda": 2**31, "cpu": 2**28}  # bytes of a copy, read and written together
SHARES = ("percent_of_matmul", "percent_of_copy")  # of the matrix product's rate, and of the copy's
REPEATS = 5  # samples behind each median
ENERGY_SECONDS = 2.0  # of calls: drivers update the counter every 20 to 100 ms


def ceilings(
    model: Model, device: torch.device, precisions: Collection[str], height: int, width: int
) -> dict[str, Any]:
    """The rates of this device, measured now, and what an image asks of it.

    Args:
        device: CUDA or a CPU; a CPU's rates are those of the threads that torch has.
        precisions: names in `STORAGE`; "float32" is without TensorFloat-32. "int8", in which torch
            has no matrix product to measure against, is left out.
        height, width: of an image, in pixels.

    Returns:
        Plain JSON values: `matmul_gflop_per_s` of a square matrix product, by precision;
        `copy_gb_per_s` of a copy, of large buffers; `gflop_per_image` of all draws;
        `least_mb_per_image`, by precision, what an implementation that keeps the convolutions apart
        moves at least: the inputs and outputs of all of them for all draws, once each (see
        `convolution_values`). Weights, which are moved once a call, are neglected.

    Raises:
        InputError: a precision is not known, or not on this device.
    """
    precisions = [name for name in precisions if name != "int8"]
    allowed = [name for name in STORAGE if name != "tf32" or device.type == "cuda"]
    unknown = [name for name in precisions if name not in allowed]
    if unknown:
        raise InputError(f"precision: {unknown[0]!r} is not allowed on {device}, choose from {', '.join(allowed)}")
    size, moved = MATRIX[device.type], COPIED[device.type]
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        clocks = {name: _multiplying(size, name, device) for name in precisions}
        spreads = timing.spreads({**clocks, "copy": copying(moved, device)}, REPEATS)
    seconds = {name: spread["median"] for name, spread in spreads.items()}
    draws = model.schedule.draws
    values = draws * convolution_values(model.network, height, width)
    return {
        "matmul_gflop_per_s": {name: 2e-9 * size**3 / seconds[name] for name in precisions},
        "copy_gb_per_s": 1e-9 * moved / seconds["copy"],
        "gflop_per_image": 1e-9 * draws * flops(model.network, height, width),
        "least_mb_per_image": {name: 1e-6 * values * STORAGE[name].itemsize for name in precisions},
    }


def flops(config: NetworkConfig, height: int, width: int) -> int:
    """Floating-point operations of one pass of one image through the network, two a multiplication
    and addition.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet.ScoreUNet(config).scaled_score(torch.empty(1, 3, height, width), torch.empty(1))
    return int(counter.get_total_flops())


def convolution_values(config: NetworkConfig, height: int, width: int) -> int:
    """Values in the inputs and outputs of all convolutions of one pass of one image.

    Where each convolution is a step of its own, it reads the ones and writes the others. An
    upsampled map counts at its full size, which a convolution that upsamples within itself would
    not read.
    """
    values = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal values
        values += inputs[0].numel() + output.numel()

    with torch.device("meta"), torch.no_grad():
        network = unet.ScoreUNet(config)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        network.scaled_score(torch.empty(1, 3, height, width), torch.empty(1))
    return values


def copying(size: int, device: torch.device) -> timing.Clock:
    """A clock of copies that move `size` bytes, read and written together."""
    generator = torch.Generator(device).manual_seed(0)
    pairs = [
        torch.rand(2, math.ceil(size / 8), device=device, generator=generator)
        for _ in range(timing.working_sets(size, device))
    ]
    return timing.captured([functools.partial(target.copy_, source) for source, target in pairs], device)


def percent(ceilings: dict[str, Any], precision: str, images_per_s: float) -> dict[str, float | None]:
    """How much of the ceilings a speed is, by `SHARES`; None in int8.

    More than 100 percent of the copy's is possible where maps stay in a cache between two
    convolutions, and of the matrix product's where convolutions multiply less than direct ones, as
    Winograd's do.

    Args:
        ceilings: as `ceilings` returns them.
        precision: of the convolutions, one that was measured, or int8.
    """
    if precision == "int8":
        return dict.fromkeys(SHARES)
    of_matmul = ceilings["gflop_per_image"] / ceilings["matmul_gflop_per_s"][precision]
    of_copy = 1e-3 * ceilings["least_mb_per_image"][precision] / ceilings["copy_gb_per_s"]
    return {name: 100 * images_per_s * share for name, share in zip(SHARES, (of_matmul, of_copy), strict=True)}


def usage(call: Callable[[], object], device: torch.device, images: int, before: tuple[int, int]) -> dict[str, Any]:
    """Memory and energy of a warm call.

    Args:
        call: the candidate's; to be measured before another candidate is built, whose memory would
            count too.
        images: of one call.
        before: `held` before the candidate was built.

    Returns:
        Plain JSON values: `peak_memory_mib` as `peak_memory`, `joules_per_image`, and
        `energy_reason`, why that is null. The counter has all that the device does in the time of
        the calls, idling between them and other processes included.
    """
    peak = peak_memory(call, device, before)
    joules = reason = None
    try:
        joules = _joules(call, device) / images
    except BackendError as error:
        reason = str(error)
    return {"peak_memory_mib": peak, "joules_per_image": joules, "energy_reason": reason}


def held(device: torch.device) -> tuple[int, int]:
    """Bytes allocated and reserved on a CUDA device, after what is not used was given back; zeros
    on a CPU.
    """
    if device.type != "cuda":
        return 0, 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def peak_memory(call: Callable[[], object], device: torch.device, before: tuple[int, int]) -> dict[str, float] | None:
    """Peaks of one warm call above `before`, what was held before the candidate was built; None on
    a CPU.

    Weights, workspace and graphs count.

    Returns:
        MiB "allocated" to tensors, and "reserved" by torch for them.
    """
    if device.type != "cuda":
        return None
    held(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"allocated": (allocated - before[0]) / 2**20, "reserved": (reserved - before[1]) / 2**20}


def _multiplying(size: int, precision: str, device: torch.device) -> timing.Clock:
    generator = torch.Generator(device).manual_seed(0)
    a, b, out = torch.randn(3, size, size, device=device, generator=generator).to(STORAGE[precision])

    def product() -> None:
        with _tf32(precision == "tf32"):
            torch.mm(a, b, out=out)

    return timing.captured([product] * 2, device)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """CUDA's float32 matrix products with TensorFloat-32 or without."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _joules(call: Callable[[], object], device: torch.device) -> float:
    """Energy of one call on a CUDA device, the mean of as many as fit into `ENERGY_SECONDS`.

    Raises:
        BackendError: the energy cannot be measured here; the message says why.
    """
    if device.type != "cuda":
        raise BackendError("energy is measured on CUDA devices only")
    with environment.nvml(device) as (library, handle):
        millijoules = functools.partial(library.nvmlDeviceGetTotalEnergyConsumption, handle)
        torch.cuda.synchronize(device)
        first, started, calls = millijoules(), time.perf_counter(), 0
        while not calls or time.perf_counter() - started < ENERGY_SECONDS:
            call()
            torch.cuda.synchronize(device)
            calls += 1
        return float(millijoules() - first) / 1000 / calls
