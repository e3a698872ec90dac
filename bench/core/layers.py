"""Time, rate and error of every layer of backend cpu, each measured where it stands in the
network.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Column
from torch import Tensor

from sprfast.backends.sessions.cpu import CpuSession, Layer
from sprfast.bench.core import tables
from sprfast.bench.core.sweeps import plural
from sprfast.bench.core.work import random_images
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library, operators, reference
from sprfast.kernels.cpu.operators import Floats
from sprfast.lowering.fold import fold
from sprfast.method import noise
from sprfast.method.anomaly_map import MAP_SIZE
from sprfast.method.folded import Array, ConvNorm
from sprfast.system import environment

SCHEMA_VERSION = 1
CALLS = 5  # at least
CPU = torch.device("cpu")

_WRITTEN = {"head": -2, "anomaly_map": -3}  # what an operator writes, among its arguments; those before are read
_WATCHED = ("perturb_conv3x3", "conv3x3", *_WRITTEN)

Operator = Callable[..., None]
Exact = dict[int, tuple[Tensor, Tensor]]  # raw output and affine in float64, by the address of the float32 output


def measure(model: Model, size: int, images: int, seconds: float) -> dict[str, Any]:
    """Calls of backend cpu with a clock around every operator.

    Errors are measured in a call of their own, against float64 arithmetic twice: on the inputs that
    the layer had, so without what the layers before it got wrong, and from the image on.

    Args:
        model: what is computed.
        size: pixels on both sides of the images.
        images: of a call; with many draws, they go through the network in several passes, whose
            times are added.
        seconds: for the calls; `CALLS` are made whatever they cost.

    Returns:
        The report, plain JSON values. Of a row, `gflop` counts a direct convolution for all draws
        of all images (null where there is none), `gflop_per_s` is that over the median time `ms`,
        `percent` the share of `call_ms`, the median time of a call; `relative_rms` is the error of
        the layer alone, `accumulated_rms` that of all convolutions so far (null for what is no 3x3
        convolution). In `total`, `percent` is how much of a call all layers together are.

    Raises:
        BackendError: backend cpu cannot run here.
    """
    reason = library.unavailable()
    if reason:
        raise BackendError(f"backend cpu: {reason}")
    plan, watched = fold(model), _Watched()
    network = CpuSession(plan, torch.get_num_threads, watched)
    x = random_images(images, size).pixels.numpy()
    z = noise.stacked(model.schedule, size, size, model.noise_seed)
    convolutions = network.layers(size, size)
    head = Layer("head", model.network.base_width, 3, size, size)
    layers = [*convolutions, head, Layer("anomaly map", 1, 1, MAP_SIZE, MAP_SIZE)]
    norms = [getattr(plan.blocks[block], place) for block, place in (layer.name.split(".") for layer in convolutions)]
    errors = _errors(network, watched, norms, x[:1], z)
    calls, wholes = _times(network, watched, len(layers), x, z, seconds)
    samples = images * plan.draws
    gflop = [*(_gflop(layer, 9, samples) for layer in convolutions), _gflop(head, 1, samples), None]
    call = statistics.median(wholes)
    rows = [
        {**dataclasses.asdict(layer), **_speed(median, count, call), "relative_rms": alone, "accumulated_rms": so_far}
        for layer, median, count, (alone, so_far) in zip(
            layers, np.median(calls, axis=0).tolist(), gflop, errors, strict=True
        )
    ]
    return {
        "schema_version": SCHEMA_VERSION,
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
    instructions, threads = machine["cpu_kernels"]["instruction_set"], plural(machine["torch_threads"], "thread")
    one = f"one takes {report['call_ms']:.4g} ms, of which the layers are {total['percent']:.1f} %"
    return Group(
        result,
        f"{machine['cpu']}, {instructions}, {threads}, load {machine['load_average']} at the end",
        f"ms: median of {report['calls']} calls; {one}",
        "GFLOP/s: of direct convolutions, which the kernels do not need in full",
        "errors: relative RMS against float64, on the layer's own inputs, and from the image on",
    )


class _Watched:
    """`kernels.cpu.operators`, with those that compute maps run by `run`."""

    def __init__(self) -> None:
        self.run: Callable[..., None] = lambda name, operator, *given: operator(*given)

    def __getattr__(self, name: str) -> Any:
        operator = getattr(operators, name)
        return functools.partial(self.run, name, operator) if name in _WATCHED else operator


def _times(
    network: CpuSession, watched: _Watched, count: int, x: Floats, z: Floats, seconds: float
) -> tuple[Floats, list[float]]:
    """Seconds of every layer, (calls, count), and of every call."""
    spent: list[float] = []

    def timed(name: str, operator: Operator, *given: Any) -> None:
        started = time.perf_counter()
        operator(*given)
        spent.append(time.perf_counter() - started)

    watched.run = timed
    network.maps(x, z)
    calls: list[Floats] = []
    wholes: list[float] = []
    begun = time.perf_counter()
    while len(wholes) < CALLS or time.perf_counter() - begun + wholes[-1] < seconds:
        spent.clear()
        started = time.perf_counter()
        network.maps(x, z)
        wholes.append(time.perf_counter() - started)
        calls.append(np.reshape(spent, (-1, count)).sum(axis=0))  # a row for each pass
    return np.stack(calls), wholes


@torch.inference_mode()
def _errors(
    network: CpuSession, watched: _Watched, norms: list[ConvNorm[Array]], x: Floats, z: Floats
) -> list[tuple[float, float | None]]:
    """Relative RMS errors of every layer for one image, alone and accumulated: of convolutions on
    its first draw, of the rest on all.
    """
    found: list[tuple[float, float | None]] = []
    exact: Exact = {}

    def compared(name: str, operator: Operator, *given: Any) -> None:
        operator(*given)
        if name in _WRITTEN:
            place = _WRITTEN[name]
            expected = getattr(reference, name)(*map(_double, given[:place]))
            found.append((_relative_rms(given[place], expected), None))
            return
        norm, raw = norms[len(found)], given[-4]
        if name == "perturb_conv3x3":
            alone = accumulated = _perturb_conv3x3(norm, *given)
        else:
            alone, accumulated = _conv3x3(norm, {}, *given), _conv3x3(norm, exact, *given)
        found.append((_relative_rms(raw[:1], alone[0]), _relative_rms(raw[:1], accumulated[0])))
        exact[raw.ctypes.data] = accumulated

    watched.run = compared
    network.maps(x, z)
    return found


def _perturb_conv3x3(
    norm: ConvNorm[Array], image: Floats, noise: Floats, std: Floats, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Raw output and affine of the first draw."""
    first = (_double(image), _double(noise[:1]), _double(std[:1]), reference.pack_perturb(_double(norm.weight)))
    return reference.perturb_conv3x3(*first, *_double_norm(norm), rest[4])


