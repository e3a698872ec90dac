"""The operator calls of one forward, recorded without running any, and fresh arguments for them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sprfast.backends.triton import STORAGE, FusedUNet
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import reference, trials
from sprfast.kernels.triton.trials import Arguments
from sprfast.lowering.fold import fold


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One operator with arguments of one kind."""

    operator: str
    arguments: Arguments  # tensors on the meta device
    returned: Tensor | None  # on the meta device

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that do the same work."""
        return (self.operator, *trials.kind(self.arguments.values()))

    @property
    def bytes(self) -> int:
        """The algorithmic minimum: every tensor that is read or written, once; memory that an
        operator needs for itself does not count.
        """
        return sum(value.nbytes for value in (*self.arguments.values(), self.returned) if isinstance(value, Tensor))

    @property
    def shape(self) -> str:
        """Type and shape of the map that is read; of the images for the first operator."""
        first: Tensor = next(iter(self.arguments.values()))
        return f"{str(first.dtype).removeprefix('torch.')} {'x'.join(map(str, first.shape))}"

    def fresh(self, device: torch.device, seed: int = 0) -> Arguments:
        """Arguments of the same shapes, strides and types: random, or NaN for what the operator
        writes.
        """
        return trials.fresh(self.arguments, device, torch.Generator(device).manual_seed(seed))


@torch.inference_mode()
def recorded(model: Model, images: int, height: int, width: int, precision: Precision) -> list[Call]:
    """Every operator call of scoring `images` images, in order."""
    calls: list[Call] = []

    def record(name: str, *arguments: Any) -> Any:
        truth = getattr(reference, name)
        returned = truth(*arguments)
        names = inspect.signature(truth).parameters
        calls.append(Call(name, dict(zip(names, arguments, strict=True)), returned))
        return returned

    meta = torch.device("meta")
    operators = SimpleNamespace(**{name: functools.partial(record, name) for name in kernels.__all__})
    network = FusedUNet(fold(model), meta, STORAGE[precision], operators)
    network.maps(*network.blank(images, height, width))
    return calls
