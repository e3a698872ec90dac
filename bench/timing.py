"""Time of calls: interleaved rounds on a monotonic clock, medians, and percentiles by nearest rank."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

Round = dict[str, float]  # seconds of each candidate's one call
T = TypeVar("T")


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of one call, until the device has finished all its work, and what the call returned."""
    _synchronise(device)
    started = time.perf_counter()
    outcome = call()
    _synchronise(device)
    return time.perf_counter() - started, outcome


def rounds(calls: Mapping[str, Callable[[int], object]], device: torch.device, budget: float, minimum: int) -> Iterator[Round]:
    """Interleaved measurement A B C A B C ...: a drift of the machine hits all candidates alike.

    Each round calls every candidate once, in the order given, with the number of the round. A round
    is yielded when it is whole, so an interrupt loses only the round in progress.

    Args:
        calls: what to time, by candidate.
        budget: seconds; no round begins that would not fit, by the length of the last one.
        minimum: rounds that are measured whatever they cost.
    """
    if not calls:
        return
    started = time.perf_counter()
    for index in itertools.count():
        begun = time.perf_counter()
        yield {name: timed(functools.partial(call, index), device)[0] for name, call in calls.items()}
        now = time.perf_counter()
        if index + 1 >= minimum and (now - started) + (now - begun) > budget:
            return


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least q % of the samples do not exceed (nearest rank: a time that was seen)."""
    return float(np.percentile(samples, q, method="inverted_cdf"))


def ratio(measured: Sequence[Round], over: str, name: str) -> dict[str, float] | None:
    """How many times faster `name` is than `over`: median, min and max of the ratios within each round.

    None where `over` was not measured.
    """
    if over not in measured[0]:
        return None
    ratios = [seconds[over] / seconds[name] for seconds in measured]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
