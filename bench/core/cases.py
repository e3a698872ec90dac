"""One bench run: build and warm up every candidate, check its maps, then measure each scenario."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sprfast.bench.core import (
    accuracy,
    audits,
    drivers,
    exports,
    footprint,
    hardware,
    peers,
    recommend,
    scenarios,
    tables,
    timing,
)
from sprfast.bench.core.peers import BASELINE, Candidate
from sprfast.bench.core.work import WORKS, Answer, Work, file_images, parity, random_images
from sprfast.data.datasets import Category
from sprfast.engine.predictor import Predictor
from sprfast.engine.runner import Runner
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model
from sprfast.system import devices, environment

SCHEMA_VERSION = 8
AUDIT_SHARE = 0.2  # of the time for a scenario

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What to measure, and for how long.

    Raises:
        InputError: a value is out of range.
    """

    size: int | None = None  # pixels at the network's input; None takes the model's
    batch: int = 16  # images of an Offline query
    seconds: float = 60.0  # for each scenario, over all candidates; a few rounds are measured whatever they cost
    period: float | None = None  # of Line, in seconds; None takes 1.25 times the slowest candidate's SingleStream p90
    bound: float | None = None  # of Server's p99, in seconds; None takes 4 times that p90
    device: str | torch.device | None = None  # as in `devices.resolve`
    timed: str = "maps"  # "network", "maps" or "file", see `work`
    paths: Sequence[Path] | None = None  # image files; None takes random images
    labelled: Category | None = None  # test images for the accuracy at each number of draws
    memory: bool = False  # also of every candidate, each in a fresh process; on a CPU
    # names of candidates that must run; of any other the report says why it cannot
    required: Collection[str] = ()
    margin: float | None = None  # share of the period that a recommended setting leaves free; None recommends none

    def __post_init__(self) -> None:
        for name, value, least in (("size", self.size, 16), ("batch", self.batch, 1)):
            if value is not None and value < least:
                raise InputError(f"{name}: {value} is not allowed, expected at least {least}")
        for name, limit in (("seconds", self.seconds), ("period", self.period), ("bound", self.bound)):
            if limit is not None and not 0 < limit < math.inf:
                raise InputError(f"{name}: {limit} is not allowed, expected a positive number")
        if self.timed not in WORKS:
            raise InputError(f"timed: {self.timed!r} is not known, choose from {', '.join(WORKS)}")
        if self.margin is not None and not 0 <= self.margin < 1:
            raise InputError(f"margin: {self.margin} is not allowed, expected a number from 0 to below 1")
        if self.margin is not None and self.period is None:
            raise InputError("a recommendation needs the line's period, give --period, for example 100ms")
        if self.margin is not None and self.timed == "network":
            raise InputError(
                "a recommendation is for maps or verdicts: with --timed network its latency would leave out the rest"
            )


