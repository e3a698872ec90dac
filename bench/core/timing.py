"""Time of calls: interleaved rounds on a monotonic clock, replays of CUDA graphs between events,
medians, percentiles by nearest rank.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TypeVar

import numpy as np
import torch

Round = dict[str, float]  # seconds of each candidate's one call
Clock = Callable[[], float]  # seconds a call, measured anew each time it is asked
T = TypeVar("T")

UNCACHED_BYTES = 128_000_000  # of inputs and outputs in turn: twice the level-2 cache of an H200
SAMPLE_SECONDS = 0.01  # of replays between two events, so that the gap before the first is nothing


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of one call, until the device has finished all its work, and what the call
    returned.
    """
    _synchronise(device)
    started = time.perf_counter()
    outcome = call()
    _synchronise(device)
    return time.perf_counter() - started, outcome


def rounds(
    calls: Mapping[str, Callable[[int], object]],
    device: torch.device,
    budget: float,
    minimum: int,
    *,
    turn: int = 1,
    settle: Mapping[str, Callable[[], object]] | None = None,
) -> Iterator[Round]:
    """Interleaved measurement A B C A B C ...: a drift of the machine hits all candidates alike.

    In each round every candidate is called with the number of the round, in the order given. A
    round is yielded when it is whole, so an interrupt loses only the rounds in progress.

    Args:
        calls: what to time, by candidate.
        budget: seconds; no round begins that would not fit, by the length of the last one.
        minimum: rounds that are measured whatever they cost.
        turn: calls of a candidate before the next one has its turn; so many rounds go on at once.
        settle: of each candidate, called untimed at the start of its turn. Threads of the candidate
            before it may still be spinning, which can take a first call of some milliseconds to
            twice its time.
    """
    if not calls:
        return
    started = time.perf_counter()
    for first in itertools.count(step=turn):
        begun = time.perf_counter()
        seconds: list[Round] = [{} for _ in range(turn)]
        for name, call in calls.items():
            if settle:
                timed(settle[name], device)
            for index in range(turn):
                seconds[index][name], _ = timed(functools.partial(call, first + index), device)
        yield from seconds
        now = time.perf_counter()
        if first + turn >= minimum and (now - started) + (now - begun) > budget:
            return


def captured(calls: Sequence[Callable[[], object]], device: torch.device) -> Clock:
    """A clock of calls that run one after another without gaps: seconds a call.

    On CUDA the calls are captured in one graph, after a warm-up on a side stream, and the graph is
    replayed between two events: the time of launching from Python does not count. On a CPU they are
    called, for dry runs of the same code.

    Args:
        calls: the same work on memory of their own, see `working_sets`. The memory that they use
            must stay alive as long as the clock, which keeps the calls themselves.
        device: the current device if it is a CUDA device.
    """
    if device.type != "cuda":
        return lambda: timed(lambda: [call() for call in calls], device)[0] / len(calls)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def elapsed(replays: int) -> float:
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3  # milliseconds

    elapsed(1)
    replays = max(1, math.ceil(SAMPLE_SECONDS / elapsed(1)))
    return lambda: elapsed(replays) / (replays * len(calls))


def working_sets(size: int, device: torch.device) -> int:
    """How many sets of `size` bytes a clock should go through so that none is still in the cache
    when its turn comes again.
    """
    return 2 if device.type != "cuda" else max(2, math.ceil(UNCACHED_BYTES / size))


def spreads(clocks: Mapping[str, Clock], repeats: int) -> dict[str, dict[str, float]]:
    """Median, min and max of each clock in seconds, the clocks taking turns A B C A B C ..."""
    samples = [{name: clock() for name, clock in clocks.items()} for _ in range(repeats)]
    return {name: spread([sample[name] for sample in samples]) for name in clocks}


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, min and max."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}


class _OutOfTime(BaseException):
    """Not an Exception: nothing between the alarm and `limited` may take it for a fault of
    its own.
    """


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`; on the main thread of a POSIX system only.

    Raises:
        TimeoutError: the body was not done in time.
    """

    def expire(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    handler = signal.signal(signal.SIGALRM, expire)
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    except _OutOfTime:
        raise TimeoutError(f"not done within {max(seconds, 0.0):.3g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def failure(error: BaseException) -> str:
    """Class and first line of an error, for a report; two lines where the first only announces the
    second.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    count = 2 if lines and lines[0].endswith(":") else 1
    return " ".join([f"{type(error).__name__}:", *lines[:count]]).removesuffix(":")


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least q % of the samples do not exceed (nearest rank: a time that
    was seen).
    """
    return float(np.percentile(samples, q, method="inverted_cdf"))


def upper_percentile(samples: Sequence[float], q: float) -> float | None:
    """The smallest sample that the q-th percentile exceeds with a probability of at most 1 %.

    MLPerf's early stopping in effect: a short run must show a better figure than a long one. None
    where even the slowest sample does not do, for the 90th percentile below 44 samples.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]

    rank = int(binom.ppf(0.99, len(samples), q / 100)) + 1
    return sorted(samples)[rank - 1] if rank <= len(samples) else None


def ratio(measured: Sequence[Round], over: str, name: str) -> dict[str, float] | None:
    """How many times faster `name` is than `over`: `spread` of the ratios within each round; None
    where `over` was not measured.
    """
    if over not in measured[0]:
        return None
    return spread([seconds[over] / seconds[name] for seconds in measured])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
