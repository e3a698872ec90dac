"""The folded model: one with everything that is fixed at build time folded into constants.

The time of every draw is known, so the time-embedding network becomes one vector a block and draw;
the last of them, and the factors std(t) around the score, fold into the 1x1 head and the mean:

    r = std·(f + z),  f = W·(h + c) + b = W·h + (W·c + b)
    error map = sum over draws of weight·std² / (3·K) · sum over channels of (f + z)²

A folded model is numpy arrays: what runs it (our kernels on any device, an ONNX graph) needs no
PyTorch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from sprfast.config import GROUPS, NetworkConfig
from sprfast.errors import InputError

BLOCKS = ("inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4")
SKIPS = {"up1": "down3", "up2": "down2", "up3": "down1", "up4": "inc"}  # what a block reads beside the upsampled map
# of the image's sides
HALVINGS = {"inc": 0, "down1": 1, "down2": 2, "down3": 3, "down4": 4, "up1": 3, "up2": 2, "up3": 1, "up4": 0}
MIN_SIZE = 16  # pixels: what four halvings leave a pixel of

Array = npt.NDArray[np.floating[Any]]
T = TypeVar("T")  # an array, here or on a device


@dataclasses.dataclass(frozen=True, eq=False)
class ConvNorm(Generic[T]):
    """A 3x3 convolution with bias, and the GroupNorm behind it."""

    weight: T  # (out, in, 3, 3)
    bias: T  # (out,)
    gamma: T  # (out,), scale of the normalisation
    beta: T  # (out,), its shift


@dataclasses.dataclass(frozen=True, eq=False)
class Block(Generic[T]):
    """Two convolutions with their normalisations, and what is added behind the second swish."""

    first: ConvNorm[T]
    second: ConvNorm[T]
    embedding: T | None  # (D, out) for D draws; None where it is folded into the head


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedModel:
    """A model as constants; pure data. D counts the draws of one image over all sigma levels, in
    their order.
    """

    base_width: int
    groups: int  # of every GroupNorm
    blocks: dict[str, Block[Array]]  # by `BLOCKS`
    std: Array  # (D,), standard deviation of the perturbation
    head_weight: Array  # (3, base_width)
    head_bias: Array  # (D, 3), with the last embedding
    scale: Array  # (D,), weight of the level · std² / (3 · its draws)
    window: int | None = None  # of the anomaly map, see `scoring_mode.ScoringMode`

    @property
    def draws(self) -> int:
        """D: network passes an image."""
        return len(self.std)

    def to_arrays(self) -> dict[str, Array]:
        """Every array, by names such as `down1.first.weight`."""
        arrays = {name: getattr(self, name) for name in _LOOSE}
        for name, block in self.blocks.items():
            for place in ("first", "second"):
                arrays |= {f"{name}.{place}.{field}": array for field, array in vars(getattr(block, place)).items()}
            if block.embedding is not None:
                arrays[f"{name}.embedding"] = block.embedding
        return arrays


_LOOSE = ("std", "head_weight", "head_bias", "scale")


def from_arrays(
    network: NetworkConfig, draws: int, arrays: Mapping[str, Array], window: int | None = None
) -> FoldedModel:
    """The folded model of `to_arrays`, for a network of this width, this number of draws and this
    window.

    Raises:
        InputError: an array is missing, unknown, or not float32 of the shape that it must have.
    """
    expected = shapes(network, draws)
    for name in sorted(expected.keys() ^ arrays.keys()):
        raise InputError(f"array {name!r} is {'missing' if name in expected else 'not one of a plan'}")
    for name, shape in expected.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise InputError(f"array {name!r} is {arrays[name].dtype} {arrays[name].shape}, expected float32 {shape}")

    def norm(place: str) -> ConvNorm[Array]:
        return ConvNorm(**{field.name: arrays[f"{place}.{field.name}"] for field in dataclasses.fields(ConvNorm)})

    blocks = {
        name: Block(norm(f"{name}.first"), norm(f"{name}.second"), arrays.get(f"{name}.embedding")) for name in BLOCKS
    }
    return FoldedModel(network.base_width, GROUPS, blocks, window=window, **{name: arrays[name] for name in _LOOSE})


def shapes(network: NetworkConfig, draws: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a folded model."""
    width = network.base_width
    found: dict[str, tuple[int, ...]] = {
        "std": (draws,),
        "head_weight": (3, width),
        "head_bias": (draws, 3),
        "scale": (draws,),
    }
    for name in BLOCKS:
        middle, out = (factor * width for factor in _WIDTHS[name][1:])
        for place, before, after in (("first", _WIDTHS[name][0] * width or 3, middle), ("second", middle, out)):
            found[f"{name}.{place}.weight"] = (after, before, 3, 3)
            found |= {f"{name}.{place}.{field}": (after,) for field in ("bias", "gamma", "beta")}
        if name != BLOCKS[-1]:
            found[f"{name}.embedding"] = (draws, out)
    return found


# Channels into a block, between its convolutions and out of it, in base widths; 0: the image's
# three.
_WIDTHS = {
    "inc": (0, 1, 1),
    "down1": (1, 2, 2),
    "down2": (2, 4, 4),
    "down3": (4, 8, 8),
    "down4": (8, 8, 8),
    "up1": (16, 8, 4),
    "up2": (8, 4, 2),
    "up3": (4, 2, 1),
    "up4": (2, 1, 1),
}
