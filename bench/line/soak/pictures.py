"""The pictures that a soak run shows, in memory and as files, with the score of each alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.method.threshold import CLEARANCE

COUNT = 36  # pictures, at most


@dataclasses.dataclass(frozen=True)
class SoakPictures:
    """Distinct pictures of one size."""

    arrays: tuple[npt.NDArray[np.uint8], ...]  # (H, W, 3) RGB
    paths: tuple[Path, ...]  # the same, as PNG
    missing: Path  # there is no such file
    truncated: Path  # half a PNG

    @classmethod
    def create(cls, predictor: Predictor, sources: Sequence[Path] | None, seed: int, folder: Path) -> SoakPictures:
        """Pictures from files, or made-up ones of the size of the network's input, and their copies
        in `folder`.

        Raises:
            InputError: a file cannot be decoded, or they have different sizes.
        """
        arrays = _made_up(predictor, seed) if sources is None else _decoded(predictor, sources)
        paths = as_files(arrays, folder)
        content = paths[0].read_bytes()
        truncated = folder / "truncated.png"
        truncated.write_bytes(content[: len(content) // 2])
        return cls(arrays, paths, folder / "missing.png", truncated)


def scores(predictor: Predictor, given: Sequence[Any], channel_order: ChannelOrder | None) -> list[float]:
    """The score of each picture alone.

    Raises:
        InputError: a picture cannot be scored.
    """
    results = [predictor.predict(picture, channel_order) for picture in given]
    for result in results:
        if not math.isfinite(result.pred_score):
            raise InputError(f"bench: a picture cannot be scored: {result.reason}")
    return [result.pred_score for result in results]


def as_files(arrays: Iterable[npt.NDArray[np.uint8]], folder: Path) -> tuple[Path, ...]:
    """PNG files of pictures (H, W, 3) RGB in `folder`."""
    paths = []
    for index, array in enumerate(arrays):
        paths.append(folder / f"{index}.png")
        PIL.Image.fromarray(array).save(paths[-1])
    return tuple(paths)


def tolerance(predictor: Predictor) -> float:
    """Relative, of a score in a batch: 0 on a CPU, where an image has the same score bit for bit
    alone and in a batch.
    """
    exact = predictor.backend in ("cpu", "eager") and str(getattr(predictor, "device", "cpu")) == "cpu"
    return 0.0 if exact else CLEARANCE


def _made_up(predictor: Predictor, seed: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """Noise of one contrast or another."""
    height, width = predictor.input_size
    random = np.random.default_rng(seed)
    noise = random.random((COUNT, height, width, 3), np.float32)
    return tuple((noise * np.linspace(40, 255, COUNT, dtype=np.float32)[:, None, None, None]).astype(np.uint8))


def _decoded(predictor: Predictor, sources: Sequence[Path]) -> tuple[npt.NDArray[np.uint8], ...]:
    chosen = sources[:: -(-len(sources) // COUNT)]
    arrays = tuple(images.read_rgb(path, predictor.preprocessing) for path in chosen)
    for path, array in zip(chosen, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = " and ".join("x".join(map(str, each.shape[:2])) for each in (arrays[0], array))
            name = images.display_name(path)
            raise InputError(f"soak: images must have one size, as those of a camera have, but {name} makes {sizes}")
    return arrays
