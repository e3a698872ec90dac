"""Time, rate and error of every layer of backend cpu, each measured where it stands in the
network.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import statistics
import time
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Column
from torch import Tensor

from sprfast.backends.sessions.cpu import CpuSession
from sprfast.backends.sessions.session import Floats
from sprfast.bench.core import tables
from sprfast.bench.core.sweeps import plural
from sprfast.bench.core.work import random_images
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library, reference
from sprfast.kernels.cpu.reference import Kind, Source
from sprfast.lowering.fold import fold
from sprfast.method import noise
from sprfast.method.anomaly_map import smoothing_matrix
from sprfast.method.folded import Array, ConvNorm, FoldedModel
from sprfast.system import environment

SCHEMA_VERSION = 2
CALLS = 5  # at least
CPU = torch.device("cpu")

Exact = dict[int, tuple[Tensor, Tensor]]  # raw output and affine in float64, by the address of the float32 output


@dataclasses.dataclass(frozen=True)
class Layer:
    """An operator of the network."""

    name: str  # of a convolution its block and its place there, such as "down1.first"
    channels_in: int
    channels_out: int
    height: int  # pixels of the output
    width: int


def measure(model: Model, size: int, images: int, seconds: float, precision: Precision = "float32") -> dict[str, Any]:
    """Calls of backend cpu with a clock around every operator.

    Errors are measured in a call of their own, against float64 arithmetic twice: on the inputs that
    the layer had, so without what the layers before it got wrong, and from the image on.

    Args:
        model: what is computed.
        size: pixels on both sides of the images.
        images: of a call; with many draws, they go through the network in several passes, whose
            times are added.
        seconds: for the calls; `CALLS` are made whatever they cost.
        precision: of the 3x3 convolutions but the first.

    Returns:
        The report, plain JSON values. Of a row, `gflop` counts a direct convolution for all draws
        of all images (null where there is none), `gflop_per_s` is that over the median time `ms`,
        `percent` the share of `call_ms`, the median time of a call; `relative_rms` is the error of
        the layer alone, `accumulated_rms` that of all convolutions so far (null for what is no 3x3
        convolution). In `total`, `percent` is how much of a call all layers together are.

    Raises:
        BackendError: backend cpu cannot run here in this precision.
    """
    plan = fold(model)
    session = CpuSession(plan, torch.get_num_threads, precision)
    x = random_images(images, size).pixels.numpy()
    z = noise.stacked(model.schedule, size, size, model.noise_seed)
    layers, errors = _errors(session, plan, x[:1], z)
    calls, wholes = _times(session, len(layers), x, z, seconds)
    samples = images * plan.draws
    gflop = [*(_gflop(layer, 9, samples) for layer in layers[:-2]), _gflop(layers[-2], 1, samples), None]
    call = statistics.median(wholes)
    rows = [
        {**dataclasses.asdict(layer), **_speed(median, count, call), "relative_rms": alone, "accumulated_rms": so_far}
        for layer, median, count, (alone, so_far) in zip(
            layers, np.median(calls, axis=0).tolist(), gflop, errors, strict=True
        )
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "precision": precision,
        "instruction_set": library.instruction_set(precision),
        "environment": environment.describe(CPU),
        "network": model.network.to_json(),
        "input": {"images": images, "draws": plan.draws, "height": size, "width": size},
        "calls": len(wholes),
        "call_ms": 1e3 * call,
        "rows": rows,
        "total": _speed(statistics.median(calls.sum(axis=1).tolist()), sum(filter(None, gflop)), call),
    }


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal; fits 80 columns."""
    given, machine, total = report["input"], report["environment"], report["total"]
    work = f"{plural(given['draws'], 'draw')}, {plural(given['images'], 'image')} a call"
    headings = ("size", "channels", "ms", "%", "GFLOP/s", "error\nalone", "error\nso far")
    title = f"{given['height']}x{given['width']}, {work}"
    result = tables.empty(headings, title, first=Column("layer", no_wrap=True))
    for row in report["rows"]:
        shape = (f"{row['height']}x{row['width']}", f"{row['channels_in']}>{row['channels_out']}")
        errors = (tables.cell(row[key], ".1e") for key in ("relative_rms", "accumulated_rms"))
        result.add_row(row["name"], *shape, *_cells(row), *errors)
    result.add_section()
    result.add_row("total", "", "", *_cells(total), "", "")
    instructions = f"{report['precision']} on {report['instruction_set']}"
    threads = plural(machine["torch_threads"], "thread")
    one = f"one takes {report['call_ms']:.4g} ms, of which the layers are {total['percent']:.1f} %"
    return Group(
        result,
        f"{machine['cpu']}, {instructions}, {threads}, load {machine['load_average']} at the end",
        f"ms: median of {report['calls']} calls; {one}",
        "GFLOP/s: of direct convolutions, which the kernels do not need in full",
        "errors: relative RMS against float64, on the layer's own inputs, and from the image on",
    )


