"""What this GPU can do at best: matrix products, copies, and the network's convolutions with
nothing between them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sprfast.backends.tensors import inputs
from sprfast.backends.triton import STORAGE, FusedUNet
from sprfast.bench.core import timing
from sprfast.bench.core.hardware import copying, flops
from sprfast.bench.gpu.operators import Save
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels.triton import reference
from sprfast.lowering.fold import fold
from sprfast.method.noise import noise_bank
from sprfast.system import environment

SCHEMA_VERSION = 1
CONVOLUTIONS = ("conv2d", "convolution", "cudnn_convolution")  # of torch.ops.aten


@torch.inference_mode()
def measure(
    model: Model,
    device: torch.device,
    batches: Sequence[int],
    height: int,
    width: int,
    precision: Precision = "bfloat16",
    *,
    matrix: int = 8192,
    copied: int = 2**31,
    repeats: int = 5,
    plans: int = 10,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """The ceilings, and for each batch the convolutions alone.

    Args:
        model: its network and schedule.
        device: CUDA, or a CPU, where times mean nothing.
        batches: numbers of images.
        precision: of matrix product and convolutions.
        matrix: rows and columns of the matrices.
        copied: bytes of a copy, read and written together.
        repeats: samples behind each median.
        plans: that cuDNN times for a convolution before it chooses, 0 for all that it has; torch's
            default is 10. What it has chosen for a shape stays chosen, in this thread.
        save: called with the report after each part.

    Returns:
        The report, plain JSON values. `floor` is the time that all multiplications of an image take
        at the matrix product's rate; nothing that computes them in this precision is faster.
    """
    per_pass = flops(model.network, height, width)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {"height": height, "width": width, "draws": model.schedule.draws},
        "precision": precision,
        "plans": plans,
        "gflop_per_forward": 1e-9 * per_pass,
        "convolutions": [],
    }
    generator = torch.Generator(device).manual_seed(0)
    a, b, out = torch.randn(3, matrix, matrix, device=device, generator=generator).to(STORAGE[precision])
    clocks = {
        "matmul": timing.captured([functools.partial(torch.mm, a, b, out=out)] * 2, device),
        "copy": copying(copied, device),
    }
    times = timing.spreads(clocks, repeats)
    tflops = {key: 2e-12 * matrix**3 / seconds for key, seconds in times["matmul"].items()}
    report["matmul"] = {"size": matrix, "tflop_per_s": _rates(tflops)}
    report["copy"] = {
        "bytes": copied,
        "gb_per_s": _rates({key: 1e-9 * copied / seconds for key, seconds in times["copy"].items()}),
    }
    floor = 1e-6 * model.schedule.draws * per_pass / tflops["median"]
    report["floor"] = {"us_per_image": floor, "images_per_s": 1e6 / floor}
    save(report)
    torch.backends.cudnn.benchmark_limit = plans
    for images in batches:
        report["convolutions"].append(_convolutions(model, device, images, height, width, precision, floor, repeats))
        save(report)
    return report


class _Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects every convolution that runs, with its operands."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[functools.partial[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in CONVOLUTIONS:
            self.calls.append(functools.partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def library_convolutions(
    model: Model, device: torch.device, images: int, height: int, width: int, precision: Precision
) -> list[functools.partial[Tensor]]:
    """The convolutions that the fused network leaves to the library, on the maps of random images.

    Returns:
        The calls in order; the first arguments of each are input and weight. All of the network's
        convolutions but the first, which our kernel computes, and the 1x1, which is fused into the
        head.
    """
    network = FusedUNet(fold(model), device, STORAGE[precision], operators=reference, benchmark=True)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(images, 3, height, width, device=device, generator=generator) * 2.0 - 1.0
    x, z = inputs(x, noise_bank(model.schedule, height, width, model.noise_seed), device)
    with _Recorded() as recorded:
        network.maps(x, z)
    return [call for call in recorded.calls if call.args[1].shape[1] > 3 and call.args[1].shape[2] == 3]


def _convolutions(
    model: Model,
    device: torch.device,
    images: int,
    height: int,
    width: int,
    precision: Precision,
    floor: float,
    repeats: int,
) -> dict[str, Any]:
    """All of them in one graph, and each alone."""
    calls = library_convolutions(model, device, images, height, width, precision)
    clocks = {"all": timing.captured(calls, device)}
    clocks |= {str(index): timing.captured([call] * 2, device) for index, call in enumerate(calls)}
    times = timing.spreads(clocks, repeats)
    per_image = {key: 1e6 * len(calls) * seconds / images for key, seconds in times["all"].items()}
    layers = []
    for index, call in enumerate(calls):
        x, weight = call.args[:2]
        work = 2 * weight.numel() * x.shape[0] * x.shape[2] * x.shape[3]
        median = times[str(index)]["median"]
        shapes = {"input": list(x.shape), "weight": list(weight.shape)}
        layers.append({**shapes, "us": 1e6 * median, "tflop_per_s": 1e-12 * work / median})
    return {
        "images": images,
        "us_per_image": per_image,
        "percent_of_floor": 100 * floor / per_image["median"],
        "layers": layers,  # each on its own; a small map may then lie in the cache
    }


def _rates(by_time: dict[str, float]) -> dict[str, float]:
    """From the rates at the median, least and most time."""
    return {"median": by_time["median"], "min": by_time["max"], "max": by_time["min"]}
