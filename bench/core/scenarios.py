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
NOTE = "MLPerf-style, not an MLPerf result"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How queries are made of the samples, and what is told of their times."""

    name: str  # MLPerf's
    key: str  # in a report
    minimum_rounds: int
    turn: int  # queries of a candidate before the next one has its turn
    query: Callable[[int, int], Sequence[int]]  # number of samples and of the query, to the indices of its samples
    figures: Callable[[Sequence[float], int], dict[str, Any]]  # seconds of every query and N to figures

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
            seconds: time for all candidates together.
        """

        def answering(answer: Callable[[Sequence[int]], object]) -> Callable[[int], object]:
            return lambda index: answer(self.query(samples, index))

        calls = {name: answering(answer) for name, answer in answers.items()}
        settle = {name: functools.partial(answer, [0]) for name, answer in answers.items()}
        return timing.rounds(calls, device, seconds, self.minimum_rounds, turn=self.turn, settle=settle)

    def summary(self, measured: Sequence[timing.Round], name: str, baseline: str, samples: int) -> dict[str, Any]:
        """The figures of candidate `name`, with its speed relative to `baseline`."""
        seconds = [times[name] for times in measured]
        return self.figures(seconds, samples) | {f"ratio_to_{baseline}": timing.ratio(measured, baseline, name)}


def _one_sample(samples: int, index: int) -> Sequence[int]:
    return [index % samples]


def _eight_samples(samples: int, index: int) -> Sequence[int]:
    return [(MULTI_STREAM_SAMPLES * index + i) % samples for i in range(MULTI_STREAM_SAMPLES)]


def _all_samples(samples: int, index: int) -> Sequence[int]:
    return range(samples)


def _latency(seconds: Sequence[float], samples: int) -> dict[str, Any]:
    milliseconds = [1e3 * value for value in seconds]
    n = len(milliseconds)
    slowest = [f"p{q}" for q in (50, 90, 99) if timing.percentile(range(n), q) == n - 1]
    note = f"percentiles by nearest rank from {n} queries" + (
        f"; {' = '.join(slowest)} = the slowest" if slowest else ""
    )
    figures: dict[str, Any] = {"queries": n}
    for q in (50, 90, 99):
        figures[f"p{q}_ms"] = timing.percentile(milliseconds, q)
    for q in (90, 99):
        figures[f"p{q}_early_stopping_ms"] = timing.upper_percentile(milliseconds, q)
    return figures | {"min_ms": min(milliseconds), "max_ms": max(milliseconds), "note": note, "seconds": list(seconds)}


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
SINGLE_STREAM = Scenario("SingleStream", "single_stream", 3, 4, _one_sample, _latency)
MULTI_STREAM = Scenario("MultiStream", "multi_stream", 3, 1, _eight_samples, _latency)
OFFLINE = Scenario("Offline", "offline", 3, 1, _all_samples, _throughput)  # all samples in one query
ALL = (SINGLE_STREAM, MULTI_STREAM, OFFLINE)
