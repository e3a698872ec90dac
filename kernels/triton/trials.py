"""Random arguments for an operator, and what it must make of them. Needs torch alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sprfast.kernels.triton import reference

OUTPUTS = ("out", "pooled")  # arguments that an operator writes
Arguments = dict[str, Any]  # by the reference's names, in their order


def kind(values: Iterable[Any]) -> tuple[Any, ...]:
    """Equal for arguments of the same shapes, strides and types."""
    return tuple((value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value for value in values)


def fresh(
    pattern: Arguments, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Arguments:
    """Arguments of the same kind: random, NaN for what the operator writes, zeros for counters.

    Args:
        pattern: whose numbers do not matter.
        device: of the tensors; None takes that of each one's pattern.
        generator: on this device; None takes torch's own.
    """

    def like(name: str, value: Tensor) -> Tensor:
        where = device or value.device
        if not value.is_floating_point():
            return torch.zeros_like(value, device=where)
        extent = 1 + sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True))
        memory = torch.full((extent,), torch.nan, dtype=value.dtype, device=where)
        tensor = memory.as_strided(value.shape, value.stride())
        if name not in OUTPUTS:
            tensor.copy_(torch.randn(value.shape, device=where, generator=generator))
        return tensor

    return {name: like(name, value) if isinstance(value, Tensor) else value for name, value in pattern.items()}


def widened(given: Arguments) -> Arguments:
    """The same arguments in float64."""
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


def results(given: Arguments, returned: Tensor | None) -> dict[str, Tensor]:
    """What an operator wrote and, as "result", returned."""
    written = {name: given[name] for name in OUTPUTS if name in given}
    return written if returned is None else written | {"result": returned}


def truth(operator: str, given: Arguments) -> dict[str, Tensor]:
    """The results of the reference in float64; `given` is what `operator` has been run on."""
    wide = widened(given)
    expected = getattr(reference, operator)(*wide.values())
    if operator == "perturb_conv3x3":  # its statistics are those of the values as stored
        norm = [wide[name] for name in ("bias", "gamma", "beta", "groups")]
        expected = reference.norm_affine(given["out"].double(), *norm)
    return results(wide, expected)


def relative_rms(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected, in float64; NaN if anything is NaN."""
    want = expected.double()
    return float(torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want))
