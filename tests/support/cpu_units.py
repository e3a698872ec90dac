"""The engine's units of `kernels/cpu` for pixels, noise and scores behind C functions
(`native/units.cpp`), compiled once a session for each machine.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from typing import Any

import numpy as np

from support import ROOT, TESTS, machine

CPU = ROOT / "kernels" / "cpu"
UNITS = ("lanczos", "noise", "pixels", "resize", "score")
FLAGS = "-std=c++17 -O2 -fPIC -shared -ffp-contract=off -Wall -Wextra -Werror"
TEXT = 400  # bytes of a failure's text


class UnitError(Exception):
    """Code and text of a `Failure` in C++."""


@functools.cache
def _compiled(on: Any) -> Any:
    sources = [TESTS / "kernels" / "cpu" / "native" / "units.cpp", *(CPU / f"{name}.cpp" for name in UNITS)]
    compiler = on.compiler
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/units.so"
        machine.output([*compiler, *FLAGS.split(), f"-I{CPU}", *sources, "-o", library])
        return on.library(library)


def units() -> Any:
    """The functions as compiled for the machine in use; skips where there is no compiler."""
    return _compiled(machine.current())


def full(shape: Any, value: float, dtype: Any) -> np.ndarray:
    """An array that they can read and write."""
    return machine.current().full(shape, value, dtype)  # type: ignore[no-any-return]


def pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
    """To an array that they are to read, or null."""
    return None if array is None else machine.current().placed(array).ctypes.data_as(ctypes.c_void_p)


def checked(code: int, text: ctypes.Array[ctypes.c_char]) -> None:
    """Raise UnitError with code and text where a function says so."""
    if code:
        raise UnitError(code, text.value.decode())
