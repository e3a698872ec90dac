"""SingleStream, MultiStream and Offline, by the definitions of MLPerf Inference but not by its
rules; `arrivals` has Server.

Runs are seconds long where MLPerf asks for 600 s, and data and model are other ones: MLPerf-style,
not an MLPerf result.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from sprfast.bench.core import timing

MULTI_STREAM_SAMPLES = 8  # of a query
ROUNDS = 3  # at least
NOTE = "MLPerf-style, not an MLPerf result"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How queries are made of the samples, and what is told of their times."""

    name: str  # MLPerf's
    key: str  # in a report
    size: int | None  # samples of a query; None takes all
    turn: int  # queries of a candidate before the next one has its turn
    figures: Callable[[Sequence[float], int], dict[str, Any]]  # seconds of every query and N to figures

    def query(self, samples: int, index: int) -> Sequence[int]:
        """The indices of the samples of query `index`, which go through all `samples` in turn."""
        if self.size is None:
            return range(samples)
        return [(self.size * index + i) % samples for i in range(self.size)]

    def rounds(
        self,
        answers: Mapping[str, Callable[[Sequence[int]], object]],
        samples: int,
        device: torch.device,
        seconds: float,
    ) -> Iterator[timing.Round]:
        """Interleaved rounds; in each, every candidate answers the same query. A turn begins with
        one sample that is not timed.

        Args:
            answers: the candidates by name; each is given the indices of the samples of a query.
            samples: how many there are.
            device: that the candidates run on.
            seconds: for all candidates together.
        """

        def answering(answer: Callable[[Sequence[int]], object]) -> Callable[[int], object]:
            return lambda index: answer(self.query(samples, index))

        calls = {name: answering(answer) for name, answer in answers.items()}
        settle = {name: functools.partial(answer, [0]) for name, answer in answers.items()}
        return timing.rounds(calls, device, seconds, ROUNDS, turn=self.turn, settle=settle)

    def summary(self, measured: Sequence[timing.Round], name: str, baseline: str, samples: int) -> dict[str, Any]:
        """The figures of candidate `name`, with its speed relative to `baseline`."""
        seconds = [times[name] for times in measured]
        return self.figures(seconds, samples) | {f"ratio_to_{baseline}": timing.ratio(measured, baseline, name)}


def _latency(seconds: Sequence[float], samples: int) -> dict[str, Any]:
    milliseconds = [1e3 * value for value in seconds]
    n = len(milliseconds)
    slowest = [f"p{q}" for q in (50, 90, 99) if timing.percentile(range(n), q) == n - 1]
    equal = f"; {' = '.join(slowest)} = the slowest" if slowest else ""
    return {
        "queries": n,
        **{f"p{q}_ms": timing.percentile(milliseconds, q) for q in (50, 90, 99)},
        **{f"p{q}_early_stopping_ms": timing.upper_percentile(milliseconds, q) for q in (90, 99)},
        "min_ms": min(milliseconds),
        "max_ms": max(milliseconds),
        "note": f"percentiles by nearest rank from {n} queries{equal}",
        "seconds": list(seconds),
    }


def _throughput(seconds: Sequence[float], samples: int) -> dict[str, Any]:
    return {
        "queries": len(seconds),
        "samples_per_query": samples,
        "images_per_s": samples / statistics.median(seconds),
        "min_images_per_s": samples / max(seconds),
        "max_images_per_s": samples / min(seconds),
        "seconds": list(seconds),
    }


# In the first two the next query comes when the last has been answered.
SINGLE_STREAM = Scenario("SingleStream", "single_stream", 1, 4, _latency)
MULTI_STREAM = Scenario("MultiStream", "multi_stream", MULTI_STREAM_SAMPLES, 1, _latency)
OFFLINE = Scenario("Offline", "offline", None, 1, _throughput)
ALL = (SINGLE_STREAM, MULTI_STREAM, OFFLINE)
