"""What runs an export without PyTorch, one file a runtime; the modules are imported only where one
is chosen.

A runtime opens a session for the network of one export. Its name is that of the backend that
computes the same way.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Session(Protocol):
    """Maps of one network; safe to call from several threads."""

    def maps(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps of a batch, in memory of their own.

        Args:
            x: (B, 3, H, W), contiguous images in [-1, 1].
            z: (D, 3, H, W), contiguous draws, the same for all images.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256).

        Raises:
            BackendError: the runtime failed.
        """
        ...


def default_threads() -> int:
    """OMP_NUM_THREADS where that is a number, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
