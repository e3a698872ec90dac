"""One bench run: build and warm up every candidate, check its maps, then measure each scenario."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sprfast import devices, environment
from sprfast.bench import arrivals, audits, peers, scenarios, timing
from sprfast.bench.peers import BASELINE, TOLERANCES, Candidate, Maps
from sprfast.errors import BackendError, InputError
from sprfast.model_file import Model
from sprfast.noise import noise_bank

SCHEMA_VERSION = 3
LINE_MARGIN = 1.25  # of the period over the slowest candidate's p90, where no period is given
SERVER_MARGIN = 4.0  # of the latency bound over the slowest candidate's p90, where no bound is given
LEAST_FRAMES = 10  # of a line
AUDIT_SHARE = 0.2  # of the time for a scenario
TRIALS = 10  # of a Server search, about
IMAGE_SEED = 0
TIMED = (
    "from an input tensor on the device to the anomaly map on the device; decoding, resizing and the drawing of noise are outside; "
    "build and first calls are apart"
)

KEYS = (*(scenario.key for scenario in scenarios.ALL), "line", "server")  # of a candidate's figures

Progress = Callable[[int, int], None]


def run(
    model: Model,
    *,
    size: int | None = None,
    batch: int = 16,
    seconds: float = 30.0,
    period: float | None = None,
    bound: float | None = None,
    device: str | torch.device | None = None,
    candidates: Sequence[Candidate] | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure all candidates on the same images and noise.

    A candidate gets speed figures only after its maps, for one image and for the Offline query, were
    those of the plain definition; one that cannot run here is listed with the reason. Ctrl-C ends the
    run early: the report then holds the whole rounds measured so far and `"complete": false`.

    Args:
        size: pixels, both sides of the network's input; None takes the model's.
        batch: images of an Offline query.
        seconds: time for each scenario, over all candidates; a few rounds are measured whatever they cost.
        period: of Line, in seconds; None takes 1.25 times the slowest candidate's SingleStream p90.
        bound: of Server's p99, in seconds; None takes 4 times that p90.
        device: as in `devices.resolve`.
        candidates: None takes those of the device, see `peers.candidates`.
        on_progress: called with (done, total), in seconds of measuring.

    Returns:
        The report: see `report`.

    Raises:
        InputError: size, batch, seconds, period or bound is out of range.
        BackendError: the device cannot be used here.
    """
    size = model.preprocessing.size if size is None else size
    for name, value, least in (("size", size, 16), ("batch", batch, 1)):
        if value < least:
            raise InputError(f"{name}: {value} is not allowed, expected at least {least}")
    for name, given in (("seconds", seconds), ("period", period), ("bound", bound)):
        if given is not None and not 0 < given < math.inf:
            raise InputError(f"{name}: {given} is not allowed, expected a positive number")
    chosen = devices.resolve(device)
    candidates = peers.candidates(chosen) if candidates is None else candidates
    report = _header(model, size, batch, seconds, chosen, candidates)
    samples = _samples(batch, size, chosen)
    measured: dict[str, list[timing.Round]] = {scenario.key: [] for scenario in scenarios.ALL}
    progress = on_progress or (lambda done, total: None)
    with contextlib.suppress(KeyboardInterrupt):
        maps = _prepare(model, samples, candidates, report["candidates"])
        try:
            _measure(maps, samples, seconds, measured, report["candidates"], progress)
        finally:
            _summarise(measured, batch, report["candidates"])
        if maps:
            _by_the_clock(maps, samples, seconds, period, bound, report["candidates"], progress)
        report["complete"] = True
    return report


def parity(given: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], tolerance: float) -> dict[str, Any]:
    """Errors of an error map and an anomaly map relative to the truth, and whether all are within `tolerance`.

    `relative_rms` is rms(given - truth) / rms(truth), `relative_max` is max|given - truth| / max|truth|;
    null where the given map is not finite or has another shape.
    """
    errors = {name: _errors(a, b) for name, a, b in zip(("error_map", "anomaly_map"), given, truth, strict=True)}
    worst = max((math.inf if value is None else value) for pair in errors.values() for value in pair.values())
    return {**errors, "passed": worst <= tolerance}


def _errors(given: Tensor, truth: Tensor) -> dict[str, float | None]:
    if given.shape != truth.shape or not given.isfinite().all():
        return {"relative_rms": None, "relative_max": None}
    expected = truth.double().cpu()
    difference = given.double().cpu() - expected
    rms = difference.square().mean().sqrt() / expected.square().mean().sqrt()
    return {"relative_rms": rms.item(), "relative_max": (difference.abs().max() / expected.abs().max()).item()}


def _header(model: Model, size: int, batch: int, seconds: float, device: torch.device, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "note": scenarios.NOTE,
        "complete": False,
        "environment": environment.describe(device),
        "model": {
            "sha256": model.sha256,
            "network": model.network.to_json(),
            "schedule": {**model.schedule.to_json(), "levels": [level.to_json() for level in model.schedule.levels]},
            "noise_seed": model.noise_seed,
        },
        "input": {
            "images": f"uniform random in [-1, 1], seed {IMAGE_SEED}",
            "height": size,
            "width": size,
            "samples": batch,
            "noise": "the model's frozen bank, the same for every image and candidate",
        },
        "device": str(device),
        "timed": TIMED,
        "seconds_per_scenario": seconds,
        "baseline": BASELINE,
        "candidates": {each.name: _unmeasured(each) for each in candidates},
    }


