"""Scenarios whose queries come by the clock: Server (Poisson arrivals, as MLPerf Inference has it)
and Line (a fixed period).

A latency counts from the moment at which a query was due, not from the moment at which the system
turned to it: a stall shows in every query that it delayed.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sprfast.bench.core import timing

Answer = Callable[[Sequence[int]], object]  # given the numbers of the queries; returns when they are answered
SPIN = 1e-3  # seconds before a due time in which the clock is watched: sleep is not that exact
TICK = 1e-9  # seconds: rounding of a sum of times
RATE_PRECISION = 1.05  # ratio of an invalid to a valid rate at which the search ends
LEAST_QUERIES = 20  # of a Server trial
LEAST_BOUNDS = 10.0  # latency bounds that a Server trial lasts: in a shorter one a growing queue would not show
TRIALS = 10  # of a Server search, about


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, or at once if it has passed; the clock is watched for `SPIN`."""
        time.sleep(max(0.0, moment - time.perf_counter() - SPIN))
        while time.perf_counter() < moment:
            pass


def serve(
    answer: Answer, due: Sequence[float], clock: WallClock, *, most: int = 1, waiting: float = math.inf
) -> list[float | None]:
    """Answer queries in the order in which they come.

    Args:
        answer: called with up to `most` queries that wait.
        due: seconds from the start at which each query comes, ascending.
        clock: passes the time.
        waiting: how many queries may wait; one that comes to a full queue is dropped.

    Returns:
        For each query the seconds from its due time to its answer, None if it was dropped.
    """
    latencies: list[float | None] = [None] * len(due)
    queue: collections.deque[int] = collections.deque()
    started, coming = clock.now(), 0
    while coming < len(due) or queue:
        now = clock.now() - started
        while coming < len(due) and due[coming] <= now + TICK:
            if len(queue) < waiting:
                queue.append(coming)
            coming += 1
        if not queue:
            if coming < len(due):
                clock.sleep_until(started + due[coming])
            continue
        taken = [queue.popleft() for _ in range(min(most, len(queue)))]
        answer(taken)
        answered = clock.now() - started
        for query in taken:
            latencies[query] = answered - due[query]
    return latencies


def line(answer: Answer, clock: WallClock, *, period: float, frames: int, waiting: int = 8) -> dict[str, Any]:
    """A camera that triggers every `period` seconds, whatever the system does.

    Args:
        waiting: frames that may wait, as in a camera driver's buffer.

    Returns:
        Plain figures; `late` counts the frames answered after the deadline, which is the next
        trigger, `jitter_ms` is p99 - p50.
    """
    latencies = serve(answer, [index * period for index in range(frames)], clock, waiting=waiting)
    answered = [1e3 * latency for latency in latencies if latency is not None]
    percentiles = {f"p{q}_ms": timing.percentile(answered, q) for q in (50, 90, 99)}
    return {
        "period_ms": 1e3 * period,
        "deadline_ms": 1e3 * period,
        "frames": frames,
        "late": sum(latency > 1e3 * period for latency in answered),
        "dropped": frames - len(answered),
        **percentiles,
        "max_ms": max(answered),
        "jitter_ms": percentiles["p99_ms"] - percentiles["p50_ms"],
    }


def server(
    answer: Answer, clock: WallClock, *, bound: float, start: float, seconds: float, most: int
) -> dict[str, Any]:
    """The highest rate of Poisson arrivals at which 99 % of the queries are answered within
    `bound`.

    Found by doubling or halving from `start`, then bisection. Every trial scales the same random
    arrivals to its rate.

    Args:
        bound: seconds.
        start: queries a second that the search begins with.
        seconds: of one trial, which lasts at least `LEAST_BOUNDS` latency bounds and has at least
            `LEAST_QUERIES` queries.
        most: queries that the system answers in one call.

    Returns:
        Plain figures; `queries_per_s` is null if even a hundredth of `start` is too much.
    """
    trials: list[dict[str, Any]] = []
    seconds = max(seconds, LEAST_BOUNDS * bound)

    def holds(rate: float) -> bool:
        queries = max(LEAST_QUERIES, math.ceil(rate * seconds))
        gaps = np.random.default_rng(0).exponential(1.0 / rate, queries)
        latencies = serve(answer, np.cumsum(gaps).tolist(), clock, most=most)
        p99 = timing.percentile([latency for latency in latencies if latency is not None], 99)
        trials.append({"queries_per_s": rate, "queries": queries, "p99_ms": 1e3 * p99, "valid": p99 <= bound})
        return p99 <= bound

    rate = highest_rate(holds, start)
    few = min(trial["queries"] for trial in trials)
    note = f"at least {few} queries a trial" + ("; below 100 the p99 is the slowest" if few < 100 else "")
    return {"queries_per_s": rate, "bound_ms": 1e3 * bound, "most_in_a_call": most, "trials": trials, "note": note}


def search_seconds(bound: float, start: float, seconds: float) -> float:
    """About how long `server` takes with these arguments."""
    return TRIALS * max(seconds, LEAST_BOUNDS * bound, LEAST_QUERIES / start)


def highest_rate(holds: Callable[[float], bool], start: float) -> float | None:
    """The highest rate that holds, to `RATE_PRECISION`; None if even start / 100 does not."""
    if holds(start):
        valid, invalid = start, 2.0 * start
        while holds(invalid):
            valid, invalid = invalid, 2.0 * invalid
    else:
        valid, invalid = start / 2.0, start
        while not holds(valid):
            valid, invalid = valid / 2.0, valid
            if valid < start / 100.0:
                return None
    while invalid / valid > RATE_PRECISION:
        middle = math.sqrt(valid * invalid)
        valid, invalid = (middle, invalid) if holds(middle) else (valid, middle)
    return valid
