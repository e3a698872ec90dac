"""Operators that check themselves: kernel against reference in float64, on fresh random data.

A wrong compilation (a compiler or driver that nobody has tried yet) must be found when an engine is
built, not on a production line.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch, reference

OUTPUTS = ("out", "pooled")  # arguments that an operator writes
# Relative RMS against float64: rounding of the storage. The interpreter truncates to bfloat16, a
# GPU rounds.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if launch.INTERPRETED else 3e-3}


class SelfTestError(RuntimeError):
    """A kernel does not compute what its reference does; the message names it."""


class SelfTest:
    """The operators of `sprfast.kernels`; the first call with arguments of new shapes, strides and
    types is a test.

    What was passed serves as a pattern only: the kernel gets random numbers, and outputs filled
    with NaN. A tested call does not write its own outputs.
    """

    def __init__(self, operators: ModuleType = kernels) -> None:
        self._operators = operators
        self._tested: set[tuple[Any, ...]] = set()

    def __getattr__(self, name: str) -> Any:
        if name not in kernels.__all__:
            raise AttributeError(name)
        operator = getattr(self._operators, name)

        def tested(*arguments: Any) -> Any:
            key = (name, *((a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in arguments))
            if key in self._tested:
                return operator(*arguments)
            returned = check(operator, getattr(reference, name), arguments)
            self._tested.add(key)
            return returned

        return tested

    @property
    def tested(self) -> int:
        """How many distinct calls were tested."""
        return len(self._tested)


def check(operator: Any, truth: Any, arguments: tuple[Any, ...]) -> Any:
    """Run `operator` on random arguments like `arguments` and compare with `truth`; return what it
    returned.

    Raises:
        SelfTestError: it differs.
    """
    names = list(inspect.signature(truth).parameters)
    given = {name: _fresh(name, value) for name, value in zip(names, arguments, strict=True)}
    wide: dict[str, Any] = {
        name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()
    }
    returned, expected = operator(*given.values()), truth(*wide.values())
    if truth is reference.perturb_conv3x3:  # its statistics are those of the values as stored
        expected = reference.group_norm_affine(
            given["out"].double(), wide["bias"], wide["gamma"], wide["beta"], wide["groups"]
        )
    pairs = {name: (given[name], wide[name]) for name in OUTPUTS if name in given}
    if returned is not None:
        pairs["result"] = (returned, expected)
    for name, (got, want) in pairs.items():
        error = relative_rms(got, want)
        if not error <= TOLERANCE[got.dtype]:
            with launch.recorded(_capability(got.device)) as launches:
                operator(*given.values())
            parts = ", then ".join(each.describe() for each in launches)
            raise SelfTestError(
                f"{parts}: {name} has a relative RMS error of {error:.2g}, at most {TOLERANCE[got.dtype]:g} is allowed"
            )
    return returned


def relative_rms(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected, in float64; NaN if anything is NaN."""
    want = expected.double()
    return float(torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want))


def _fresh(name: str, value: Any) -> Any:
    """A tensor of the same shape, strides and type: random, or NaN for what the operator writes."""
    if not isinstance(value, Tensor):
        return value
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    memory = torch.full((extent,), torch.nan, dtype=value.dtype, device=value.device)
    tensor = memory.as_strided(value.shape, value.stride())
    if name not in OUTPUTS:
        tensor.copy_(torch.randn(value.shape, device=value.device))
    return tensor


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return 10 * major + minor
