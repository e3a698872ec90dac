"""What a bench times: the network only, from tensor to map, or from image file to verdict."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast.bench.core import peers
from sprfast.bench.core.peers import Candidate, Maps
from sprfast.config import Preprocessing
from sprfast.data import images
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import Predictor, Result
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model
from sprfast.method import sde
from sprfast.method.noise import noise_bank

SEED = 0  # of random images
Answer = Callable[[Any], Any]  # what `Work.take` gives, to what `Work.results` reads


@dataclasses.dataclass(frozen=True)
class Images:
    """The samples of a bench."""

    pixels: Tensor  # (N, 3, H, W) float32 in [-1, 1], on the CPU
    description: str
    paths: tuple[Path, ...] | None = None  # of the N files, if they are files


def parity(given: Mapping[str, Tensor], truth: Mapping[str, Tensor], tolerance: float) -> dict[str, Any]:
    """Errors of each result relative to the truth, and whether all are within `tolerance`.

    `relative_rms` is rms(given - truth) / rms(truth), `relative_max` is max|given - truth| /
    max|truth|; null where what is given is not finite or has another shape.
    """
    errors = {name: _errors(given[name], expected) for name, expected in truth.items()}
    worst = max((math.inf if value is None else value) for pair in errors.values() for value in pair.values())
    return {**errors, "passed": worst <= tolerance}


def _errors(given: Tensor, truth: Tensor) -> dict[str, float | None]:
    if given.shape != truth.shape or not given.isfinite().all():
        return {"relative_rms": None, "relative_max": None}
    expected = truth.double().cpu()
    difference = given.double().cpu() - expected
    rms = difference.square().mean().sqrt() / expected.square().mean().sqrt()
    return {"relative_rms": rms.item(), "relative_max": (difference.abs().max() / expected.abs().max()).item()}


def random_images(count: int, size: int) -> Images:
    """`count` images of `size` by `size` pixels that are the same in every run."""
    pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(SEED)) * 2.0 - 1.0
    return Images(pixels, f"uniform random in [-1, 1], seed {SEED}")


def file_images(paths: Sequence[Path], count: int, preprocessing: Preprocessing) -> Images:
    """`count` images decoded from files, spread evenly over `paths`; where there are fewer files
    they repeat.

    Raises:
        InputError: a file cannot be decoded, or two have different sizes at the network's input.
    """
    chosen = [
        paths[index * len(paths) // count] if len(paths) > count else paths[index % len(paths)]
        for index in range(count)
    ]
    decoded = {path: images.load_image(path, preprocessing).pixels for path in dict.fromkeys(chosen)}
    first = chosen[0]
    for path, pixels in decoded.items():
        if pixels.shape != decoded[first].shape:
            sizes = " and ".join(f"{images.display_name(each)} is {decoded[each].shape[1:]}" for each in (first, path))
            raise InputError(f"bench: images must have one size at the network's input, but {sizes}")
    stacked = torch.from_numpy(np.stack([decoded[path] for path in chosen]))
    return Images(stacked, f"{len(decoded)} files, {images.display_name(first)} the first", tuple(chosen))


class Work:
    """One kind of work on the same images and noise for every candidate: here from images on the
    device to both maps on the device.

    Args:
        model: what is computed.
        given: the samples.
        device: where the candidates run; tensors are there before the clock starts.
        calibration: images for the scales of a quantized candidate; None: the samples.

    Raises:
        InputError: this work cannot be done on these samples.
    """

    name = "maps"
    timed = (  # for a person
        "from an input tensor on the device to the anomaly map on the device; decoding, resizing and the drawing of "
        "noise are outside; build and first calls are apart"
    )

    def __init__(self, model: Model, given: Images, device: torch.device, calibration: Images | None = None) -> None:
        self.model, self.given, self.device, self.calibration = model, given, device, calibration or given
        height, width = given.pixels.shape[2:]
        self._bank = noise_bank(model.schedule, height, width, model.noise_seed)
        self.noise = [z.to(device) for z in self._bank]
        self._inputs = self._prepared(given.pixels)
        self._on_device = self._inputs.to(device)

    def _prepared(self, pixels: Tensor) -> Tensor:
        """What a candidate is given of these images, on the CPU."""
        return pixels

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.given.pixels)

    def take(self, indices: Sequence[int]) -> Any:
        """The samples of a query, for a candidate's answer: (B, 3, H, W)."""
        return _rows(self._on_device, indices)

    def build(self, candidate: Candidate) -> Answer:
        """The candidate, ready for samples.

        Raises:
            BackendError: it cannot do this work here; the message says why.
        """
        return candidate.build(self.model, self.noise, self.device)

    def calibrated(self, candidate: Candidate) -> Candidate:
        """The candidate as it is to be built, with its scales if it has any."""
        return candidate.on(self._prepared(self.calibration.pixels)) if candidate.calibrated else candidate

    def predictor(self, answer: Answer) -> Predictor | None:
        """An engine whose maps are those of `answer`, of `build`; None where it gives none."""
        return Engine(self.model, _MapsBackend(answer, self.device, self.given.pixels.shape[2:]))

    def results(self, returned: Any) -> dict[str, Tensor]:
        """What an answer returned, as tensors by name with one row a sample, outside of the time:
        error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256).
        """
        return _named(returned)

    def truth(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The results by `peers.Definition`: in float64, on the CPU whatever the device."""
        return _named(peers.Definition(self.model).maps(_rows(self._inputs, indices), self._bank))


class FileToVerdict(Work):
    """Image files to verdicts through the engine, whichever candidate computes the maps: what a
    line pays.
    """

    name = "file"
    timed = (
        "from an image file to the verdict, by the engine with this candidate as its backend: decoding, resizing, "
        "copies, both maps on the host, score; the file is in the system's cache; build and first calls are apart"
    )

    def __init__(self, model: Model, given: Images, device: torch.device, calibration: Images | None = None) -> None:
        if given.paths is None:
            raise InputError(
                "bench: timing from file to verdict needs image files, give a folder of them with --images"
            )
        super().__init__(model, given, device, calibration)
        self._paths = given.paths

    def take(self, indices: Sequence[int]) -> list[Path]:
        """B paths."""
        return [self._paths[index] for index in indices]

    def build(self, candidate: Candidate) -> Answer:
        """Build the candidate for this work."""
        engine = super().predictor(super().build(candidate))
        assert engine is not None
        return engine.predict

    def predictor(self, answer: Answer) -> Predictor | None:
        """The engine itself."""
        return answer.__self__  # type: ignore[attr-defined,no-any-return]

    def results(self, returned: list[Result]) -> dict[str, Tensor]:
        """The same of both maps."""
        failed = [result.reason for result in returned if result.anomaly_map is None]
        if failed:
            raise InputError(f"bench: an image could not be scored: {failed[0]}")
        maps = ([result.error_map for result in returned], [result.anomaly_map for result in returned])
        return _named([torch.from_numpy(np.stack(each)[:, None]) for each in maps])  # type: ignore[arg-type]


class NetworkOnly(Work):
    """Perturbed images on the device to the network's undivided output on the device."""

    name = "network"
    timed = (
        "the network only, from perturbed images on the device to std(t) times the score on the device; "
        "perturbation, residual and maps are outside; build and first calls are apart"
    )

    def _prepared(self, pixels: Tensor) -> Tensor:
        """(N, D, 3, H, W): D draws of an image, those of the first level first."""
        levels = self.model.schedule.levels
        draws = [sde.std(level.t) * z[:, 0] for level, z in zip(levels, self._bank, strict=True)]
        return pixels[:, None] + torch.cat(draws)

    def build(self, candidate: Candidate) -> Answer:
        """Build the candidate for this work."""
        if candidate.network is None:
            raise BackendError(
                "perturbation and residual are part of its kernels, so the network alone cannot be timed"
            )
        return candidate.network(self.model, peers.draw_times(self.model.schedule), self.device)

    def predictor(self, answer: Answer) -> Predictor | None:
        """None: there are no maps."""
        return None

    def results(self, returned: Tensor) -> dict[str, Tensor]:
        """(B, D, 3, H, W)."""
        return {"scaled_score": returned}

    def truth(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The truth of this work."""
        network, times = peers.Definition(self.model), peers.draw_times(self.model.schedule)
        return self.results(torch.stack([network.scaled_score(draws, times) for draws in _rows(self._inputs, indices)]))


WORKS: dict[str, type[Work]] = {work.name: work for work in (NetworkOnly, Work, FileToVerdict)}


class _MapsBackend:
    """A candidate as a `backends.Backend`; it has been built with the noise of one size already."""

    def __init__(self, maps: Maps, device: torch.device, size: torch.Size) -> None:
        self.device, self._maps, self._size = device, maps, size

    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if x.shape[2:] != self._size:
            sizes = " and ".join("x".join(map(str, each)) for each in (x.shape[2:], self._size))
            raise InputError(f"bench: images must have one size at the network's input, but there are {sizes}")
        return self._maps(x.to(self.device))


def _named(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("error_map", "anomaly_map"), maps, strict=True))


def _rows(samples: Tensor, indices: Sequence[int]) -> Tensor:
    """A view where the indices are consecutive."""
    if all(after == before + 1 for before, after in itertools.pairwise(indices)):
        return samples[indices[0] : indices[0] + len(indices)]
    return samples[list(indices)]
