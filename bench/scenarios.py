"""SingleStream, MultiStream and Offline, by the definitions of MLPerf Inference but not by its rules; `arrivals` has Server.

Runs are seconds long where MLPerf asks for 600 s, and data and model are other ones: MLPerf-style,
not an MLPerf result.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from sprfast.bench import timing
from sprfast.bench.peers import Maps

MULTI_STREAM_SAMPLES = 8  # of a query
NOTE = "MLPerf-style, not an MLPerf result"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How queries are made of the samples, and what is told of their times."""

    name: str  # MLPerf's
    key: str  # in a report
    minimum_rounds: int
    query: Callable[[Tensor, int], Tensor]  # samples (N, 3, H, W) and the number of the query to images (B, 3, H, W)
    figures: Callable[[Sequence[float], int], dict[str, Any]]  # seconds of every query and N to figures

    def rounds(self, candidates: Mapping[str, Maps], samples: Tensor, seconds: float) -> Iterator[timing.Round]:
        """Interleaved rounds; in each, every candidate answers the same query.

        Args:
            candidates: by name.
            samples: (N, 3, H, W), on the device that the candidates run on.
            seconds: time for all candidates together.
        """

        def answering(maps: Maps) -> Callable[[int], object]:
            return lambda index: maps(self.query(samples, index))

        calls = {name: answering(maps) for name, maps in candidates.items()}
        return timing.rounds(calls, samples.device, seconds, self.minimum_rounds)

    def summary(self, measured: Sequence[timing.Round], name: str, baseline: str, samples: int) -> dict[str, Any]:
        """The figures of candidate `name`, with its speed relative to `baseline`."""
        seconds = [times[name] for times in measured]
        return self.figures(seconds, samples) | {"rounds": True, f"ratio_to_{baseline}": timing.ratio(measured, baseline, name)}


def _one_sample(samples: Tensor, index: int) -> Tensor:
    first = index % samples.shape[0]
    return samples[first : first + 1]


def _eight_samples(samples: Tensor, index: int) -> Tensor:
    return samples[[(MULTI_STREAM_SAMPLES * index + i) % samples.shape[0] for i in range(MULTI_STREAM_SAMPLES)]]


def _all_samples(samples: Tensor, index: int) -> Tensor:
    return samples


def _latency(seconds: Sequence[float], samples: int) -> dict[str, Any]:
    milliseconds = [1e3 * value for value in seconds]
    n = len(milliseconds)
    slowest = [f"p{q}" for q in (50, 90, 99) if timing.percentile(range(n), q) == n - 1]
    note = f"percentiles by nearest rank from {n} queries" + (f"; {' = '.join(slowest)} = the slowest" if slowest else "")
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
SINGLE_STREAM = Scenario("SingleStream", "single_stream", 3, _one_sample, _latency)
MULTI_STREAM = Scenario("MultiStream", "multi_stream", 3, _eight_samples, _latency)
OFFLINE = Scenario("Offline", "offline", 3, _all_samples, _throughput)  # all samples in one query
ALL = (SINGLE_STREAM, MULTI_STREAM, OFFLINE)