def _conv3x3(norm: ConvNorm[Array], exact: Exact, sources: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    """The same, of what is in `exact` where that has the source."""
    groups, raw = rest[4], rest[6]
    inputs = []
    for source in sources:
        read = exact.get(source.raw.ctypes.data) or (_double(source.raw[:1]), _double(source.affine[:1]))
        embedding = None if source.embedding is None else _double(source.embedding[:1])
        inputs.append(operators.Source(*read, embedding, source.kind))
    return reference.conv3x3(inputs, _double(norm.weight), *_double_norm(norm), groups, *raw.shape[1:3])


def _relative_rms(got: Floats, expected: Tensor) -> float:
    return float((_double(got) - expected).norm() / expected.norm())


def _double(values: Floats) -> Tensor:
    return torch.from_numpy(values).double()


def _double_norm(norm: ConvNorm[Array]) -> tuple[Tensor, Tensor, Tensor]:
    return _double(norm.bias), _double(norm.gamma), _double(norm.beta)


def _gflop(layer: Layer, taps: int, samples: int) -> float:
    return 2e-9 * taps * layer.channels_in * layer.channels_out * layer.height * layer.width * samples


def _speed(seconds: float, gflop: float | None, call: float) -> dict[str, float | None]:
    rate = None if gflop is None else gflop / seconds
    return {"gflop": gflop, "ms": 1e3 * seconds, "percent": 100 * seconds / call, "gflop_per_s": rate}


def _cells(row: dict[str, Any]) -> list[str]:
    return [tables.cell(row[key], spec) for key, spec in (("ms", ".3g"), ("percent", ".1f"), ("gflop_per_s", ".4g"))]
