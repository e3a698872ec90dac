"""The engine's units of `kernels/cpu` behind C functions (`cpu_units.cpp`), compiled once a session."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

_KERNELS = Path(__file__).parents[2] / "kernels" / "cpu"
_UNITS = ("noise", "pixels", "resize", "score")
_FLAGS = "-std=c++17 -O2 -fPIC -shared -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror"
TEXT = 400  # bytes of a failure's text

UnitFailure = type("UnitFailure", (Exception,), {"__doc__": "Code and text of a C++ Failure."})


@functools.cache
def units() -> ctypes.CDLL:
    """The compiled functions; skips where there is no compiler.

    CXX, CFLAGS and CXXFLAGS are taken from the environment, as of setup.py.
    """
    compiler = os.environ.get("CXX", "c++")
    given = [flag for name in ("CFLAGS", "CXXFLAGS") for flag in shlex.split(os.environ.get(name, ""))]
    sources = [str(Path(__file__).with_suffix(".cpp")), *(str(_KERNELS / f"{name}.cpp") for name in _UNITS)]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/units.so"
        command = [*shlex.split(compiler), *shlex.split(_FLAGS), *given, f"-I{_KERNELS}", *sources, "-o", library]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            pytest.skip(f"there is no C++ compiler {compiler}")
        return ctypes.CDLL(library)


def checked(code: int, text: ctypes.Array[ctypes.c_char]) -> None:
    """Raise UnitFailure with code and text where a function says so."""
    if code:
        raise UnitFailure(code, text.value.decode())
