"""End to end, step after step: the published pipeline, bfloat16, torch.compile, our kernels, and
those in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sprfast.bench.core import hardware, peers, scenarios, timing
from sprfast.bench.core.peers import BASELINE, TOLERANCES, Candidate, Maps
from sprfast.bench.gpu.operators import Save
from sprfast.bench.gpu.truth import Truths, ends, pictures
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.kernels.triton import trials
from sprfast.method import scoring
from sprfast.method.noise import noise_bank
from sprfast.system import environment

SCHEMA_VERSION = 1
COMPILED = "compile_bfloat16"
COMPILED_LIBRARY = "compile_library_bfloat16"
PEERS = (BASELINE, "eager_bfloat16", COMPILED, COMPILED_LIBRARY)
ROUNDS_SHARE = 0.25  # of a batch's time, at most
ROUNDS_SECONDS = 12.0  # at most, a batch
Entries = dict[str, dict[str, Any]]  # of a batch's candidates, by name


def compiled_with_library_convolutions(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
    """`peers.compiled_bfloat16` with cuDNN's convolutions alone: Inductor neither writes nor times
    Triton ones, which is most of the time that max-autotune takes.

    Raises:
        BackendError: the device is not a CUDA device.
    """
    if device.type != "cuda":
        raise BackendError("torch.compile is measured on CUDA devices only")
    from torch._inductor import list_mode_options

    torch.compiler.reset()
    options = {**list_mode_options("max-autotune"), "max_autotune_conv_backends": "ATEN"}
    return peers.bfloat16(
        model, noise, device, functools.partial(torch.compile, options=options, dynamic=False, fullgraph=True)
    )


CANDIDATES = (
    Candidate(
        BASELINE,
        "the published pipeline as PyTorch's defaults run it: float32 with TF32, a pass a draw",
        peers.published_tf32,
        "tf32",
    ),
    Candidate("eager_bfloat16", "bfloat16, channels-last, eager, all draws in one batch", peers.bfloat16, "bfloat16"),
    Candidate(
        COMPILED, "the same through torch.compile, max-autotune, with CUDA graphs", peers.compiled_bfloat16, "bfloat16"
    ),
    Candidate(
        COMPILED_LIBRARY,
        "the same, but without Triton convolutions: those of the library only",
        compiled_with_library_convolutions,
        "bfloat16",
    ),
    Candidate("triton_bfloat16", "sprfast, fused kernels", peers.backend("triton", "bfloat16"), "bfloat16"),
    Candidate(
        "cuda_graph_bfloat16",
        "sprfast, fused kernels in a CUDA graph",
        peers.backend("cuda_graph", "bfloat16"),
        "bfloat16",
    ),
    Candidate("triton_float32", "sprfast, fused kernels, float32", peers.backend("triton")),
    Candidate("cuda_graph_float32", "sprfast, fused kernels in a CUDA graph, float32", peers.backend("cuda_graph")),
)


def measure(
    model: Model,
    device: torch.device,
    batches: Sequence[int],
    height: int,
    width: int,
    *,
    seconds: float,
    minimum: int = 10,
    turn: int = 1,
    truths: Truths | None = None,
    candidates: Sequence[Candidate] = CANDIDATES,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """Every candidate at every batch size, the batches in the order given.

    Within a batch the candidates take turns on the same images and noise. One whose maps are not
    the definition's (float64, on the CPU) has no speed; one that cannot be built, or not in time,
    is listed with the reason.

    Args:
        batches: numbers of images in a call.
        seconds: for everything; the remaining time is shared evenly by the remaining batches.
        minimum: rounds of a batch that are measured whatever they cost.
        turn: calls of a candidate before the next one has its turn, at one image: in turns of one
            call each finds the caches cold. Of more images so many fewer, but at least one.
        truths: the definition's maps, computed before; what it lacks is computed here.
        save: called with the report after each candidate's build and each batch.

    Returns:
        The report, plain JSON values.
    """
    deadline = time.monotonic() + seconds
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {
            "images": "uniform random in [-1, 1]",
            "height": height,
            "width": width,
            "draws": model.schedule.draws,
        },
        "network": model.network.to_json(),
        "model_sha256": model.sha256,
        "timed": "from an input tensor on the device to the anomaly map on the device, until the device is idle",
        "tolerances": TOLERANCES,
        "batches": [],
    }
    noise = noise_bank(model.schedule, height, width, model.noise_seed)
    for index, images in enumerate(batches):
        x = pictures(images, height, width)
        entries = {each.name: _unmeasured(each) for each in candidates}
        report["batches"].append({"images": images, "candidates": entries})
        share = (deadline - time.monotonic()) / (len(batches) - index)
        budget = min(ROUNDS_SECONDS, ROUNDS_SHARE * share)
        build_by = time.monotonic() + share - budget
        truth, origin = (truths or Truths({})).of(model, x, noise)
        report["batches"][-1]["truth"] = origin
        passed = _build(model, device, x, noise, truth, build_by, entries, candidates, functools.partial(save, report))
        _measure(passed, x.to(device), budget, minimum, max(1, turn // images), entries)
        save(report)
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """One sentence for each candidate with wrong maps, and for each of ours that should run on this
    device and has no speed.
    """
    found = []
    for batch in report["batches"]:
        for name, entry in batch["candidates"].items():
            ours = name not in PEERS and (report["device"].startswith("cuda") or not name.startswith("cuda_graph"))
            if entry["status"] == "failed" or (ours and entry["status"] != "measured"):
                found.append(f"{name}, {batch['images']} images: {entry['status']}, {entry['reason']}")
    return found


def _unmeasured(candidate: Candidate) -> dict[str, Any]:
    figures = ("images_per_s", "us_per_image", "latency", "ratio_to")
    return {
        "description": candidate.description,
        "precision": candidate.precision,
        "status": "not measured",
        "reason": "out of time",
        **dict.fromkeys(("build_s", "first_call_s", "parity", "memory", *figures)),
    }


def _build(
    model: Model,
    device: torch.device,
    x: Tensor,
    noise: Sequence[Tensor],
    truth: tuple[Tensor, Tensor],
    deadline: float,
    entries: Entries,
    candidates: Sequence[Candidate],
    save: Callable[[], None],
) -> dict[str, Maps]:
    """Build, warm up and check every candidate; those that passed, by name, in the order given."""
    chosen = ends(x.shape[0])
    x, noise = x.to(device), [z.to(device) for z in noise]
    passed: dict[str, Maps] = {}

    def build(candidate: Candidate, entry: dict[str, Any]) -> None:
        before = hardware.held(device)
        entry["build_s"], maps = timing.timed(functools.partial(candidate.build, model, noise, device), device)
        entry["first_call_s"], given = timing.timed(functools.partial(maps, x), device)
        entry["parity"] = parity((given[0][chosen], given[1][chosen]), truth, candidate.tolerance)
        if not entry["parity"]["passed"]:
            entry |= {"status": "failed", "reason": "its maps are not the definition's"}
            return
        maps(x)  # a compiled function captures its graph on the second call, and replays it from the third on
        peak = hardware.peak_memory(functools.partial(maps, x), device, before)
        entry["memory"] = peak and {f"{name}_mib": mib for name, mib in peak.items()}
        passed[candidate.name] = maps

    # last: it gets the time that the others leave
    for each in sorted(candidates, key=lambda each: each.name in (COMPILED, COMPILED_LIBRARY)):
        try:
            with timing.limited(deadline - time.monotonic()):
                build(each, entries[each.name])
        except Exception as error:  # listed with its reason
            entries[each.name] |= {"status": "unavailable", "reason": timing.failure(error)}
        save()
    return {each.name: passed[each.name] for each in candidates if each.name in passed}


def _measure(
    passed: dict[str, Maps],
    x: Tensor,
    budget: float,
    minimum: int,
    turn: int,
    entries: Entries,
) -> None:
    """Interleaved rounds; their figures into `entries`."""

    def answering(maps: Maps) -> Callable[[int], object]:
        return lambda index: maps(x)

    calls = {name: answering(maps) for name, maps in passed.items()}
    measured = list(timing.rounds(calls, x.device, budget, minimum, turn=turn))
    images = x.shape[0]
    for name in passed:
        seconds, entry = [times[name] for times in measured], entries[name]
        entry |= {"status": "measured", "reason": None}
        entry["images_per_s"] = scenarios.OFFLINE.figures(seconds, images)
        entry["us_per_image"] = timing.spread([1e6 * value / images for value in seconds])
        entry["ratio_to"] = {peer: timing.ratio(measured, peer, name) for peer in PEERS}
        if images == 1:
            entry["latency"] = scenarios.SINGLE_STREAM.figures(seconds, 1)


def parity(given: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], tolerance: float) -> dict[str, Any]:
    """Relative RMS errors of error maps and of the images' scores; null where one is not finite or
    has another shape.
    """
    errors, anomaly_maps = given
    pairs = {
        "error_map": (errors, truth[0]),
        "score": (scoring.image_score(anomaly_maps), scoring.image_score(truth[1])),
    }
    found: dict[str, float | None] = {}
    for name, (got, expected) in pairs.items():
        error = trials.relative_rms(got.cpu(), expected) if got.shape == expected.shape else math.nan
        found[name] = error if math.isfinite(error) else None
    passed = all(error is not None and error <= tolerance for error in found.values())
    return {"relative_rms": found, "tolerance": tolerance, "passed": passed}
