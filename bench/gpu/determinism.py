"""Bits and threads: the same call again and again, and eight threads with streams of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sprfast.backends import registry
from sprfast.bench.core.peers import TOLERANCES
from sprfast.bench.gpu.operators import Save
from sprfast.bench.gpu.truth import pictures
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels.triton import trials
from sprfast.method.noise import noise_bank
from sprfast.system import environment

SCHEMA_VERSION = 1
THREADS = 8
COUNTERS = ("num_ooms", "num_alloc_retries")  # of torch.cuda.memory_stats
Case = tuple[str, Precision]
THREADED: tuple[Case, ...] = (
    ("triton", "float32"),
    ("triton", "bfloat16"),
    ("cuda_graph", "bfloat16"),
    ("cuda_graph", "float32"),
)
REPLAYED: tuple[Case, ...] = (("cuda_graph", "bfloat16"),)
DRY_CASES: tuple[Case, ...] = (("eager", "float32"),)


def threads(
    model: Model,
    device: torch.device,
    height: int,
    width: int,
    *,
    calls: int = 24,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """Maps of eight threads at once beside those of the same calls one after another.

    Where memory is short, cuDNN chooses another algorithm for a convolution, with other bits, and
    each thread chooses for itself. So the allocator's refusals are counted, and maps that differ
    are wrong only beyond the tolerance of their precision.

    Args:
        calls: of 1 to 5 images.
        save: called with the report after each backend.

    Returns:
        The report, plain JSON values.
    """
    report = _begun(model, device, height, width, calls=calls, threads=THREADS)
    noise = [z.to(device) for z in noise_bank(model.schedule, height, width, model.noise_seed)]
    inputs = [pictures(1 + index % 5, height, width).to(device) for index in range(calls)]
    for name, precision in THREADED if device.type == "cuda" else DRY_CASES:
        backend = registry.create(name, model, device, precision)
        before = _counted(device)

        def on_a_stream(x: Tensor, backend: registry.Backend = backend) -> Tensor:
            with _stream(device):
                return backend.maps(x, noise)[0].cpu()

        _wait(device)
        with ThreadPoolExecutor(THREADS) as pool:
            got = list(pool.map(on_a_stream, inputs))
        after = _counted(device)
        expected = [backend.maps(x, noise)[0].cpu() for x in inputs]
        pairs = list(zip(got, expected, strict=True))
        worst = max(trials.relative_rms(maps, truth) for maps, truth in pairs)
        row = {
            "backend": name,
            "precision": precision,
            "bit_equal": sum(torch.equal(maps, truth) for maps, truth in pairs),
            "relative_rms": worst,
            "tolerance": TOLERANCES[precision],
            "passed": worst <= TOLERANCES[precision],
            **{key: after[key] - before[key] for key in before},
        }
        report["cases"].append(row)
        save(report)
    return report


def replays(
    model: Model,
    device: torch.device,
    batches: Sequence[int],
    height: int,
    width: int,
    *,
    times: int = 1000,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """How many of so many calls give other bits than the first.

    Args:
        batches: numbers of images in a call.
        times: calls of each backend and batch.
        save: called with the report after each backend and batch.

    Returns:
        The report, plain JSON values.
    """
    report = _begun(model, device, height, width, times=times)
    noise = [z.to(device) for z in noise_bank(model.schedule, height, width, model.noise_seed)]
    for name, precision in REPLAYED if device.type == "cuda" else DRY_CASES:
        backend = registry.create(name, model, device, precision)
        for images in batches:
            x = pictures(images, height, width).to(device)
            first = backend.maps(x, noise)
            other = torch.zeros((), dtype=torch.int64, device=device)
            for _ in range(times - 1):
                again = backend.maps(x, noise)
                pairs = zip(again, first, strict=True)
                other += torch.stack([(maps != expected).any() for maps, expected in pairs]).any()
            different = int(other)
            row = {"backend": name, "precision": precision, "images": images, "different": different}
            report["cases"].append(row | {"passed": different == 0})
            save(report)
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """One sentence for each case that failed."""
    rows = [row for row in report["cases"] if not row["passed"]]
    return [f"{row['backend']}, {row['precision']}: other maps than the same call before" for row in rows]


def _begun(model: Model, device: torch.device, height: int, width: int, **given: int) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {"draws": model.schedule.draws, "height": height, "width": width},
        **given,
        "cases": [],
    }


def _counted(device: torch.device) -> dict[str, int]:
    stats = torch.cuda.memory_stats(device) if device.type == "cuda" else {}
    return {name: int(stats.get(name, 0)) for name in COUNTERS}


def _stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream: contextlib.AbstractContextManager[object] = torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    return stream


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
