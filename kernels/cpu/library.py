"""Loads the compiled operators and chooses the instruction set; names and order of all fields are
those of interface.h.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import CFUNCTYPE, POINTER, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

INTERFACE_VERSION = 1  # of interface.h
INSTRUCTION_SETS = ("avx512", "avx2", "generic")  # best first
VARIABLE = "SPRFAST_INSTRUCTION_SET"

_PATH = Path(__file__).with_name("libsprfast.so")
_REASON = _PATH.with_suffix(".txt")  # which the build writes in its place where it fails


def _sizes(*names: str) -> tuple[tuple[str, type[c_int32]], ...]:
    return tuple((name, c_int32) for name in names)


def _arrays(*names: str) -> tuple[tuple[str, type[c_void_p]], ...]:
    return tuple((name, c_void_p) for name in names)


class Source(ctypes.Structure):
    """`spr_source`: what a convolution reads."""

    _fields_ = (*_arrays("raw", "affine", "embedding"), *_sizes("channels", "height", "width", "kind"))


class Conv3x3(ctypes.Structure):
    """`spr_conv3x3`: a convolution and the GroupNorm behind it."""

    _fields_ = (
        *_sizes("samples", "draws", "height", "width", "channels_in", "channels_out", "groups"),
        *_arrays("weight", "bias", "gamma", "beta"),
    )


class PerturbConv3x3(ctypes.Structure):
    """`spr_perturb_conv3x3`: the first convolution, of image + std·noise."""

    _fields_ = (
        *_sizes("images", "draws", "height", "width", "channels_out", "groups", "noise_images"),
        *_arrays("image", "noise", "std", "weight", "bias", "gamma", "beta"),
    )


class Head(ctypes.Structure):
    """`spr_head`: the last convolution and the squared residual."""

    _fields_ = (
        *_sizes("images", "draws", "height", "width", "channels", "noise_images"),
        *_arrays("raw", "affine", "weight", "bias", "noise", "scale"),
    )


class Operators(ctypes.Structure):
    """`spr_operators`: the functions as compiled for one instruction set; a call holds no lock of
    Python's.
    """

    _fields_ = (
        ("pack_conv3x3", CFUNCTYPE(None, c_void_p, c_int32, c_int32, c_void_p)),
        ("conv3x3_space", CFUNCTYPE(c_int64, POINTER(Conv3x3), c_int32)),
        ("conv3x3", CFUNCTYPE(None, POINTER(Conv3x3), POINTER(Source), c_void_p, c_void_p, c_void_p, c_int32)),
        ("perturb_conv3x3_space", CFUNCTYPE(c_int64, POINTER(PerturbConv3x3), c_int32)),
        ("perturb_conv3x3", CFUNCTYPE(None, POINTER(PerturbConv3x3), c_void_p, c_void_p, c_void_p, c_int32)),
        ("head", CFUNCTYPE(None, POINTER(Head), c_void_p, c_int32)),
        ("anomaly_map_space", CFUNCTYPE(c_int64, c_int32, c_int32, c_int32, c_int32)),
        ("anomaly_map", CFUNCTYPE(None, *[c_int32] * 4, *[c_void_p] * 5, c_int32)),
        ("swish", CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
    )


def built() -> bool:
    """Whether the library is there; whether it loads and runs here, `unavailable` says."""
    return _PATH.exists()


def unavailable() -> str | None:
    """None where the operators can run here, else one sentence: why not, and what to do."""
    try:
        operators()
    except ValueError as error:
        return str(error)
    return None


def available() -> tuple[str, ...]:
    """Those of INSTRUCTION_SETS that this build has and this processor can run, in their order.

    Raises:
        ValueError: the library is not built, or does not load.
    """
    return tuple(name for name in INSTRUCTION_SETS if _table(name))


@functools.cache
def instruction_set() -> str:
    """The one in use: what SPRFAST_INSTRUCTION_SET names at the first call, else the best of
    `available()`.

    Raises:
        ValueError: the variable names none of `available()`; the library is not built, or does not
            load.
    """
    named = os.environ.get(VARIABLE)
    if named and named not in available():
        raise ValueError(f"{VARIABLE} is {named!r}, which {_refusal(named)}")
    return named or available()[0]


@functools.cache
def load(instruction_set: str) -> Operators:
    """The operators as compiled for one of INSTRUCTION_SETS.

    Raises:
        ValueError: it is none of `available()`; the library is not built, or does not load.
    """
    table = _table(instruction_set)
    if not table:
        raise ValueError(f"instruction set {instruction_set!r} {_refusal(instruction_set)}")
    return Operators.from_address(table)


def operators() -> Operators:
    """The operators as compiled for `instruction_set()`.

    Raises:
        ValueError: as of `instruction_set`.
    """
    return load(instruction_set())


def _refusal(name: str) -> str:
    why = "does not run on this processor or is not in this build" if name in INSTRUCTION_SETS else "is not known"
    return f"{why}: choose from {', '.join(available())}"


def _table(name: str) -> int | None:
    """Address of the operators for an instruction set, or None."""
    return _find()(os.fsencode(name))  # type: ignore[no-any-return]


@functools.cache
def _find() -> Any:
    """The library's one function, once its interface is known to be the one below."""
    again = "`pip install --force-reinstall --no-deps .` in its source folder"
    if not _PATH.exists():
        reason = _REASON.read_text("utf-8") if _REASON.exists() else f"{_PATH} is missing"
        raise ValueError(
            f"the CPU kernels are not built ({reason}): install a C++17 compiler with OpenMP (`apt install g++` or "
            f"`dnf install gcc-c++`), then sprfast again with {again}"
        )
    try:
        library = ctypes.CDLL(str(_PATH))
    except OSError as error:
        missing = "libgomp" in str(error)
        remedy = "install `libgomp1` (apt) or `libgomp` (dnf)" if missing else f"install sprfast again with {again}"
        raise ValueError(f"the CPU kernels do not load ({error}): {remedy}") from error
    if c_int32.in_dll(library, "spr_interface_version").value != INTERFACE_VERSION:
        raise ValueError(
            f"the CPU kernels in {_PATH} were built from other sources: install sprfast again with {again}"
        )
    find = library.spr_operators
    find.argtypes, find.restype = [ctypes.c_char_p], c_void_p
    return find
