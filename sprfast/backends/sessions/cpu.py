"""The folded model through our CPU kernels.

Each convolution applies normalisation and swish to what it reads, so that only the raw outputs of
convolutions are stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sprfast.errors import BackendError, InputError
from sprfast.kernels.cpu import library, operators
from sprfast.kernels.cpu.operators import Floats, Kind, Source, empty
from sprfast.method.anomaly_map import MAP_SIZE, smoothing_matrix
from sprfast.method.folded import BLOCKS, HALVINGS, MIN_SIZE, SKIPS, Array, FoldedModel

SAMPLES = 6  # of a pass: enough to keep all threads busy in the deepest maps


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 3x3 convolution as the network runs it on images of one size."""

    name: str  # of its block and its place there, such as "down1.first"
    channels_in: int
    channels_out: int
    height: int  # pixels, of input and output
    width: int

    @property
    def floats(self) -> int:
        """Size of the output of one sample."""
        return self.height * self.width * self.channels_out


def unavailable() -> str | None:
    """None where the library of kernels is built and loads, else the reason."""
    return library.unavailable()


class CpuSession:
    """A `session.Session` of our kernels, in float32.

    An image gives the same bits in any batch and with any number of threads. Calls from several
    threads at once work side by side, each in a workspace of its own.

    Args:
        folded: in float32; nothing of its convolutions' weights is kept but the packed form.
        threads: gives the number of threads of a call, at least 1.
        operators: `sprfast.kernels.cpu.operators`, or anything with its functions.

    Raises:
        BackendError: the kernels cannot run here.
    """

    def __init__(self, folded: FoldedModel, threads: Callable[[], int], operators: Any = operators) -> None:
        if reason := unavailable():
            raise BackendError(f"backend cpu: {reason}")
        self._operators, self._threads = operators, threads
        self._groups, self.draws = folded.groups, folded.draws
        self._convs: dict[str, list[Floats]] = {}  # packed weight, bias, gamma and beta
        self._channels: dict[str, tuple[int, int]] = {}  # in and out
        for name, block in folded.blocks.items():
            for place, norm in (("first", block.first), ("second", block.second)):
                pack = operators.pack_perturb if (name, place) == ("inc", "first") else operators.pack_conv3x3
                rest = map(_floats, (norm.bias, norm.gamma, norm.beta))
                self._convs[f"{name}.{place}"] = [pack(_floats(norm.weight)), *rest]
                self._channels[f"{name}.{place}"] = (norm.weight.shape[1], norm.weight.shape[0])
        self._embeddings = {
            name: None if block.embedding is None else _floats(block.embedding) for name, block in folded.blocks.items()
        }
        self._head_weight, self._head_bias = _floats(folded.head_weight), _floats(folded.head_bias)
        self._std, self._scale = _floats(folded.std), _floats(folded.scale)
        self._lock = threading.Lock()
        self._idle: tuple[tuple[int, ...], list[Workspace]] = ((), [])  # their size, and those that no call is using

    def layers(self, height: int, width: int) -> list[Layer]:
        """The convolutions in the order of their calls; the first is `perturb_conv3x3`."""
        levels = {name: HALVINGS[name.split(".")[0]] for name in self._convs}
        return [Layer(name, *self._channels[name], height >> level, width >> level) for name, level in levels.items()]

    def maps(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps of images of any size; see `session.Session`.

        As many images go through the network together as make up `SAMPLES` samples, at least one.

        Raises:
            InputError: H or W is less than 16.
        """
        threads = self._threads()
        images, _, height, width = x.shape
        if min(height, width) < MIN_SIZE:
            raise InputError(f"image: expected at least {MIN_SIZE} pixels on each side, got {height}x{width}")
        errors = np.empty((images, 1, height, width), np.float32)
        anomaly_maps = np.empty((images, 1, MAP_SIZE, MAP_SIZE), np.float32)
        together = max(1, SAMPLES // self.draws)
        with self._lent(together, height, width, threads) as space:
            for first in range(0, images, together):
                part = slice(first, first + together)
                self._error_map(x[part], z[:, None], space, errors[part], threads)
                smoothing = map(smoothing_matrix, (height, width))
                self._operators.anomaly_map(errors[part], *smoothing, anomaly_maps[part], space.scratch, threads)
        return errors, anomaly_maps

    def workspace(self, images: int, height: int, width: int, threads: int) -> Workspace:
        """Memory for up to `images` images of this size; unused pages take up none."""
        samples, layers = images * self.draws, self.layers(height, width)
        first, convs, o = layers[0], layers[1:], self._operators
        scratch = [o.conv3x3_space(samples, c.height, c.width, c.channels_in, c.channels_out, threads) for c in convs]
        scratch.append(o.perturb_conv3x3_space(images, self.draws, height, width, first.channels_out, threads))
        scratch.append(o.anomaly_map_space(images, height, width, MAP_SIZE))
        maps = max(start + layer.floats for start, layer in zip(_starts(layers), layers, strict=True))
        affines = sum(2 * layer.channels_out for layer in layers)
        return Workspace(layers, *(empty((count,)) for count in (samples * maps, samples * affines, max(scratch))))

    @contextlib.contextmanager
    def _lent(self, *size: int) -> Iterator[Workspace]:
        """A `workspace` for the time of the context; idle ones of another size are dropped."""
        with self._lock:
            if self._idle[0] != size:
                self._idle = (size, [])
            idle = self._idle[1]
            space = idle.pop() if idle else None
        if space is None:
            space = self.workspace(*size)
        try:
            yield space
        finally:
            idle.append(space)  # which nobody looks into any more where another size came meanwhile

    def _error_map(self, x: Floats, z: Floats, space: Workspace, errors: Floats, threads: int) -> None:
        """One pass: the error maps of images (B, 3, H, W) into `errors` (B, 1, H, W)."""
        outputs = space.outputs(x.shape[0] * self.draws)
        rest = (self._groups, *outputs["inc.first"], space.scratch, threads)
        self._operators.perturb_conv3x3(x, z, self._std, *self._convs["inc.first"], *rest)

        def convolve(name: str, *sources: Source[Floats]) -> None:
            rest = (self._groups, self.draws, *outputs[name], space.scratch, threads)
            self._operators.conv3x3(sources, *self._convs[name], *rest)

        def result(block: str, kind: Kind) -> Source[Floats]:
            return Source(*outputs[f"{block}.second"], self._embeddings[block], kind)

        before = ""
        for name in BLOCKS:
            if name in SKIPS:
                convolve(f"{name}.first", result(SKIPS[name], "activation"), result(before, "upsampled"))
            elif before:
                convolve(f"{name}.first", result(before, "pooled"))
            convolve(f"{name}.second", Source(*outputs[f"{name}.first"], None, "activation"))
            before = name
        self._operators.head(
            *outputs[f"{before}.second"], self._head_weight, self._head_bias, z, self._scale, errors, threads
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Workspace:
    """The memory of one pass: 2.25·samples·H·W·base width floats of raw maps, and little else.

    A map's memory is used again when nothing reads the map any more. Three places, one behind the
    other, hold all maps:

    1. inc.second, later up4.second;
    2. the first map of every block, and behind it the second maps of down1, down2 and down3, which
       skip connections read;
    3. the second maps of down4, up1, up2 and up3.

    In the second place each map takes at most half of the room of the one before it.
    """

    layers: list[Layer]
    maps: Floats  # of all places
    affines: Floats
    scratch: Floats  # of the operators

    def outputs(self, samples: int) -> dict[str, tuple[Floats, Floats]]:
        """Where each layer writes its raw map (samples, H, W, C) and affine (samples, 2, C)."""
        outputs = {}
        affine = 0
        for layer, start in zip(self.layers, _starts(self.layers), strict=True):
            shape = (samples, layer.height, layer.width, layer.channels_out)
            end = affine + samples * 2 * layer.channels_out
            raw = self.maps[samples * start : samples * (start + layer.floats)].reshape(shape)
            outputs[layer.name] = (raw, self.affines[affine:end].reshape(samples, 2, layer.channels_out))
            affine = end
        return outputs


def _floats(value: Array) -> Floats:
    return np.ascontiguousarray(value, np.float32)


def _starts(layers: Sequence[Layer]) -> list[int]:
    """Where the map of each layer begins, in floats a sample; see `Workspace`."""
    full = layers[0].floats
    starts = []
    for layer in layers:
        block, place = layer.name.split(".")
        if place == "first":
            starts.append(full)
        elif block in ("inc", "up4"):
            starts.append(0)
        elif block in ("down1", "down2", "down3"):
            starts.append(full + layer.floats)
        else:
            starts.append(2 * full)
    return starts
