"""What the process holds while it soaks: samples over time, and the slope of each quantity."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_PROCESSES = Path("/proc")  # of Linux
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of glibc's mallopt


@dataclasses.dataclass(frozen=True)
class ProcessSample:
    """The process at one moment; what this system does not tell is None."""

    frames: int  # answered so far
    seconds: float  # since the first frame
    memory_kb: float | None  # resident
    threads: float | None  # of the process, those of libraries included
    python_threads: int | None
    descriptors: float | None  # open
    p50_ms: float | None  # from trigger to answer, of the good frames answered last
    p99_ms: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend:
    """How a quantity changes with each 1,000 frames; no slope where fewer than three samples of it
    are known.
    """

    slope: float | None = None  # of the line that fits best by least squares
    standard_error: float | None = None  # of that slope, taking the residuals for independent
    # of the lines through any two samples; one step, as of an allocator that takes more once, does
    # not move it
    median_slope: float | None = None
    samples: int | None = None
    first: float | None
    last: float | None


class Samples:
    """At most so many samples of this process, in memory of fixed size, since what they need must
    not look like a leak.
    """

    def __init__(self, most: int) -> None:
        integers = ("frames", "python_threads")
        fields = [(field.name, int if field.name in integers else float) for field in dataclasses.fields(ProcessSample)]
        self._rows = np.full(most, 0, fields)  # written to, so that the system has given the memory
        self.count = 0

    def take(self, frames: int, seconds: float, latencies: npt.NDArray[np.float64]) -> None:
        """Another one, once garbage is collected; `latencies` are seconds, of good frames."""
        gc.collect()
        memory, threads, descriptors = held("self")
        known = len(latencies) > 0
        percentiles = 1e3 * np.percentile(latencies, (50, 99), method="inverted_cdf") if known else (np.nan, np.nan)
        self._rows[self.count] = (
            frames,
            seconds,
            memory,
            threads,
            threading.active_count(),
            descriptors,
            *percentiles,
        )
        self.count += 1

    def listed(self) -> list[ProcessSample]:
        """All of them."""
        found = []
        for row in self._rows[: self.count].tolist():
            known: list[Any] = [None if math.isnan(value) else value for value in row]
            found.append(ProcessSample(*known))
        return found


def trend(samples: Sequence[ProcessSample], quantity: str) -> Trend:
    """Trend of the quantity that a sample has under this name."""
    values = [getattr(sample, quantity) for sample in samples]
    first, last = (values[0], values[-1]) if values else (None, None)
    points = [(sample.frames / 1000, y) for sample, y in zip(samples, values, strict=True) if y is not None]
    if len({frames for frames, _ in points}) < 3:
        return Trend(first=first, last=last)
    x, y = np.array(points, np.float64).T
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    residuals = y - slope * x
    before, after = np.triu_indices(len(points), 1)
    apart = x[after] != x[before]
    slopes = (y[after] - y[before])[apart] / (x[after] - x[before])[apart]
    return Trend(
        slope=slope,
        standard_error=float(np.sqrt(residuals @ residuals / (len(points) - 2) / spread)),
        median_slope=float(np.median(slopes)),
        samples=len(points),
        first=first,
        last=last,
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
    options = {_ARENA_MAX: 1, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**30}
    done = [set_option(option, value) for option, value in options.items()]
    return "one, which only grows" if all(done) else "as glibc has it, which refused to change"


def unavailable() -> str | None:
    """Why memory, threads and descriptors are not told here, or None."""
    known = sys.platform == "linux"
    return None if known else "memory, threads and descriptors are read from /proc, which only Linux has"


def held(process: int | str) -> tuple[float, float, float]:
    """Resident KB, threads and open descriptors of a process, NaN where they are not told.

    Raises:
        OSError: it is gone.
    """
    if unavailable():
        return math.nan, math.nan, math.nan
    folder = _PROCESSES / str(process)
    return _memory_kb(folder), len(os.listdir(folder / "task")), len(os.listdir(folder / "fd"))


def _memory_kb(folder: Path) -> float:
    """Resident memory as the sum over all pages; `statm` would be off by what each core has not yet
    told the kernel.
    """
    lines = (folder / "smaps_rollup").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("Rss:")))
