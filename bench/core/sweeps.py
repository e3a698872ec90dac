"""Sweeps over batch size and draws: what a call of our candidates takes at each point, and what
each number of draws is worth.

A point is (batch, draws): images of one call, and draws at every sigma level. The model's own
number of draws, that of the level with the most, stands for its schedule as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sprfast.bench.core import timing
from sprfast.bench.core.peers import Candidate
from sprfast.bench.core.work import Answer, Work, parity
from sprfast.config import Schedule
from sprfast.data.datasets import Category
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError
from sprfast.evaluation.evaluate import evaluate
from sprfast.formats.model import Model

ROUNDS = 5  # of a sweep, at least
METRICS = ("image_AUROC", "pixel_AUROC")

Tell = Callable[[float, str], None]  # the share that is done, 0 to 1, and what is going on
Point = tuple[int, int]
Calls = dict[tuple[str, int, int], Callable[[int, int], object]]  # by candidate and point; of a batch and a query


def own_draws(schedule: Schedule) -> int:
    """The number of draws that stands for the schedule as it is."""
    return max(level.draws for level in schedule.levels)


def with_draws(schedule: Schedule, draws: int) -> Schedule:
    """`schedule` with `draws` draws at every level.

    Raises:
        InputError: the number is out of range, or odd where noise is antithetic.
    """
    levels = tuple(dataclasses.replace(level, draws=draws) for level in schedule.levels)
    return dataclasses.replace(schedule, levels=levels)


def allowed(schedule: Schedule, draws: int) -> bool:
    """Whether `with_draws` takes this number."""
    try:
        with_draws(schedule, draws)
    except InputError:
        return False
    return True


def variant(model: Model, draws: int) -> Model:
    """`model` with `draws` draws at every level; the model itself for its own number."""
    if draws == own_draws(model.schedule):
        return model
    mode = dataclasses.replace(model.scoring_mode, schedule=with_draws(model.schedule, draws))
    return dataclasses.replace(model, scoring_mode=mode)


def varied(work: Work, draws: int) -> Work:
    """The same work for `variant`."""
    return type(work)(variant(work.model, draws), work.given, work.device)


def cross(batch: int, draws: int) -> list[Point]:
    """Points that vary one of the two: batches up to `batch` at the model's `draws`, and numbers of
    draws for one image.
    """
    return [(size, draws) for size in _batches(batch)] + [(1, count) for count in _counts(draws) if count != draws]


def grid(batch: int, draws: int) -> list[Point]:
    """Every batch of `cross` at every number of draws."""
    return [(size, count) for count in _counts(draws) for size in _batches(batch)]


def measure(
    work: Work,
    candidates: Sequence[Candidate],
    points: Sequence[Point],
    seconds: float,
    on_progress: Tell,
    into: dict[str, Any],
) -> None:
    """Time every candidate at every point, all interleaved in one run of at least `ROUNDS` rounds.

    Every point is called once before, and its first image is compared with the plain definition.

    Args:
        work: what is timed, on at least as many samples as the largest batch.
        candidates: what to build, once for each number of draws.
        points: those that the model's schedule allows.
        seconds: for all rounds together; `ROUNDS` are made whatever they cost.
        on_progress: may raise KeyboardInterrupt, as a signal may; whole rounds are kept.
        into: gets `points`, one object of figures for each, and `failed`, the candidate, batch
            (null: all) and draws that have no figures and the reason.
    """
    into |= {"points": [], "failed": []}
    calls: Calls = {}
    for draws in sorted({draws for _, draws in points}):
        work_of_draws = varied(work, draws)
        truth = work_of_draws.truth([0])
        batches = [size for size, count in points if count == draws]
        for candidate in candidates:
            on_progress(0.0, f"settings: building {candidate.name}, {plural(draws, 'draw')}")
            calls |= _ready(work_of_draws, truth, candidate, batches, draws, into["failed"])
    ready = [key for each in candidates for point in points if (key := (each.name, *point)) in calls]
    timed = {str(key): functools.partial(calls[key], key[1]) for key in ready}
    settle = {str(key): functools.partial(calls[key], 1, 0) for key in ready}
    measured: list[timing.Round] = []
    started = time.perf_counter()
    try:
        for times in timing.rounds(timed, work.device, seconds, ROUNDS, settle=settle):
            measured.append(times)
            done = min((time.perf_counter() - started) / seconds, len(measured) / ROUNDS)
            on_progress(min(1.0, done), f"settings: {plural(len(ready), 'point')}")
    finally:
        if measured:
            into["points"] = [_figures(*key, [times[str(key)] for times in measured]) for key in ready]


def accuracy(
    model: Model, category: Category, device: torch.device, draws: Sequence[int], on_progress: Tell
) -> Iterator[dict[str, Any]]:
    """`METRICS` of the labelled test images at each number of draws, by backend auto in float32.

    Each is given as soon as it is known; one that is not defined on these images is null.

    Raises:
        InputError: there are no test images, or one of them cannot be scored.
    """
    for index, count in enumerate(draws):

        def done(images: int, total: int, before: int = index) -> None:
            on_progress((before * total + images) / (len(draws) * total), "settings: accuracy")

        found = evaluate(Engine(variant(model, count), "auto", device), category, done)
        yield {"draws": count, "images": found.images, **{key: found.metrics[key].value for key in METRICS}}


def query(work: Work, answer: Answer, batch: int, index: int) -> object:
    """Answer query number `index` of `batch` samples; the queries go through all samples."""
    first = index % (len(work) - batch + 1)
    return answer(work.take(range(first, first + batch)))


def plural(count: int, noun: str) -> str:
    """Such as "1 draw" and "2 draws"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _ready(
    work: Work,
    truth: dict[str, Tensor],
    candidate: Candidate,
    batches: Sequence[int],
    draws: int,
    failed: list[dict[str, Any]],
) -> Calls:
    """Queries of the points that can be timed; the others go to `failed`."""
    point = {"candidate": candidate.name, "batch": None, "draws": draws}
    try:
        answer = work.build(candidate)
    except BackendError as error:
        failed.append({**point, "reason": str(error)})
        return {}
    ready: Calls = {}
    for batch in sorted(batches, reverse=True):  # the smaller ones then fit into the memory of the largest
        reason = _fault(work, answer, batch, truth, candidate.tolerance)
        if reason:
            failed.append({**point, "batch": batch, "reason": reason})
        else:
            ready[candidate.name, batch, draws] = functools.partial(query, work, answer)
    return ready


def _fault(work: Work, answer: Answer, batch: int, truth: dict[str, Tensor], tolerance: float) -> str | None:
    """Why a call of `batch` images cannot be timed; None if it can."""
    try:
        results = work.results(query(work, answer, batch, 0))
    except torch.OutOfMemoryError as error:
        return timing.failure(error)
    check = parity({name: value[:1] for name, value in results.items()}, truth, tolerance)
    return None if check["passed"] else f"its results are not the definition's (tolerance {tolerance:g})"


def _figures(candidate: str, batch: int, draws: int, seconds: list[float]) -> dict[str, Any]:
    return {
        "candidate": candidate,
        "batch": batch,
        "draws": draws,
        "rounds": len(seconds),
        "p50_ms": 1e3 * timing.percentile(seconds, 50),
        "p99_ms": 1e3 * timing.percentile(seconds, 99),
        "images_per_s": timing.spread([batch / value for value in seconds]),
        "seconds": seconds,
    }


def _batches(batch: int) -> list[int]:
    """1, 2, 4 ... and `batch` itself."""
    return sorted({2**power for power in range(batch.bit_length())} | {batch})


def _counts(draws: int) -> list[int]:
    return sorted({1, 2, draws, 2 * draws})
