"""Operators that check themselves: kernel against reference in float64, on fresh random data.

A wrong compilation (a compiler or driver that nobody has tried yet) must be found when an engine is
built, not on a production line.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import torch

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch, reference, trials

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
            key = (name, *trials.kind(arguments))
            if key in self._tested:
                return operator(*arguments)
            returned = check(name, operator, arguments)
            self._tested.add(key)
            return returned

        return tested

    @property
    def tested(self) -> int:
        """How many distinct calls were tested."""
        return len(self._tested)


def check(name: str, operator: Any, arguments: tuple[Any, ...]) -> Any:
    """Run `operator` on random arguments like `arguments` and compare with the reference `name`;
    return what it returned.

    Raises:
        SelfTestError: it differs.
    """
    names = inspect.signature(getattr(reference, name)).parameters
    given = trials.fresh(dict(zip(names, arguments, strict=True)))
    returned = operator(*given.values())
    got = trials.results(given, returned)
    for result, expected in trials.truth(name, given).items():
        error, allowed = trials.relative_rms(got[result], expected), TOLERANCE[got[result].dtype]
        if not error <= allowed:
            with launch.recorded(launch.capability(expected.device)) as launches:
                operator(*given.values())
            parts = ", then ".join(each.describe() for each in launches)
            raise SelfTestError(
                f"{parts}: {result} has a relative RMS error of {error:.2g}, at most {allowed:g} is allowed"
            )
    return returned