def _times(session: CpuSession, count: int, x: Floats, z: Floats, seconds: float) -> tuple[Floats, list[float]]:
    """Seconds of every layer, (calls, count), and of every call."""
    spent: list[float] = []

    def call() -> float:
        spent.clear()
        started = time.perf_counter()
        session.maps(x, z, lambda layer: spent.append(layer.seconds))
        return time.perf_counter() - started

    call()
    calls: list[Floats] = []
    wholes: list[float] = []
    begun = time.perf_counter()
    while len(wholes) < CALLS or time.perf_counter() - begun + wholes[-1] < seconds:
        wholes.append(call())
        calls.append(np.reshape(spent, (-1, count)).sum(axis=0))  # a row for each pass
    return np.stack(calls), wholes


@torch.inference_mode()
def _errors(
    session: CpuSession, plan: FoldedModel, x: Floats, z: Floats
) -> tuple[list[Layer], list[tuple[float, float | None]]]:
    """The layers, and their relative RMS errors for one image, alone and accumulated: of
    convolutions on the first draw, of the rest on all.
    """
    layers: list[Layer] = []
    found: list[tuple[float, float | None]] = []
    exact: Exact = {}
    errors = torch.empty(0)

    def compare(given: library.Layer) -> None:
        nonlocal errors
        layer = Layer(given.name.decode(), given.channels_in, given.channels_out, given.height, given.width)
        layers.append(layer)
        if layer.name == "head":
            source = _source(given.sources[0], plan.draws, {})
            constants = (plan.head_weight, plan.head_bias, z[:, None], plan.scale)
            expected = reference.head(source.raw, source.affine, *map(_double, constants))
            errors = _read(given.output, *expected.shape)
            found.append((_relative_rms(errors, expected), None))
        elif layer.name == "anomaly map":
            expected = reference.anomaly_map(
                errors, *(_double(smoothing_matrix(side, plan.window)) for side in x.shape[2:])
            )
            found.append((_relative_rms(_read(given.output, *expected.shape), expected), None))
        else:
            raw = _read(given.output, 1, layer.height, layer.width, layer.channels_out)
            alone, accumulated = (_convolution(plan, given, x, z, known) for known in ({}, exact))
            found.append((_relative_rms(raw, alone[0]), _relative_rms(raw, accumulated[0])))
            exact[given.output] = accumulated

    session.maps(x, z, compare)
    return layers, found


def _convolution(plan: FoldedModel, given: library.Layer, x: Floats, z: Floats, known: Exact) -> tuple[Tensor, Tensor]:
    """Raw output and affine of the first draw, of what is in `known` where that has the source."""
    block, place = given.name.decode().split(".")
    norm: ConvNorm[Array] = getattr(plan.blocks[block], place)
    weight, bias, gamma, beta = (_double(array) for array in (norm.weight, norm.bias, norm.gamma, norm.beta))
    if not given.sources_count:
        image, draw, std = (_double(array) for array in (x, z[:1, None], plan.std[:1]))
        packed = reference.pack_perturb(weight)
        return reference.perturb_conv3x3(image, draw, std, packed, bias, gamma, beta, plan.groups)
    sources = [_source(source, 1, known) for source in given.sources[: given.sources_count]]
    return reference.conv3x3(sources, weight, bias, gamma, beta, plan.groups, given.height, given.width)


def _source(given: library.Source, samples: int, known: Exact) -> Source:
    """The first samples of what an operator has read, or what is known of it."""
    raw, affine = known.get(given.raw) or (
        _read(given.raw, samples, given.height, given.width, given.channels),
        _read(given.affine, samples, 2, given.channels),
    )
    embedding = _read(given.embedding, samples, given.channels) if given.embedding else None
    return Source(raw, affine, embedding, get_args(Kind)[given.kind])


def _read(address: int, *shape: int) -> Tensor:
    """The floats in the memory of the network."""
    return _double(np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(address)).reshape(shape))


def _relative_rms(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def _double(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


def _gflop(layer: Layer, taps: int, samples: int) -> float:
    return 2e-9 * taps * layer.channels_in * layer.channels_out * layer.height * layer.width * samples


def _speed(seconds: float, gflop: float | None, call: float) -> dict[str, float | None]:
    rate = None if gflop is None else gflop / seconds
    return {"gflop": gflop, "ms": 1e3 * seconds, "percent": 100 * seconds / call, "gflop_per_s": rate}


def _cells(row: dict[str, Any]) -> list[str]:
    return [tables.cell(row[key], spec) for key, spec in (("ms", ".3g"), ("percent", ".1f"), ("gflop_per_s", ".4g"))]
