"""What a piece of work takes of memory."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

_MMAP_THRESHOLD = -3  # of glibc's malloc.h


class Peak:
    """From here on, in the whole process; skips the test where the system does not reset its
    mark.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**17)  # so that what is free again does not count
        library.malloc_trim(0)  # and what was free before does
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        except OSError:
            pytest.skip("this system does not reset its mark of memory")
        self._before = _resident("VmRSS")

    def bytes(self) -> int:
        return _resident("VmHWM") - self._before


def _resident(field: str) -> int:
    """Bytes that this process has (VmRSS), or had at most since the mark was reset (VmHWM)."""
    text = Path("/proc/self/status").read_text("ascii")
    return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024
