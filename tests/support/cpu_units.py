"""The engine's units of `kernels/cpu` for pixels, noise and scores behind C functions
(`native/units.cpp`), compiled once a session.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from typing import Any

import pytest

from support import ROOT, TESTS

CPU = ROOT / "kernels" / "cpu"
UNITS = ("lanczos", "noise", "pixels", "resize", "score")
FLAGS = "-std=c++17 -O2 -fPIC -shared -ffp-contract=off -Wall -Wextra -Werror"
TEXT = 400  # bytes of a failure's text


class UnitError(Exception):
    """Code and text of a `Failure` in C++."""


@functools.cache
def units() -> Any:
    """The compiled functions; skips where there is no compiler.

    CXX, CFLAGS and CXXFLAGS are taken from the environment, as by setup.py.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(compiler[0]):
        pytest.skip(f"there is no C++ compiler {compiler[0]}")
    given = [flag for name in ("CFLAGS", "CXXFLAGS") for flag in shlex.split(os.environ.get(name, ""))]
    sources = [TESTS / "kernels" / "cpu" / "native" / "units.cpp", *(CPU / f"{name}.cpp" for name in UNITS)]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/units.so"
        command = [*compiler, *FLAGS.split(), *given, f"-I{CPU}", *map(str, sources), "-o", library]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(library)


def checked(code: int, text: ctypes.Array[ctypes.c_char]) -> None:
    """Raise UnitError with code and text where a function says so."""
    if code:
        raise UnitError(code, text.value.decode())
