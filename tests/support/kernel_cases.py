"""Inputs for every operator of `sprfast.kernels`, run and compared in one way on a CPU and on a
GPU.

Numbers are fresh in every run; a failure names the seed, and SPRFAST_TEST_SEED=<seed> repeats it.
Maps that an operator writes lie inside wider memory full of NaN, and what it allocates is NaN at
first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import secrets
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import reference, trials
from sprfast.kernels.triton.launch import INTERPRETED
from sprfast.kernels.triton.trials import OUTPUTS, relative_rms

SEED = int(os.environ.get("SPRFAST_TEST_SEED", secrets.randbelow(2**31)))
DEVICE = "cpu" if INTERPRETED else "cuda"  # where kernels run here
OPERATORS = tuple(kernels.__all__)
STORAGES = (torch.float32, torch.float16, torch.bfloat16)
# Relative RMS against float64: rounding of the storage. The interpreter truncates to bfloat16, a
# GPU rounds.
BOUND = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 3e-3}
HEADS = ("affine_swish_head", "norm_swish_head")
GUARD = 64  # elements of NaN before and after a map


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an operator is run on: `images` times `draws` samples; up-sampled maps may have one more
    row or column.
    """

    channels: int
    height: int
    width: int
    groups: int = 32
    images: int = 1
    draws: int = 1
    noise_per_image: bool = False
    more_rows: int = 0
    more_columns: int = 0

    def takes(self, operator: str) -> bool:
        """Whether the operator exists for this shape: image-sided ones end at 128 channels, pooling
        needs two rows and columns.
        """
        if operator in (*HEADS, "noise_conv3x3", "perturb_conv3x3"):
            return self.channels <= 128
        return not operator.endswith("_pool") or min(self.height, self.width) >= 2


def arguments(operator: str, shape: Shape, storage: torch.dtype, device: str = DEVICE) -> dict[str, Any]:
    """Random arguments, by name and in the operator's order; those in `OUTPUTS` are NaN."""
    s, samples = shape, shape.images * shape.draws
    generator = None if device == "meta" else torch.Generator(device).manual_seed(SEED)

    def random(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=generator, dtype=dtype, device=device)

    def written(height: int, width: int, wide: int, first: int) -> Tensor:
        return guarded((samples, s.channels, height, width), storage, device, wide, first)

    def plane(height: int, width: int) -> Tensor:
        return guarded((s.images, 1, height, width), torch.float32, device, 1, 0)

    given = {
        "raw": random(samples, s.height, s.width, s.channels, dtype=storage).permute(0, 3, 1, 2),
        "bias": random(s.channels),
        "gamma": random(s.channels),
        "beta": random(s.channels),
        "groups": s.groups,
        "affine": random(samples, 2, s.channels),
        "embedding": random(s.draws, s.channels),
        "out": written(s.height, s.width, s.channels, 0),
        "arrived": torch.zeros(samples + 2, dtype=torch.int32, device=device),
    }
    if operator.endswith("_pool"):
        given["out"] = written(s.height, s.width, 2 * s.channels, 0)
        given["pooled"] = written(s.height // 2, s.width // 2, s.channels, 0)
    elif operator == "affine_swish_up2":
        given["out"] = written(2 * s.height + s.more_rows, 2 * s.width + s.more_columns, 2 * s.channels, s.channels)
    elif operator in (*HEADS, "noise_conv3x3", "perturb_conv3x3"):
        noises = s.images if s.noise_per_image else 1
        if operator == "noise_conv3x3":
            given["out"] = guarded((s.draws * noises, s.channels, s.height, s.width), storage, device, s.channels, 0)
        given["noise"] = random(s.draws * noises, s.height, s.width, s.channels, dtype=storage).permute(0, 3, 1, 2)
        given["z"] = random(s.draws, noises, 3, s.height, s.width)
        given["x"], given["std"], given["scale"] = (
            random(s.images, 3, s.height, s.width),
            random(s.draws).abs(),
            random(s.draws).abs(),
        )
        given["weight"] = reference.pack_weight(random(s.channels, 3, 3, 3))
        if operator in HEADS:
            given["weight"], given["head_bias"] = random(3, s.channels), random(s.draws, 3)
            given["out"] = plane(s.height, s.width)
    elif operator == "anomaly_map":
        given["errors"] = random(s.images, 1, s.height, s.width).square()
        given["rows"], given["columns"] = random(70, s.height), random(70, s.width)
        given["reach"], given["out"] = 15, plane(70, 70)
    return {name: given[name] for name in inspect.signature(getattr(reference, operator)).parameters}


def guarded(size: tuple[int, int, int, int], storage: torch.dtype, device: str, wide: int, first: int) -> Tensor:
    """A channels-last map of NaN: channels from `first` on of `wide`, with NaN before, between and
    after.
    """
    samples, _, height, width = size
    memory = torch.full((2 * GUARD + samples * height * width * wide,), torch.nan, dtype=storage, device=device)
    return memory.as_strided(size, (height * width * wide, 1, width * wide, wide), GUARD + first)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill with NaN what torch.empty returns."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def run(operator: str, given: dict[str, Any]) -> dict[str, Tensor]:
    """What the operator writes and, as "result", returns."""
    with poisoned():
        returned = getattr(kernels, operator)(*given.values())
    return trials.results(given, returned)


def assert_correct(operator: str, given: dict[str, Any], got: dict[str, Tensor]) -> None:
    """Compare with the reference; nothing outside the outputs may be written."""
    expected = trials.truth(operator, given)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        error = relative_rms(value, expected[name])
        assert error <= BOUND[value.dtype], (
            f"{operator}: {name} has a relative RMS error of {error:.2g}, SPRFAST_TEST_SEED={SEED}"
        )
        if name in OUTPUTS:
            memory = value.new_empty(0).set_(value.untyped_storage())
            assert int(memory.isfinite().sum()) == value.numel(), (
                f"{operator}: wrote outside {name}, SPRFAST_TEST_SEED={SEED}"
            )


def of_images(
    operator: str, shape: Shape, storage: torch.dtype, given: dict[str, Any], images: list[int]
) -> dict[str, Any]:
    """The arguments for these images of `given` alone, in this order, in memory of their own."""
    chosen = arguments(operator, dataclasses.replace(shape, images=len(images)), storage, _device(given))
    for name, value in chosen.items():
        if isinstance(value, Tensor) and name not in OUTPUTS:
            value.copy_(rows_of(name, given[name], images, shape))
    return chosen


def rows_of(name: str, value: Tensor, images: list[int], shape: Shape) -> Tensor:
    """The part of an argument or output `name` that belongs to these of the images; parameters
    belong to all.
    """
    if name == "arrived":
        return value[: len(images) * shape.draws + 2]
    if name in ("raw", "affine", *OUTPUTS, "result"):
        return value.unflatten(0, (shape.images, -1))[images].flatten(0, 1)
    if name in ("x", "errors"):
        return value[images]
    if name == "noise" and shape.noise_per_image:
        return value.unflatten(0, (shape.images, -1))[images].flatten(0, 1)
    return value[:, images] if name == "z" and shape.noise_per_image else value


def _device(given: dict[str, Any]) -> str:
    return next(value.device.type for value in given.values() if isinstance(value, Tensor))
