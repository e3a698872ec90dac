"""The interface of sessions, which compute maps on numpy arrays; one file a runtime.

A session runs one network. Nothing here imports PyTorch, and a runtime's library is imported where
a session of it is opened.
"""

from __future__ import annotations

import bisect
import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from sprfast.errors import InputError

Floats = npt.NDArray[np.float32]
Flavour = Literal["tensorrt", "tensorrt_rtx"]  # of TensorRT; which are the modules' names too
Progress = Callable[[str, int, int], None]  # what is done, steps done, their number
BACKENDS = ("cpu", "onnxruntime", *get_args(Flavour))  # which are sessions

MOST_THREADS = 1024  # of a computation on a CPU
CAPTURED = (1, 2, 4, 8, 16, 32)  # images in a CUDA graph; beyond 32 a GPU gains nothing more


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


@dataclasses.dataclass(frozen=True)
class TensorRtOptions:
    """How TensorRT builds and runs."""

    capture: bool = False  # replay each batch as a CUDA graph; needs cuda-bindings
    shared_plan: bool = False  # without the weights, so that all models of one structure share it
    workspace_bytes: int | None = None  # that a layer may use on the device; None: all there is
    on_progress: Progress | None = None  # while a plan is built


def unavailable(backend: str) -> str | None:
    """None where one of `BACKENDS` can run on this machine, else the reason and what to install."""
    if backend in get_args(Flavour):
        from sprfast.backends.sessions import tensorrt

        return tensorrt.unavailable(cast(Flavour, backend))
    return importlib.import_module(f"sprfast.backends.sessions.{backend}").unavailable()  # type: ignore[no-any-return]


def split(count: int, sizes: Sequence[int]) -> list[tuple[slice, int]]:
    """Which images go together, each part with the smallest batch that holds it: 70 in 32, 32 and 6
    of 8.

    Args:
        count: of all images.
        sizes: that a batch may have, rising.
    """
    parts = [slice(first, min(first + sizes[-1], count)) for first in range(0, count, sizes[-1])]
    return [(part, sizes[bisect.bisect_left(sizes, part.stop - part.start)]) for part in parts]


def require_threads(threads: int) -> None:
    """Refuse numbers of threads that no machine has, which would be made before any work.

    Raises:
        InputError: it is not from 1 to `MOST_THREADS`.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads: {threads} is not allowed, expected 1 to {MOST_THREADS}")


def default_threads() -> int:
    """OMP_NUM_THREADS where that is a number up to `MOST_THREADS`, else the cores that this process
    may use.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip().lstrip("0")
    if given.isdecimal() and len(given) <= len(str(MOST_THREADS)) and int(given) <= MOST_THREADS:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
