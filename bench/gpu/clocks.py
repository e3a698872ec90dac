"""Clocks, power and temperature of a GPU while a step runs, as nvidia-smi tells them."""

from __future__ import annotations

import contextlib
import csv
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sprfast.bench.core import timing

FIELDS = {
    "utilization.gpu": "percent_busy",
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
}
EVERY_MS = 1000  # a question that comes more often would be seen in the times
BUSY = 50.0  # percent of a sample's time, from which on it counts as under load


@contextlib.contextmanager
def watched(path: Path, wanted: bool) -> Iterator[None]:
    """Write a line a second to `path` while the body runs, where there is nvidia-smi."""
    if not wanted or shutil.which("nvidia-smi") is None:
        yield
        return
    query = f"--query-gpu={','.join(FIELDS)}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"]
    with path.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def under_load(path: Path) -> dict[str, Any] | None:
    """Median, min and max of every field over the samples with load, and their number; None without
    such a sample.
    """
    if not path.exists():
        return None
    samples = []
    for row in csv.reader(path.read_text().splitlines(), skipinitialspace=True):
        with contextlib.suppress(ValueError):  # "[N/A]", or a line that was cut
            samples.append(dict(zip(FIELDS.values(), map(float, row), strict=True)))
    loaded = [sample for sample in samples if sample["percent_busy"] >= BUSY]
    if not loaded:
        return None
    return {"samples": len(loaded)} | {name: timing.spread([row[name] for row in loaded]) for name in FIELDS.values()}
