"""What a piece of work takes of memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def peak(work: Callable[[], object], limit: int) -> int:
    """Bytes that the whole process takes for it at most; the least of three times where it is above
    `limit`, since pages of the process itself may have been swapped out before. Skips the test
    where the system does not reset its mark.
    """
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, 2**17)  # so that what is free again does not count
    found: list[int] = []
    while len(found) < 3 and min(found, default=limit + 1) > limit:
        library.malloc_trim(0)  # so that what was free before does
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        except OSError:
            pytest.skip("this system does not reset its mark of memory")
        before = _resident("VmRSS")
        work()
        found.append(_resident("VmHWM") - before)
    return min(found)


def _resident(field: str) -> int:
    """Bytes that this process has (VmRSS), or had at most since the mark was reset (VmHWM)."""
    text = Path("/proc/self/status").read_text("ascii")
    return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024
