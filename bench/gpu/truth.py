"""The definition's maps of the images that a GPU check scores, computed before and carried in a
file, so that no minute of a GPU is spent on float64 on its CPU.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast.bench.core import peers
from sprfast.errors import InputError
from sprfast.formats.model import Model
from sprfast.method.noise import noise_bank
from sprfast.system import files

FILE = "truth.npz"
Maps = tuple[Tensor, Tensor]  # error maps and anomaly maps in float64


def pictures(images: int, height: int, width: int) -> Tensor:
    """(images, 3, H, W) float32, uniform random in [-1, 1], the same on every machine."""
    generator = torch.Generator().manual_seed(images)
    return torch.rand(images, 3, height, width, generator=generator) * 2.0 - 1.0


def ends(images: int) -> list[int]:
    """Which of so many images have a truth; one for every image would take longer than all that is
    measured.
    """
    return sorted({0, images - 1})


class Truths:
    """Maps by what they were computed from."""

    def __init__(self, maps: dict[str, Maps]) -> None:
        self._maps = maps

    @classmethod
    def load(cls, path: Path) -> Truths:
        """Those in a file that `save` wrote; none where there is no file.

        Raises:
            InputError: the file is damaged.
        """
        if not path.exists():
            return cls({})
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = {name.partition(".")[0] for name in archive.files}
                pairs = {name: (archive[f"{name}.errors"], archive[f"{name}.maps"]) for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot be read ({error}); compute it again with --steps truth") from error
        return cls({name: (torch.tensor(errors), torch.tensor(maps)) for name, (errors, maps) in pairs.items()})

    def save(self, path: Path) -> None:
        """Write them to a file.

        Raises:
            InputError: the file cannot be written.
        """
        arrays: dict[str, Any] = {}
        for name, (errors, maps) in self._maps.items():
            arrays |= {f"{name}.errors": errors.numpy(), f"{name}.maps": maps.numpy()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        files.write_bytes(path, buffer.getvalue())

    def of(self, model: Model, x: Tensor, noise: Sequence[Tensor]) -> tuple[Maps, str]:
        """The maps of the `ends` of `x`, and whether they were "carried" or "computed here"."""
        key = _key(model, x)
        if key in self._maps:
            return self._maps[key], "carried"
        self._maps[key] = peers.Definition(model).maps(x[ends(x.shape[0])], noise)
        return self._maps[key], "computed here"


def compute(models: Iterable[Model], batches: Iterable[int], height: int, width: int, path: Path) -> None:
    """The maps of every model at every number of images into the file, beside those in it; saved
    after each.

    Raises:
        InputError: the file is damaged, or cannot be written.
    """
    truths, batches = Truths.load(path), list(batches)
    for model in models:
        noise = noise_bank(model.schedule, height, width, model.noise_seed)
        for images in batches:
            truths.of(model, pictures(images, height, width), noise)
            truths.save(path)


def _key(model: Model, x: Tensor) -> str:
    """All that the maps depend on."""
    given = [model.sha256, model.schedule.to_json(), model.noise_seed, hashlib.sha256(x.numpy().tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()
