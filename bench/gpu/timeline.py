"""Every kernel of a call through a captured graph: when it starts, how long it takes, and how long
nothing runs after it. From the trace that torch.profiler exports.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sprfast.backends import registry
from sprfast.bench.core import timing
from sprfast.bench.gpu.operators import Save
from sprfast.bench.gpu.truth import pictures
from sprfast.formats.model import Model
from sprfast.method.noise import noise_bank
from sprfast.system import environment

SCHEMA_VERSION = 1
# What counts, in Kineto's words; on a CPU, for a dry run, the operators of torch.
CATEGORIES = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}


@dataclasses.dataclass(frozen=True)
class Event:
    """One kernel, in microseconds on the trace's clock."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        """When it is done."""
        return self.start + self.duration


@torch.inference_mode()
def measure(
    model: Model,
    device: torch.device,
    batches: Sequence[int],
    height: int,
    width: int,
    *,
    replays: int = 20,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """The kernels of `cuda_graph` in bfloat16 on CUDA; of `eager` on a CPU, where times mean
    nothing.

    Each call is followed by a wait, as where one image is answered after another. A profiler slows
    a call down a little: how long it takes without one is in the waterfall.

    Args:
        batches: numbers of images in a call.
        replays: calls that are recorded.
        save: called with the report after each batch.

    Returns:
        The report, plain JSON values. Of each batch: `span_us`, from the first kernel's start to
        the last one's end; `busy_us`, in kernels; `idle_us`, between them; `kernels`, in order,
        with the medians over the replays; `by_name`, the kernels' sums in a call.
    """
    on_cuda = device.type == "cuda"
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {"draws": model.schedule.draws, "height": height, "width": width},
        "replays": replays,
        "batches": [],
    }
    # CUPTI sees the kernels of a graph only where it was there when the graph was captured
    recorded(lambda: torch.zeros(1, device=device), device, 1)
    if on_cuda:
        backend = registry.create("cuda_graph", model, device, "bfloat16")
    else:
        backend = registry.create("eager", model, device)
    noise = [z.to(device) for z in noise_bank(model.schedule, height, width, model.noise_seed)]
    for images in batches:
        x = pictures(images, height, width).to(device)
        for _ in range(3):
            timing.timed(lambda x=x: backend.maps(x, noise), device)  # type: ignore[misc]
        trace = recorded(lambda x=x: backend.maps(x, noise), device, replays)  # type: ignore[misc]
        calls = split(events(trace, CATEGORIES[device.type]), replays)
        report["batches"].append({"images": images, **summary(calls)})
        save(report)
    return report


def recorded(call: Callable[[], object], device: torch.device, times: int) -> dict[str, Any]:
    """The trace of so many calls, each until the device is idle, as torch.profiler exports it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(times):
            timing.timed(call, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())  # type: ignore[no-any-return]


def events(trace: dict[str, Any], categories: Sequence[str]) -> list[Event]:
    """What of these categories ran, by start; of what ran within another, the outer one alone."""
    found = [
        Event(event["name"], float(event["ts"]), float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in categories
    ]
    outer: list[Event] = []
    for event in sorted(found, key=lambda event: (event.start, -event.end)):
        if not outer or event.end > outer[-1].end:
            outer.append(event)
    return outer


def split(found: Sequence[Event], calls: int) -> list[list[Event]]:
    """The events of each call.

    Raises:
        ValueError: they are not the same ones in each: some were lost.
    """
    count, rest = divmod(len(found), calls)
    parts = [list(found[index * count : (index + 1) * count]) for index in range(calls)]
    names = {tuple(event.name for event in part) for part in parts}
    if rest or not count or len(names) != 1:
        raise ValueError(f"{len(found)} kernels in {calls} calls are not the same kernels in each call")
    return parts


def summary(calls: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """Medians over the calls, see `measure`."""
    kernels: list[dict[str, Any]] = []
    for index, first in enumerate(calls[0]):
        here = [call[index] for call in calls]
        gaps = [call[index + 1].start - call[index].end for call in calls if index + 1 < len(call)]
        starts = [call[index].start - call[0].start for call in calls]
        kernels.append(
            {
                "name": first.name,
                "start_us": median(starts),
                "us": median(event.duration for event in here),
                "gap_us": median(gaps) if gaps else None,  # to the next one's start
            }
        )
    spans = [call[-1].end - call[0].start for call in calls]
    busy = [sum(event.duration for event in call) for call in calls]
    sums: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        row = sums.setdefault(kernel["name"], {"name": kernel["name"], "launches": 0, "us": 0.0})
        row["launches"] += 1
        row["us"] += kernel["us"]
    return {
        "launches": len(kernels),
        "span_us": timing.spread(spans),
        "busy_us": timing.spread(busy),
        "idle_us": timing.spread([span - used for span, used in zip(spans, busy, strict=True)]),
        "kernels": kernels,
        "by_name": sorted(sums.values(), key=lambda row: -row["us"]),
    }
