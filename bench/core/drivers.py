"""How queries come to the candidates: in turns, or by the clock."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sprfast.bench.core import arrivals, scenarios, timing
from sprfast.bench.core.audits import Outputs
from sprfast.bench.core.peers import BASELINE
from sprfast.bench.core.work import Work

KEYS = (*(scenario.key for scenario in scenarios.ALL), "line", "server")  # of a candidate's figures
LINE_MARGIN = 1.25  # of the period over the slowest candidate's p90, where no period is given
SERVER_MARGIN = 4.0  # of the latency bound over the slowest candidate's p90, where no bound is given
LEAST_FRAMES = 10  # of a line
SEARCH_SHARE = 4.0  # of the time for a scenario, what a Server search of one candidate may take

Entries = dict[str, dict[str, Any]]  # the candidates of a report
Tell = Callable[[int, float, str], None]  # number of the scenario, the share of it that is done, what is going on


def in_turns(work: Work, answers: Mapping[str, Outputs], seconds: float, entries: Entries, tell: Tell) -> None:
    """SingleStream, MultiStream and Offline in interleaved rounds, `seconds` for each scenario;
    `entries` get figures of the rounds that are whole, also after Ctrl-C.

    Sampled outputs are audited between the rounds.
    """
    for index, scenario in enumerate(scenarios.ALL):
        measured: list[timing.Round] = []
        started = time.perf_counter()
        tell(index, 0.0, scenario.name)
        try:
            for times in scenario.rounds(answers, len(work), work.device, seconds):
                measured.append(times)
                for outputs in answers.values():
                    outputs.after(scenario.key)
                tell(index, (time.perf_counter() - started) / seconds, scenario.name)
        finally:
            for name in answers if measured else ():
                figures = scenario.summary(measured, name, BASELINE, len(work))
                entries[name] |= {scenario.key: figures, "status": "measured"}


def by_the_clock(
    work: Work,
    answers: Mapping[str, Callable[[Sequence[int]], object]],
    seconds: float,
    period: float | None,
    bound: float | None,
    entries: Entries,
    tell: Tell,
) -> None:
    """Line and Server, one candidate after another, `seconds` for each scenario.

    Args:
        answers: the candidates by name, each given the indices of samples.
        period: of Line, in seconds; None takes `LINE_MARGIN` times the slowest candidate's p90.
        bound: of Server, in seconds; None takes `SERVER_MARGIN` times that p90.
        entries: have the figures of SingleStream, and get those of Line and, where a search fits
            the time, Server.
    """
    slowest = 1e-3 * max(entries[name]["single_stream"]["p90_ms"] for name in answers)
    period, bound = period or LINE_MARGIN * slowest, bound or SERVER_MARGIN * slowest
    share, clock = seconds / len(answers), arrivals.WallClock()
    frames = max(LEAST_FRAMES, int(share / period))
    for index, (name, answer) in enumerate(answers.items()):
        first = len(scenarios.ALL) + 2.0 * index / len(answers)
        tell(int(first), first % 1.0, f"Line and Server, {name}")
        served = _blocking(work, answer)
        entries[name]["line"] = arrivals.line(served, clock, period=period, frames=frames)
        rate = 5e2 / entries[name]["single_stream"]["p50_ms"]  # half of what one query after another takes
        trial = share / arrivals.TRIALS
        if arrivals.search_seconds(bound, rate, trial) > SEARCH_SHARE * seconds:
            continue
        entries[name]["server"] = arrivals.server(served, clock, bound=bound, start=rate, seconds=trial, most=len(work))


def _blocking(work: Work, answer: Callable[[Sequence[int]], object]) -> Callable[[Sequence[int]], object]:
    """Given the numbers of queries, one sample each; returns when the device has answered them."""

    def answered(queries: Sequence[int]) -> object:
        return timing.timed(functools.partial(answer, [query % len(work) for query in queries]), work.device)

    return answered