def _unmeasured(candidate: Candidate) -> dict[str, Any]:
    given = {"description": candidate.description, "precision": candidate.precision, "tolerance": TOLERANCES[candidate.precision]}
    figures = ("build_s", "first_image_s", "first_batch_s", "parity", "audits", *KEYS)
    return {**given, "status": "not measured", "reason": None, **dict.fromkeys(figures)}


def _samples(count: int, size: int, device: torch.device) -> Tensor:
    """(count, 3, size, size) float32 on `device`."""
    generator = torch.Generator().manual_seed(IMAGE_SEED)
    return (torch.rand(count, 3, size, size, generator=generator) * 2.0 - 1.0).to(device)


def _prepare(model: Model, samples: Tensor, candidates: Sequence[Candidate], entries: dict[str, Any]) -> dict[str, Maps]:
    """Build each candidate, run both shapes of query once and check the maps; those that passed, by name."""
    device = samples.device
    noise = noise_bank(model.schedule, samples.shape[2], samples.shape[3], model.noise_seed)
    ends = sorted({0, samples.shape[0] - 1})  # a truth for every image would cost as much as a round
    # On the CPU whatever the device: a GPU's convolutions may be TensorFloat-32.
    truth = peers.plain(model, noise, torch.device("cpu"), torch.contiguous_format)(samples[ends].cpu())
    device_noise = [z.to(device) for z in noise]
    passed = {}
    for candidate in candidates:
        entry = entries[candidate.name]
        try:
            entry["build_s"], maps = timing.timed(functools.partial(candidate.build, model, device_noise, device), device)
        except BackendError as error:
            entry |= {"status": "unavailable", "reason": str(error)}
            continue
        entry["first_image_s"], single = timing.timed(functools.partial(maps, samples[:1]), device)
        entry["first_batch_s"], many = timing.timed(functools.partial(maps, samples), device)
        entry["parity"] = {
            "one_image": parity(single, (truth[0][:1], truth[1][:1]), entry["tolerance"]),
            "batch": parity((many[0][ends], many[1][ends]), truth, entry["tolerance"]),
        }
        if all(check["passed"] for check in entry["parity"].values()):
            passed[candidate.name] = maps
        else:
            entry["status"] = "failed"
    return passed


def _measure(
    candidates: dict[str, Maps],
    samples: Tensor,
    seconds: float,
    measured: dict[str, list[timing.Round]],
    entries: dict[str, Any],
    on_progress: Progress,
) -> None:
    """Fill `measured` with the rounds of every interleaved scenario, each as soon as it is whole; then the audits."""
    share = math.ceil(seconds)
    audited = {name: audits.Outputs(maps) for name, maps in candidates.items()}
    for index, scenario in enumerate(scenarios.ALL):
        started = time.perf_counter()
        for times in scenario.rounds(audited, samples, seconds):
            measured[scenario.key].append(times)
            query = functools.partial(scenario.query, samples, len(measured[scenario.key]) - 1)
            for outputs in audited.values():
                outputs.after(scenario.key, query)
            on_progress(index * share + min(share, int(time.perf_counter() - started)), len(KEYS) * share)
    for name, maps in candidates.items():
        again = audits.repeated(maps, samples, AUDIT_SHARE * seconds / len(candidates))
        entries[name]["audits"] = {"outputs": audited[name].result(), "repeated_image": again}


def _summarise(measured: dict[str, list[timing.Round]], batch: int, entries: dict[str, Any]) -> None:
    """The figures of the rounds that are whole."""
    for scenario in scenarios.ALL:
        for name in measured[scenario.key][0] if measured[scenario.key] else ():
            entries[name][scenario.key] = scenario.summary(measured[scenario.key], name, BASELINE, batch)
            entries[name]["status"] = "measured"


def _by_the_clock(
    candidates: dict[str, Maps],
    samples: Tensor,
    seconds: float,
    period: float | None,
    bound: float | None,
    entries: dict[str, Any],
    on_progress: Progress,
) -> None:
    """Line and Server, one candidate after another."""
    slowest = 1e-3 * max(entries[name]["single_stream"]["p90_ms"] for name in candidates)
    period, bound = period or LINE_MARGIN * slowest, bound or SERVER_MARGIN * slowest
    share, clock = seconds / len(candidates), arrivals.WallClock()
    for index, (name, maps) in enumerate(candidates.items()):

        def answer(queries: Sequence[int], maps: Maps = maps) -> None:
            timing.timed(lambda: maps(samples[[query % samples.shape[0] for query in queries]]), samples.device)

        frames = max(LEAST_FRAMES, int(share / period))
        entries[name]["line"] = arrivals.line(answer, clock, period=period, frames=frames)
        rate = 5e2 / entries[name]["single_stream"]["p50_ms"]  # half of what one query after another takes
        if TRIALS * arrivals.LEAST_QUERIES / rate <= share:
            most = samples.shape[0]
            entries[name]["server"] = arrivals.server(answer, clock, bound=bound, start=rate, seconds=share / TRIALS, most=most)
        done = (len(scenarios.ALL) + 2.0 * (index + 1) / len(candidates)) * math.ceil(seconds)
        on_progress(int(done), len(KEYS) * math.ceil(seconds))
