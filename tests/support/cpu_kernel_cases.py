"""Inputs for every operator of `sprfast.kernels.cpu`, run and compared in one way.

What an operator reads lies inside memory full of NaN; what it writes, `space` included, is NaN at
first and lies inside memory that must stay as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from sprfast.kernels.cpu import reference
from sprfast.kernels.cpu.reference import Source
from sprfast.kernels.triton.reference import norm_affine
from support import cpu_operators as operators

OUTPUTS = {
    "conv3x3": ("raw", "affine"),
    "perturb_conv3x3": ("raw", "affine"),
    "head": ("errors",),
    "anomaly_map": ("maps",),
}
OPERATORS = tuple(OUTPUTS)
GUARD = 67  # floats before and after an array, so that none begins on a multiple of 8 bytes
UNTOUCHED = np.float32(-1.2345e30)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an operator is run on: `images` times `draws` samples of `height` x `width` output
    pixels.
    """

    height: int
    width: int
    channels: int = 32  # of the output; of the input for the head
    sources: tuple[tuple[str, int], ...] = (("activation", 32),)  # of conv3x3: kind and channels
    groups: int = 32
    images: int = 1
    draws: int = 1
    noise_per_image: bool = False
    embedding: bool = True
    size: int = 37  # rows and columns of anomaly maps

    @property
    def samples(self) -> int:
        return self.images * self.draws

    def sizes(self, operator: str) -> dict[str, tuple[int, ...]]:
        """Of the outputs, by name."""
        if operator == "head":
            return {"errors": (self.images, 1, self.height, self.width)}
        if operator == "anomaly_map":
            return {"maps": (self.images, 1, self.size, self.size)}
        return {
            "raw": (self.samples, self.height, self.width, self.channels),
            "affine": (self.samples, 2, self.channels),
        }

    def space(self, operator: str, threads: int) -> int:
        if operator == "conv3x3":
            channels_in = sum(channels for _, channels in self.sources)
            return operators.conv3x3_space(self.samples, self.height, self.width, channels_in, self.channels, threads)
        if operator == "perturb_conv3x3":
            return operators.perturb_conv3x3_space(
                self.images, self.draws, self.height, self.width, self.channels, threads
            )
        return operators.anomaly_map_space(self.images, self.height, self.width, self.size)


UP = (("activation", 32), ("upsampled", 32))
CONVOLUTIONS = {
    "16x16": Shape(16, 16, draws=2),
    "no-embedding": Shape(16, 16, embedding=False),
    "17x33": Shape(17, 33, 64, (("activation", 64),), images=2, draws=3),
    "19x23-pooled": Shape(19, 23, 64, (("pooled", 32),), draws=3),
    "12x12-pooled": Shape(12, 12, 128, (("pooled", 64),), draws=2),
    "47x32-pooled-without-embedding": Shape(47, 32, 32, (("pooled", 32),), embedding=False),
    "16x16-upsampled": Shape(16, 16, 32, (("upsampled", 64),), draws=2),
    "17x33-upsampled-and-padded": Shape(17, 33, 32, (("upsampled", 32),), embedding=False),
    "47x32-skip-and-upsampled": Shape(47, 32, 64, (("activation", 64), ("upsampled", 64)), images=2),
    "12x12-skip-and-upsampled": Shape(12, 12, 128, (("activation", 128), ("upsampled", 128)), draws=3),
    "unequal-sources": Shape(9, 10, 96, (("activation", 32), ("upsampled", 96), ("pooled", 64))),
    "one-pixel": Shape(1, 1, 64, (("pooled", 64),), images=2, draws=2),
    "one-tile": Shape(4, 4, 64, (("activation", 96),)),
    "3x5": Shape(3, 5, 32, UP),
    "one-row": Shape(1, 70),
    "one-column": Shape(130, 1),
    "wider-than-a-block": Shape(6, 230),
    "one-group": Shape(8, 8, groups=1),
    "three-groups": Shape(8, 8, 96, groups=3),
    "256-to-256-in-several-steps": Shape(24, 40, 256, (("activation", 256),), draws=3),
    "256-to-512": Shape(12, 12, 512, (("pooled", 256),), draws=3),
    "192x192-upsampled": Shape(192, 192, 32, (("upsampled", 32),)),
    "1024-to-512": Shape(6, 6, 512, (("activation", 512), ("upsampled", 512)), draws=3),
    "512-to-96": Shape(7, 6, 96, (("activation", 512),)),
}
SMALL = {  # for each operator; what it does not depend on is ignored
    "own-noise": Shape(19, 23, 64, (("pooled", 32),), images=4, draws=3, noise_per_image=True, size=70),
    "shared-noise": Shape(47, 32, 32, UP, images=4, draws=1, size=32),
    "threads-share-steps": Shape(24, 40, 256, (("activation", 256),), images=4, size=5),
}


