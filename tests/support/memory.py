"""What a piece of work takes of memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def peak(work: Callable[[], object]) -> int:
    """Bytes that the whole process takes for it at most. In a process of its own alone: where much
    was allocated and freed before, free memory that is used again would not be given back. Skips
    the test where the system does not reset its mark.
    """
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, 2**17)  # so that what is free again does not count
    library.malloc_trim(0)  # and what was free before does
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        pytest.skip("this system does not reset its mark of memory")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes that this process has (VmRSS), or had at most since the mark was reset (VmHWM)."""
    text = Path("/proc/self/status").read_text("ascii")
    return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024
