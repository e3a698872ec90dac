"""What the process holds while it soaks: samples over time, and the slope of each quantity."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_PROCESS = Path("/proc/self")  # of Linux
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of glibc's mallopt


@dataclasses.dataclass(frozen=True)
class ProcessSample:
    """The process at one moment; what this system does not tell is None."""

    frames: int  # answered so far
    seconds: float  # since the first frame
    memory_kb: float | None  # resident
    threads: float | None  # of the process, those of libraries included
    python_threads: int
    descriptors: float | None  # open
    p50_ms: float | None  # from trigger to answer, of the good frames answered last
    p99_ms: float | None


@dataclasses.dataclass(frozen=True)
class Trend:
    """How a quantity changes with each 1,000 frames."""

    slope: float  # of the line that fits best by least squares
    standard_error: float  # of that slope, taking the residuals for independent
    # of the lines through any two samples; one step, as of an allocator that takes more once, does
    # not move it
    median_slope: float
    samples: int


class Samples:
    """Samples of this process in memory of fixed size, since what they need must not look like a
    leak.

    Args:
        most: samples.
    """

    def __init__(self, most: int) -> None:
        self._rows = np.full((most, len(dataclasses.fields(ProcessSample))), np.nan)
        self.count = 0

    def take(self, frames: int, seconds: float, latencies: npt.NDArray[np.float64]) -> None:
        """Another one, once garbage is collected.

        Args:
            frames: answered so far.
            seconds: since the first frame.
            latencies: in seconds, of the good frames answered last.
        """
        gc.collect()
        percentiles = (
            1e3 * np.percentile(latencies, (50, 99), method="inverted_cdf") if len(latencies) else (np.nan, np.nan)
        )
        held = (_memory_kb(), _entries("task"), threading.active_count(), _entries("fd"))
        self._rows[self.count] = (
            frames,
            seconds,
            *(np.nan if value is None else value for value in held),
            *percentiles,
        )
        self.count += 1

    def listed(self) -> list[ProcessSample]:
        """All of them."""
        return [
            ProcessSample(
                int(frames),
                seconds,
                _known(memory),
                _known(threads),
                int(python),
                _known(descriptors),
                _known(p50),
                _known(p99),
            )
            for frames, seconds, memory, threads, python, descriptors, p50, p99 in self._rows[: self.count].tolist()
        ]


def trend(samples: Sequence[ProcessSample], value: Callable[[ProcessSample], float | None]) -> Trend | None:
    """Trend of one quantity; None where there are fewer than three samples of it."""
    points = [(sample.frames / 1000, known) for sample in samples if (known := value(sample)) is not None]
    if len({frames for frames, _ in points}) < 3:
        return None
    x, y = np.array(points, np.float64).T
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    residuals = y - slope * x
    first, second = np.triu_indices(len(points), 1)
    apart = x[second] != x[first]
    slopes = (y[second] - y[first])[apart] / (x[second] - x[first])[apart]
    return Trend(
        slope, float(np.sqrt(residuals @ residuals / (len(points) - 2) / spread)), float(np.median(slopes)), len(points)
    )


def one_heap() -> str:
    """Have the C library keep all memory in one heap that only grows; what came of it, for a
    report.

    Otherwise each thread has one, which steps up at its own fullest moment, long after the others;
    and memory that is given back and taken again makes every sample another. In one heap that only
    grows, what grows without end shows.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return "as the C library has it, which is not glibc"
    done = [
        set_option(option, value)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**30))
    ]
    return "one, which only grows" if all(done) else "as glibc has it, which refused to change"


def unavailable() -> str | None:
    """Why memory, threads and descriptors are not told here, or None."""
    return (
        None if sys.platform == "linux" else "memory, threads and descriptors are read from /proc, which only Linux has"
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _memory_kb() -> float | None:
    """Resident memory as the sum over all pages; `statm` would be off by what each core has not yet
    told the kernel.
    """
    if unavailable():
        return None
    lines = (_PROCESS / "smaps_rollup").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("Rss:")))


def _entries(folder: str) -> int | None:
    return None if unavailable() else len(os.listdir(_PROCESS / folder))