class Written:
    """An array of NaN inside memory that nobody may write."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        count = int(np.prod(shape))
        self._memory = np.full(count + 2 * GUARD, UNTOUCHED)
        self.array = self._memory[GUARD : GUARD + count].reshape(shape)
        self.array.fill(np.nan)

    def is_guarded(self) -> bool:
        return bool((self._memory[:GUARD] == UNTOUCHED).all() and (self._memory[-GUARD:] == UNTOUCHED).all())


def inside_nan(values: np.ndarray) -> np.ndarray:
    """A float32 copy with NaN before and behind it."""
    memory = np.full(values.size + 2 * GUARD, np.nan, dtype=np.float32)
    array = memory[GUARD : GUARD + values.size].reshape(values.shape)
    array[...] = values
    return array


def arguments(operator: str, shape: Shape) -> dict[str, Any]:
    """Random arguments by name, less outputs, space and threads; the weight of conv3x3 is not
    packed.
    """
    s, generator = shape, np.random.default_rng(0)

    def random(*size: int, scale: float = 1.0) -> np.ndarray:
        return inside_nan(generator.standard_normal(size) * scale)

    def affine(channels: int) -> np.ndarray:
        a, b = generator.uniform(0.5, 1.5, (s.samples, channels)), generator.standard_normal((s.samples, channels))
        return inside_nan(np.stack([a, b], axis=1))

    def source(kind: str, channels: int) -> Source:
        height, width = source_size(kind, s.height, s.width)
        embedding = random(s.draws, channels) if s.embedding else None
        return Source(random(s.samples, height, width, channels), affine(channels), embedding, kind)

    noise = random(s.draws, s.images if s.noise_per_image else 1, 3, s.height, s.width)
    norm = {"bias": random(s.channels), "gamma": random(s.channels), "beta": random(s.channels), "groups": s.groups}
    if operator == "conv3x3":
        sources = [source(*each) for each in s.sources]
        channels_in = sum(channels for _, channels in s.sources)
        weight = random(s.channels, channels_in, 3, 3, scale=(9 * channels_in) ** -0.5)
        return {"sources": sources, "weight": weight, **norm, "draws": s.draws}
    if operator == "perturb_conv3x3":
        image, std = random(s.images, 3, s.height, s.width), inside_nan(generator.uniform(0.01, 1, s.draws))
        return {"image": image, "noise": noise, "std": std, "weight": random(27, s.channels, scale=27**-0.5), **norm}
    if operator == "head":
        raw, scale = random(s.samples, s.height, s.width, s.channels), inside_nan(generator.uniform(0.1, 1, s.draws))
        weight = random(3, s.channels, scale=s.channels**-0.5)
        return {
            "raw": raw,
            "affine": affine(s.channels),
            "weight": weight,
            "bias": random(s.draws, 3),
            "noise": noise,
            "scale": scale,
        }
    errors = inside_nan(generator.chisquare(3, (s.images, 1, s.height, s.width)))
    return {
        "errors": errors,
        "rows": banded(generator, s.size, s.height),
        "columns": banded(generator, s.size, s.width),
    }


def source_size(kind: str, height: int, width: int) -> tuple[int, int]:
    """Of a source for an output of height x width; pooling drops a row where the height is odd, a
    column where the width is even.
    """
    if kind == "pooled":
        return 2 * height + height % 2, 2 * width + 1 - width % 2
    return (height // 2, width // 2) if kind == "upsampled" else (height, width)


def banded(generator: np.random.Generator, size: int, length: int) -> np.ndarray:
    """(size, length): rows that sum to 1 or, the third, to 0, with zeros at both ends and some
    within.
    """
    at = np.linspace(0, length - 1, size)[:, None]
    weights = np.maximum(0, 1 - np.abs(np.arange(length) - at) / max(1.5, length / 8)) * generator.choice(
        [0, 1, 1, 1], (size, length)
    )
    weights[np.arange(size), at.round().astype(int)[:, 0]] = 1
    weights /= weights.sum(axis=1, keepdims=True)
    weights[2:3] = 0
    return inside_nan(weights)


def run(operator: str, shape: Shape, given: dict[str, Any], threads: int = 1) -> dict[str, np.ndarray]:
    """What the operator writes; nothing beside it may be written."""
    written = {name: Written(size) for name, size in shape.sizes(operator).items()}
    if operator != "head":
        written["space"] = Written((shape.space(operator, threads),))
    passed = {**given, **{name: each.array for name, each in written.items()}, "threads": threads}
    if operator == "conv3x3":
        passed["weight"] = inside_nan(operators.pack_conv3x3(given["weight"]))
    getattr(operators, operator)(**passed)
    for name, each in written.items():
        assert each.is_guarded(), f"{operator}: wrote outside {name}"
    return {name: written[name].array for name in OUTPUTS[operator]}


def truth(
    operator: str, shape: Shape, given: dict[str, Any], precision: torch.dtype | None = None
) -> dict[str, np.ndarray]:
    """As `run`, by the reference in float64, with the inputs of conv3x3 rounded to `precision`."""
    wide = {name: _double(value) for name, value in given.items()}
    if operator == "conv3x3":
        del wide["draws"]
        wide |= {"height": shape.height, "width": shape.width, "precision": precision}
    result = getattr(reference, operator)(**wide)
    results = result if isinstance(result, tuple) else (result,)
    return {name: value.numpy() for name, value in zip(OUTPUTS[operator], results, strict=True)}


def assert_correct(
    operator: str,
    shape: Shape,
    bounds: dict[str, float],
    threads: int = 1,
    precision: torch.dtype | None = None,
) -> None:
    """Relative RMS errors against the reference in float64 are within bounds, by output.

    An affine is that of the values as stored: those of few pixels follow every rounding of theirs.
    """
    given = arguments(operator, shape)
    got, expected = run(operator, shape, given, threads), truth(operator, shape, given, precision)
    if "affine" in got:
        raw, bias, gamma, beta = (_double(each) for each in (got["raw"], given["bias"], given["gamma"], given["beta"]))
        expected["affine"] = norm_affine(raw.permute(0, 3, 1, 2), bias, gamma, beta, shape.groups).numpy()
    for name, value in got.items():
        error = relative_rms(value, expected[name])
        assert error <= bounds[name], f"{operator} {shape}: {name} has a relative RMS error of {error:.3g}"


def assert_same_bits(got, expected):
    for name, value in expected.items():
        assert value.shape == got[name].shape
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(got[name].view(np.int32), value.view(np.int32), err_msg=name)


def relative_rms(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.sqrt(np.square(got - expected).mean() / np.square(expected).mean()))


def of_image(shape: Shape, given: dict[str, Any], image: int) -> dict[str, Any]:
    """The arguments for one of the images alone, in memory of their own."""
    samples = slice(image * shape.draws, (image + 1) * shape.draws)

    def part(name: str, value: Any) -> Any:
        if name == "sources":
            return [
                Source(inside_nan(s.raw[samples]), inside_nan(s.affine[samples]), s.embedding, s.kind) for s in value
            ]
        if name in ("raw", "affine"):
            return inside_nan(value[samples])
        if name in ("image", "errors"):
            return inside_nan(value[image : image + 1])
        return inside_nan(value[:, image : image + 1]) if name == "noise" and shape.noise_per_image else value

    return {name: part(name, value) for name, value in given.items()}


def _double(value: Any) -> Any:
    if isinstance(value, Source):
        return Source(_double(value.raw), _double(value.affine), _double(value.embedding), value.kind)
    if isinstance(value, list):
        return [_double(each) for each in value]
    return torch.from_numpy(value.astype(np.float64)) if isinstance(value, np.ndarray) else value
