"""Loads the compiled engine and chooses the instruction set.

Names and order of all fields are those of interface.h.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int32, c_void_p
from pathlib import Path

INTERFACE_VERSION, ERROR_SIZE = 5, 512  # SPR_INTERFACE_VERSION and SPR_ERROR_SIZE
INSTRUCTION_SETS = ("amx", "avx512", "avx2", "neon", "generic")  # best first; see dispatch.h
VARIABLE = "SPRFAST_INSTRUCTION_SET"

_PATH = Path(__file__).with_name("libsprfast.so")
_REASON = _PATH.with_suffix(".txt")  # which the build writes in its place where it fails


class Source(ctypes.Structure):
    """`spr_source`: what a convolution reads."""

    _fields_ = (
        *((name, c_void_p) for name in ("raw", "affine", "embedding")),
        *((name, c_int32) for name in ("channels", "height", "width", "kind")),
    )


class Layer(ctypes.Structure):
    """`spr_layer`: an operator of the network that has just run."""

    _fields_ = (
        ("name", c_char_p),
        *((name, c_int32) for name in ("channels_in", "channels_out", "height", "width", "images", "sources_count")),
        ("sources", POINTER(Source)),
        ("output", c_void_p),
        ("affine", c_void_p),
        ("seconds", c_double),
    )


OBSERVER = CFUNCTYPE(None, POINTER(Layer))


class Interface(ctypes.Structure):
    """`spr_interface`: the functions of the library; a call holds no lock of Python's."""

    _fields_ = (
        ("version", c_int32),
        ("operators", CFUNCTYPE(c_void_p, c_char_p, c_char_p)),
        ("amx_missing", CFUNCTYPE(c_char_p)),
        ("open_threads", CFUNCTYPE(c_void_p, c_int32)),
        ("close_threads", CFUNCTYPE(None, c_void_p)),
        ("open_network", CFUNCTYPE(c_void_p, c_void_p, *[c_int32] * 4, *[c_void_p] * 2, c_char_p)),
        ("close_network", CFUNCTYPE(None, c_void_p)),
        ("maps", CFUNCTYPE(c_int32, *[c_void_p] * 2, *[c_int32] * 3, *[c_void_p] * 3, c_int32, OBSERVER, c_char_p)),
    )


def built() -> bool:
    """Whether the library is there; whether it loads and runs here, `unavailable` says."""
    return _PATH.exists()


def unavailable(precision: str = "float32") -> str | None:
    """None where the operators can run here in this precision, else one sentence: why not, and what
    to do.
    """
    try:
        operators(precision)
    except ValueError as error:
        return str(error)
    return None


def available(precision: str = "float32") -> tuple[str, ...]:
    """Those of INSTRUCTION_SETS that this build has and this processor can run, in their order.

    Raises:
        ValueError: the library is not built, or does not load.
    """
    return tuple(name for name in INSTRUCTION_SETS if _table(name, precision))


@functools.cache
def instruction_set(precision: str = "float32") -> str:
    """The one in use: what SPRFAST_INSTRUCTION_SET names at the first call, else the best of
    `available()`. bfloat16 is for AMX; elsewhere it must be named, being slower than float32 there.

    Raises:
        ValueError: the variable names none of `available()`; bfloat16 without AMX; the library is
            not built, or does not load.
    """
    named = os.environ.get(VARIABLE)
    if named and named not in available(precision):
        raise ValueError(f"{VARIABLE} is {named!r}, which {_refusal(named, precision)}")
    if named or precision == "float32":
        return named or available()[0]
    if missing := amx_missing():
        raise ValueError(
            f"precision {precision} is for processors with AMX, and {missing}; {VARIABLE} set to one of "
            f"{', '.join(available(precision))} computes it in plain loops, more slowly than float32"
        )
    return "amx"


def amx_missing() -> str | None:
    """None where AMX can be used, else why not."""
    reason: bytes | None = interface().amx_missing()
    return None if reason is None else reason.decode()


@functools.cache
def load(instruction_set: str, precision: str = "float32") -> int:
    """Address of the operators as compiled for one of INSTRUCTION_SETS.

    Raises:
        ValueError: it is none of `available()`; the library is not built, or does not load.
    """
    table = _table(instruction_set, precision)
    if not table:
        raise ValueError(f"instruction set {instruction_set!r} {_refusal(instruction_set, precision)}")
    return table


def operators(precision: str = "float32") -> int:
    """Address of the operators as compiled for `instruction_set()`.

    Raises:
        ValueError: as of `instruction_set`.
    """
    return load(instruction_set(precision), precision)


def _refusal(name: str, precision: str) -> str:
    why = "is not known"
    if name in INSTRUCTION_SETS:
        why = f"does not run {precision} on this processor or is not in this build"
    return f"{why}: choose from {', '.join(available(precision))}"


def _table(name: str, precision: str) -> int | None:
    """Address of the operators for an instruction set, or None."""
    return interface().operators(os.fsencode(name), precision.encode())  # type: ignore[no-any-return]


@functools.cache
def interface() -> Interface:
    """The library's functions.

    Raises:
        ValueError: it is not built, or does not load.
    """
    again = "`pip install --force-reinstall --no-deps .` in its source folder"
    if not _PATH.exists():
        reason = _REASON.read_text("utf-8") if _REASON.exists() else f"{_PATH} is missing"
        raise ValueError(
            f"the CPU kernels are not built ({reason}): install a C++17 compiler (`apt install g++` or "
            f"`dnf install gcc-c++`), then sprfast again with {again}"
        )
    try:
        library = ctypes.CDLL(str(_PATH))
    except OSError as error:
        raise ValueError(f"the CPU kernels do not load ({error}): install sprfast again with {again}") from error
    try:
        found = Interface.in_dll(library, "spr_interface")
        if found.version == INTERFACE_VERSION:
            return found
    except ValueError:
        pass  # an older one has no such symbol
    raise ValueError(f"the CPU kernels in {_PATH} were built from other sources: install sprfast again with {again}")