def run(
    model: Model,
    options: BenchOptions,
    *,
    candidates: Sequence[Candidate] | None = None,
    runners: Mapping[str, Runner] | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure all candidates on the same images and noise.

    A candidate gets speed figures only after its results, for one image and for the Offline query,
    were those of the plain definition; one that cannot run here is listed with the reason. Ctrl-C
    ends the run early: the report then holds the whole rounds measured so far and `"complete":
    false`.

    Args:
        model: what is computed.
        options: what to measure.
        candidates: None takes those of the device, see `peers.candidates`.
        runners: exports by their names, as `exports.opened` gives them; candidates too.
        on_progress: called with (done, total) in seconds of measuring, and what is going on.

    Returns:
        The report: see `report_file`.

    Raises:
        InputError: an image file cannot be used, or memory is wanted on another device than a CPU.
        BackendError: the device cannot be used here, or a required candidate cannot run.
    """
    device = devices.resolve(options.device)
    if options.memory and device.type != "cpu":
        raise InputError(f"--memory is measured on a CPU only, not on {device}")
    runners = runners or {}
    chosen = peers.candidates(device) if candidates is None else candidates
    if taken := runners.keys() & {each.name for each in chosen}:
        raise InputError(f"--export: {min(taken)} is the name of another candidate too, rename the file")
    candidates = [*chosen, *(exports.candidate(*each) for each in runners.items())]
    work = _work(model, options, candidates, device)
    report = _header(work, options, candidates)
    entries = report["candidates"]
    share, sweeps = math.ceil(options.seconds), len(drivers.KEYS)  # the sweeps come after the scenarios

    def progress(scenario: int, fraction: float, what: str) -> None:
        if on_progress:
            on_progress(int((scenario + min(1.0, fraction)) * share), (sweeps + 1) * share, what)

    with contextlib.suppress(KeyboardInterrupt):
        answers = _prepare(work, candidates, entries, options.required, progress)
        precisions = dict.fromkeys(entry["precision"] for name, entry in entries.items() if name in answers)
        report["ceilings"] = hardware.ceilings(model, device, precisions, *work.given.pixels.shape[2:])
        audited = {name: audits.Outputs(work, answer) for name, answer in answers.items()}
        try:
            drivers.in_turns(work, audited, options.seconds, entries, progress)
        finally:
            for entry in entries.values():
                if entry["offline"]:
                    rate = entry["offline"]["images_per_s"]
                    entry["hardware"] |= hardware.percent(report["ceilings"], entry["precision"], rate)
        for name, answer in answers.items():
            again = audits.repeated(work, answer, AUDIT_SHARE * options.seconds / len(answers))
            entries[name]["audits"] = {"outputs": audited[name].result(), "repeated_image": again}
        if answers:
            drivers.by_the_clock(work, audited, options.seconds, options.period, options.bound, entries, progress)
        ours = [each for each in candidates if each.ours and each.name in answers]
        if ours:
            recommend.section(
                work,
                ours,
                seconds=options.seconds,
                labelled=options.labelled,
                period=None if options.margin is None else options.period,
                margin=options.margin or 0.0,
                on_progress=functools.partial(progress, sweeps),
                into=report,
            )
        inexact = [each.name for each in chosen if each.precision not in peers.EXACT and each.name in answers]
        tell = functools.partial(progress, sweeps, 1.0)
        _accuracy(work, options, {name: answers[name] for name in inexact}, runners, tell, report)
        for name in (each.name for each in chosen if options.memory and each.name in answers):
            progress(sweeps, 1.0, f"memory of {name}")
            entries[name]["memory"] = footprint.fresh(work.model, name, len(work))
        report["complete"] = True
    return report


def _work(model: Model, options: BenchOptions, candidates: Sequence[Candidate], device: torch.device) -> Work:
    """What is timed, on the images that were asked for; scales are from training images."""
    size = options.size or model.preprocessing.size
    model = dataclasses.replace(model, preprocessing=dataclasses.replace(model.preprocessing, size=size))
    if options.paths is None:
        given = random_images(options.batch, size)
    else:
        given = file_images(options.paths, options.batch, model.preprocessing)
    calibration = None
    if options.labelled and options.labelled.train and any(each.calibrated for each in candidates):
        calibration = file_images(options.labelled.train, options.batch, model.preprocessing)
    return WORKS[options.timed](model, given, device, calibration)


def _accuracy(
    work: Work,
    options: BenchOptions,
    chosen: Mapping[str, Answer],
    runners: Mapping[str, Runner],
    tell: Callable[[str], None],
    report: dict[str, Any],
) -> None:
    """Of these candidates where there are image files, and of exports."""
    around = {name: work.predictor(answer) for name, answer in chosen.items() if options.paths}
    predictors: dict[str, Predictor] = {name: engine for name, engine in around.items() if engine} | {**runners}
    if predictors:
        report["accuracy"] = []
        accuracy.measure(work.model, predictors, options.paths or (), options.labelled, tell, report["accuracy"])


def _header(work: Work, options: BenchOptions, candidates: Sequence[Candidate]) -> dict[str, Any]:
    model, (height, width) = work.model, work.given.pixels.shape[2:]
    return {
        "schema_version": SCHEMA_VERSION,
        "note": scenarios.NOTE,
        "complete": False,
        "environment": environment.describe(work.device),
        "model": {
            "sha256": model.sha256,
            "network": model.network.to_json(),
            "schedule": {**model.schedule.to_json(), "levels": [level.to_json() for level in model.schedule.levels]},
            "noise_seed": model.noise_seed,
        },
        "input": {
            "images": work.given.description,
            "height": height,
            "width": width,
            "samples": len(work),
            "noise": "the model's frozen bank, the same for every image and candidate",
        },
        "device": str(work.device),
        "work": work.name,
        "timed": work.timed,
        "truth": peers.TRUTH,
        "seconds_per_scenario": options.seconds,
        "baseline": BASELINE,
        "ceilings": None,
        "candidates": {each.name: _unmeasured(each, work) for each in candidates},
        "settings": None,
        "recommendation": None,
        "accuracy": None,
    }


def _unmeasured(candidate: Candidate, work: Work) -> dict[str, Any]:
    given = {key: getattr(candidate, key) for key in ("description", "ours", "precision", "tolerance")}
    if candidate.calibrated:
        given["description"] += f", calibrated on {work.calibration.description}"
    figures = ("build_s", "first_image_s", "first_batch_s", "parity", "audits", *drivers.KEYS, "hardware", "memory")
    asked = {"asked_precision": candidate.precision}
    return {**given, **asked, "status": "not measured", "reason": None, **dict.fromkeys(figures)}


def _prepare(
    work: Work,
    candidates: Sequence[Candidate],
    entries: dict[str, Any],
    required: Collection[str],
    progress: drivers.Tell,
) -> dict[str, Answer]:
    """Build each candidate, run both shapes of query once and check the results; those that passed,
    by name.
    """
    ends = sorted({0, len(work) - 1})  # a truth for every image would cost as much as a round
    truth, everything = work.truth(ends), work.take(range(len(work)))
    passed = {}
    for candidate in map(work.calibrated, candidates):
        progress(0, 0.0, f"building {candidate.name}")
        entry = entries[candidate.name]
        before = hardware.held(work.device)
        try:
            entry["build_s"], answer = timing.timed(functools.partial(work.build, candidate), work.device)
            entry["first_image_s"], single = timing.timed(functools.partial(answer, work.take([0])), work.device)
        except BackendError as error:
            if candidate.name in required:
                raise
            entry |= {"status": "unavailable", "reason": str(error)}
            continue
        # the next call may write into them
        one_image = {name: value.clone() for name, value in work.results(single).items()}
        call = functools.partial(answer, everything)
        entry["first_batch_s"], many = timing.timed(call, work.device)
        entry["precision"] = candidate.ran() or candidate.precision
        batch = {name: value[ends] for name, value in work.results(many).items()}
        entry["parity"] = {
            "one_image": parity(one_image, {name: value[:1] for name, value in truth.items()}, entry["tolerance"]),
            "batch": parity(batch, truth, entry["tolerance"]),
        }
        if all(check["passed"] for check in entry["parity"].values()):
            passed[candidate.name] = answer
            shares = dict.fromkeys(hardware.SHARES)
            entry["hardware"] = {**shares, **hardware.usage(call, work.device, len(work), before)}
        else:
            entry["status"] = "failed"
    for _, of_precision in list(tables.by_precision(entries)):
        for name in of_precision:
            entries[name] = entries.pop(name)
    return passed
