"""Which convolutions of a network could go beyond float32, whatever the image.

A normalisation whose sum of squares overflows gives 0·x + beta: finite, and wrong. Our own kernels
see the variance and answer NaN. A library's does not show it, so what runs on one asks here which
layers it must watch: none of a network whose weights are in any usual range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from sprfast.method.folded import BLOCKS, SKIPS, Array, ConvNorm, FoldedModel

PIXELS = 2.0**32  # of a map, at most
NOISE = 100.0  # magnitude of a draw, at most
LIMIT = 1e36  # of a sum of squares: what rounding adds does not take it beyond float32

_NONE: Mapping[str, float] = MappingProxyType({})
_Bound = npt.NDArray[np.float64]  # (channels,): magnitude, at most


def bounds(folded: FoldedModel, inputs: Mapping[str, float]) -> dict[str, float]:
    """For each convolution, such as "down1.first", what no magnitude in its output is above.

    `inputs` has the largest magnitude of what goes into a convolution, where that is known.

    What comes out of a normalisation of n values is at most sqrt(n) times gamma, plus beta; swish,
    the maximum of a window and interpolation make nothing larger.
    """
    found: dict[str, float] = {}
    outputs: dict[str, _Bound] = {}
    x = np.full(3, 1.0 + NOISE * float(np.abs(folded.std).max()))
    for name in BLOCKS:
        block = folded.blocks[name]
        if name in SKIPS:
            x = np.concatenate([outputs[SKIPS[name]], x])
        for place, layer in (("first", block.first), ("second", block.second)):
            given = inputs.get(f"{name}.{place}", np.inf)
            found[f"{name}.{place}"] = float(_convolved(layer, np.minimum(x, given)).max())
            x = _normalised(layer, folded.groups)
        if block.embedding is not None:
            x = x + np.abs(block.embedding).max(axis=0)
        outputs[name] = x
    return found


def watched(folded: FoldedModel, inputs: Mapping[str, float] = _NONE, largest: float = math.inf) -> frozenset[str]:
    """The convolutions whose output may have squares that add up to more than float32 holds.

    Args:
        inputs: see `bounds`.
        largest: magnitude of an output above which it is watched too.
    """
    sizes = {
        f"{name}.{place}": len(getattr(block, place).bias)
        for name, block in folded.blocks.items()
        for place in ("first", "second")
    }
    with np.errstate(over="ignore"):
        return frozenset(
            name
            for name, bound in bounds(folded, inputs).items()
            if not (bound * bound * sizes[name] * PIXELS < LIMIT and bound <= largest)
        )


def _convolved(layer: ConvNorm[Array], x: _Bound) -> _Bound:
    taps = np.abs(layer.weight).sum(axis=(2, 3), dtype=np.float64)
    total: _Bound = taps @ x + np.abs(layer.bias)
    return total


def _normalised(layer: ConvNorm[Array], groups: int) -> _Bound:
    values = PIXELS * len(layer.gamma) / groups
    bound: _Bound = np.sqrt(values) * np.abs(layer.gamma) + np.abs(layer.beta)
    return bound
