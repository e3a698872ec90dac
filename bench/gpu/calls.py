"""The operator calls of one forward, recorded without running any, and fresh arguments for them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sprfast.backends.triton import STORAGE, FusedUNet
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels.triton import reference
from sprfast.lowering.fold import fold

Arguments = dict[str, Any]  # by the reference's names


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One operator with arguments of one kind."""

    operator: str
    arguments: Arguments  # tensors on the meta device
    returned: Tensor | None  # on the meta device

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that do the same work."""
        return (
            self.operator,
            *((v.shape, v.stride(), v.dtype) if isinstance(v, Tensor) else v for v in self.arguments.values()),
        )

    @property
    def bytes(self) -> int:
        """The algorithmic minimum: every tensor that is read or written, once; memory that an
        operator needs for itself does not count.
        """
        return sum(size(value) for value in (*self.arguments.values(), self.returned) if isinstance(value, Tensor))

    @property
    def shape(self) -> str:
        """Type and shape of the map that is read; of the images for the first operator."""
        first: Tensor = next(iter(self.arguments.values()))
        return f"{str(first.dtype).removeprefix('torch.')} {'x'.join(map(str, first.shape))}"

    def fresh(self, device: torch.device, seed: int = 0) -> Arguments:
        """Arguments of the same shapes, strides and types: random, or NaN for what the operator
        writes.
        """
        from sprfast.kernels.triton.self_test import OUTPUTS

        generator = torch.Generator(device).manual_seed(seed)

        def like(name: str, value: Tensor) -> Tensor:
            extent = 1 + sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True))
            tensor = torch.full((extent,), torch.nan, dtype=value.dtype, device=device).as_strided(
                value.shape, value.stride()
            )
            return (
                tensor
                if name in OUTPUTS
                else tensor.copy_(torch.randn(value.shape, device=device, generator=generator))
            )

        return {
            name: like(name, value) if isinstance(value, Tensor) else value for name, value in self.arguments.items()
        }


@torch.inference_mode()
def recorded(model: Model, images: int, height: int, width: int, precision: Precision) -> list[Call]:
    """Every operator call of scoring `images` images, in order."""
    meta = torch.device("meta")
    calls: list[Call] = []
    network = FusedUNet(fold(model), meta, STORAGE[precision], operators=_Recorder(calls))
    network.maps(*network.blank(images, height, width))
    return calls


class _Recorder:
    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        truth = getattr(reference, name)

        def record(*arguments: Any) -> Any:
            returned = truth(*arguments)
            self._calls.append(Call(name, dict(zip(_parameters(name), arguments, strict=True)), returned))
            return returned

        return record


@functools.cache
def _parameters(operator: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(reference, operator)).parameters)


def results(arguments: Arguments, returned: Tensor | None) -> dict[str, Tensor]:
    """What an operator wrote and returned, by name."""
    from sprfast.kernels.triton.self_test import OUTPUTS

    written = {name: arguments[name] for name in OUTPUTS if name in arguments}
    return written if returned is None else written | {"result": returned}


def widened(arguments: Arguments) -> Arguments:
    """The same arguments in float64."""
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def size(x: Tensor) -> int:
    """Bytes of its elements."""
    return x.numel() * x.element_size()
