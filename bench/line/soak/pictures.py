"""The pictures that a soak run shows, in memory and as files, with the score of each alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from sprfast.data import images
from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.method import threshold
from sprfast.method.threshold import CLEARANCE, Threshold

COUNT = 36  # pictures, at most
REJECTED = 0.4  # share of them


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
        paths = tuple(folder / f"{index}.png" for index in range(len(arrays)))
        for array, path in zip(arrays, paths, strict=True):
            PIL.Image.fromarray(array).save(path)
        content = paths[0].read_bytes()
        truncated = folder / "truncated.png"
        truncated.write_bytes(content[: len(content) // 2])
        return cls(arrays, paths, folder / "missing.png", truncated)

    def scores(self, predictor: Predictor) -> npt.NDArray[np.float64]:
        """The score of each alone, as array; as file it must be the same.

        Raises:
            InputError: a picture cannot be scored.
        """
        results = [predictor.predict(array, "rgb") for array in self.arrays]
        for result in results:
            if not math.isfinite(result.pred_score):
                raise InputError(f"soak: a picture cannot be scored: {result.reason}")
        return np.array([result.pred_score for result in results])


def between(scores: npt.NDArray[np.float64]) -> Threshold:
    """A threshold calibrated on the pictures so that some of them pass and some do not.

    Raises:
        InputError: there are too few pictures.
    """
    return threshold.calibrate(scores, REJECTED)


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
            raise InputError(
                f"soak: images must have one size, as those of a camera have, but {images.display_name(path)} makes "
                f"{sizes}"
            )
    return arrays
