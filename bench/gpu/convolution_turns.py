"""The network's 3x3 convolutions on its own maps: cuDNN and the experiment of `convolution`, in 16
bits and in FP8, in turns.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sprfast.backends.triton import STORAGE
from sprfast.bench.core import timing
from sprfast.bench.gpu.convolution import Convolution, cropped, merged, packed, padded, quantised, tiles
from sprfast.bench.gpu.operators import Save
from sprfast.bench.gpu.roofline import library_convolutions
from sprfast.config import GROUPS, Precision
from sprfast.formats.model import Model
from sprfast.kernels.triton import launch, trials
from sprfast.kernels.triton.self_test import TOLERANCE
from sprfast.system import environment

SCHEMA_VERSION = 1
LIBRARY, FLOAT8 = "cudnn", "float8"  # names of ways; our 16-bit way has that of the precision
# Hopper's matrix units keep about 14 bits of a sum of FP8 products, over as many as 9,216 of them.
FLOAT8_TOLERANCE = 1e-2
STATISTICS_TOLERANCE = 1e-5  # of float32 sums over a tile
SAMPLES = 8  # that the float32 truth is computed of at once, since its workspaces are large
Way = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Operands:
    """What a way convolves.

    Attributes:
        x: (N, height·(width + 1), channels in), see `convolution.padded`.
        weight: (9·channels, channels in), see `convolution.packed`.
        scale: (channels,) float32, by which sums are multiplied.
        truth: (N, channels, height, width) float32: what follows from these numbers.
        tolerance: relative RMS error that is allowed against it.
    """

    x: Tensor
    weight: Tensor
    scale: Tensor
    truth: Tensor
    tolerance: float


@torch.inference_mode()
def measure(
    model: Model,
    device: torch.device,
    batches: Sequence[int],
    height: int,
    width: int,
    precision: Precision = "bfloat16",
    *,
    seconds: float = math.inf,
    repeats: int = 5,
    kinds: int | None = None,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """A row for each shape of convolution that the network leaves to cuDNN.

    Args:
        model: its network and schedule; on the maps of random images.
        device: CUDA, or a CPU in Triton's interpreter, where times mean nothing.
        batches: numbers of images.
        precision: of cuDNN and of our 16-bit way. Triton's interpreter multiplies bfloat16 wrongly.
        seconds: after which no row is begun.
        repeats: samples behind each median.
        kinds: the first so many shapes only.
        save: called with the report after each row.

    Returns:
        The report, plain JSON values. Of a way, `relative_rms` is the error against float32 on the
        maps before any quantisation; `parity` that against float32 on the numbers that it
        multiplies. Our ways have the tile that was fastest, and statistics within their time.
    """
    deadline = time.monotonic() + seconds
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {"height": height, "width": width, "draws": model.schedule.draws},
        "precision": precision,
        "batches": [],
    }
    for images in batches:
        rows: list[dict[str, Any]] = []
        report["batches"].append({"images": images, "convolutions": rows})
        calls = library_convolutions(model, device, images, height, width, precision)
        found = [trials.kind(call.args[:2]) for call in calls]
        for kind in list(dict.fromkeys(found))[:kinds]:
            call = calls[found.index(kind)]
            shapes = {"input": list(call.args[0].shape), "weight": list(call.args[1].shape)}
            rows.append({**shapes, "calls": found.count(kind), **_row(call, device, precision, repeats, deadline)})
            save(report)
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """One sentence for each way that has no speed, and for each tile that is wrong."""
    found = []
    for batch in report["batches"]:
        for row in batch["convolutions"]:
            for name, way in row["ways"].items():
                told = f"{batch['images']} images, {row['input']} by {row['weight']}, {name}"
                if way["status"] != "measured":
                    found.append(f"{told}: {way['reason']}")
                found += [f"{told}, tile {tile}: {reason}" for tile, reason in way.get("failed", {}).items()]
    return found


def _row(
    call: functools.partial[Tensor], device: torch.device, precision: Precision, repeats: int, deadline: float
) -> dict[str, Any]:
    x, weight = call.args[:2]
    names = (LIBRARY, precision, FLOAT8)
    if time.monotonic() > deadline:
        return {"ways": {name: {"status": "not measured", "reason": "out of time"} for name in names}}
    truth = _exact(x, weight)
    ways: dict[str, Way] = {LIBRARY: {"relative_rms": trials.relative_rms(call(), truth)}}
    clocks = {LIBRARY: timing.captured([call] * 2, device)}
    for name, prepare in ((precision, _plain), (FLOAT8, _quantised)):
        try:
            given = prepare(x, weight, truth)
            ways[name], clocks[name] = _fastest(given, STORAGE[precision], (x.shape[2], x.shape[3]), truth, device)
        except Exception as error:  # the other ways are still worth having
            ways[name] = {"status": "failed", "reason": timing.failure(error)}
    times = timing.spreads(clocks, repeats)
    work = 2 * weight.numel() * x.shape[0] * x.shape[2] * x.shape[3]
    for name, spread in times.items():
        ways[name] |= {
            "status": "measured",
            "reason": None,
            "time_us": {key: 1e6 * value for key, value in spread.items()},
            "tflop_per_s": 1e-12 * work / spread["median"],
            "x_library": times[LIBRARY]["median"] / spread["median"],
        }
    return {"ways": ways}


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        return torch.cat([F.conv2d(part.float(), weight.float(), padding=1) for part in torch.split(x, SAMPLES)])


def _plain(x: Tensor, weight: Tensor, truth: Tensor) -> Operands:
    scale = torch.ones(len(weight), device=x.device)
    return Operands(padded(x), packed(weight), scale, truth, TOLERANCE[x.dtype])


def _quantised(x: Tensor, weight: Tensor, truth: Tensor) -> Operands:
    """A scale for the whole map, and one for each output channel of the weights."""
    x8, of_map = quantised(padded(x), (0, 1, 2))
    w8, of_channels = quantised(weight, (1, 2, 3))
    exact = _exact(of_map * cropped(x8.float(), *x.shape[2:]), of_channels * w8.float())
    return Operands(x8, packed(w8), (of_map * of_channels).flatten(), exact, FLOAT8_TOLERANCE)


def _fastest(
    given: Operands, storage: torch.dtype, size: tuple[int, int], truth: Tensor, device: torch.device
) -> tuple[Way, timing.Clock]:
    """The fastest tile, with its errors and what failed of the other tiles, and its clock.

    Raises:
        ValueError: no tile computes what it should.
    """
    bias = torch.linspace(-1.0, 1.0, len(given.scale), device=device)
    measured: list[tuple[float, Way, timing.Clock]] = []
    failed: dict[str, str] = {}
    for tile in tiles(len(given.scale), given.x.shape[1], launch.capability(device)):
        name = f"{tile.positions}x{tile.channels}"
        try:
            each = Convolution.of(given.x, given.weight, given.scale, bias, size, GROUPS, tile, storage)
            each.out.fill_(torch.nan)
            each.run()
            parity = _parity(each, given.truth, bias, size)
            if not (parity["out"] <= given.tolerance and parity["statistics"] <= STATISTICS_TOLERANCE):
                raise ValueError(f"computes something else: {parity}")
            clock = timing.captured([each.run] * 2, device)
            error = trials.relative_rms(cropped(each.out, *size), truth)
            measured.append((clock(), {"tile": name, "parity": parity, "relative_rms": error}, clock))
        except Exception as fault:  # the other tiles are still worth having
            failed[name] = timing.failure(fault)
    if not measured:
        raise ValueError(f"no tile can be used: {failed}")
    _, way, clock = min(measured, key=lambda entry: entry[0])
    tried = {each["tile"]: 1e6 * seconds for seconds, each, _ in measured}
    return way | {"tiles_us": tried, "failed": failed}, clock


def _parity(each: Convolution, truth: Tensor, bias: Tensor, size: tuple[int, int]) -> dict[str, float]:
    """Relative RMS errors: of the map with its zeros, against what follows from its operands; of
    mean and variance, against those of the map as stored.
    """
    stored = cropped(each.out, *size).double() + bias[:, None, None]
    groups = stored.reshape(len(stored), GROUPS, -1)
    direct = torch.stack([groups.mean(2), groups.var(2, unbiased=False)])
    return {
        "out": trials.relative_rms(each.out, padded(truth)),
        "statistics": trials.relative_rms(torch.stack(merged(each.partial)), direct),
    }
