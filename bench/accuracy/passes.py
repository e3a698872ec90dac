"""Error maps of single passes of a network, of which every way of scoring is a mean; each is
computed once.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt
import torch

from sprfast.backends import registry
from sprfast.bench.accuracy.rows import StudyRow
from sprfast.config import Level, Schedule
from sprfast.engine.predictor import MAX_BATCH
from sprfast.formats.model import Model
from sprfast.method import error_field
from sprfast.method.anomaly_map import anomaly_map
from sprfast.method.noise import draws
from sprfast.method.scoring_mode import ScoringMode

Floats = npt.NDArray[np.float32]


class Passes:
    """The passes of one model over sets of images.

    Args:
        model: its network and noise seed are used.
        images: (n, 3, H, W) network inputs by the name of their set, all of one size; "good" is the
            set that fields and weights are fitted on.
        backend, device: see `registry.create`.
    """

    def __init__(self, model: Model, images: dict[str, Floats], backend: str, device: torch.device) -> None:
        self._model, self._images, self._backend, self._device = model, images, backend, device
        self._networks: dict[float, registry.Backend] = {}
        self._kept: dict[tuple[str, float, bytes], Floats] = {}

    def error_maps(self, row: StudyRow, of: str) -> Floats:
        """The error maps (n, H, W) of the set `of` by a way of scoring."""
        images = self._images[of]
        count, _, height, width = images.shape
        total = np.zeros((count, height, width), np.float32)
        bank = draws(row.schedule, height, width, self._model.noise_seed)
        for index, (level, weight, of_level) in enumerate(
            zip(row.schedule.levels, self.weights(row), bank, strict=True)
        ):
            for k, z in enumerate(of_level):
                noise = self._independent(images.shape, index, k) if row.independent else z[None]
                total += np.float32(weight / level.draws) * self._pass(of, level.t, noise)
        return total

    def weights(self, row: StudyRow) -> tuple[float, ...]:
        """Weights of the row's levels, summing to 1; for a balanced row from the error maps of the
        good images.
        """
        if not row.balanced:
            return row.schedule.weights
        levels = [dataclasses.replace(row.schedule, levels=(level,)) for level in row.schedule.levels]
        inverse = [1.0 / float(self.error_maps(StudyRow(row.name, each), "good").mean()) for each in levels]
        return tuple(value / sum(inverse) for value in inverse)

    def scoring_mode(self, row: StudyRow) -> ScoringMode:
        """The row's schedule, with the weights and the error field of the good images where it has
        them.
        """
        weighted = zip(row.schedule.levels, self.weights(row), strict=True)
        levels = tuple(dataclasses.replace(level, weight=weight) for level, weight in weighted)
        field = error_field.fit(self.error_maps(row, "good")) if row.field else None
        return ScoringMode(dataclasses.replace(row.schedule, levels=levels), field)

    def _independent(self, shape: tuple[int, ...], level: int, k: int) -> Floats:
        """Draw `k` of a level, another one for each image: noise of the images' shape."""
        seeds = ([self._model.noise_seed, index, level, k] for index in range(shape[0]))
        return np.stack([np.random.default_rng(seed).standard_normal(shape[1:], np.float32) for seed in seeds])

    def _pass(self, of: str, t: float, noise: Floats) -> Floats:
        """The error maps of one pass over a set with noise (1 or n, 3, H, W)."""
        key = (of, t, hashlib.sha256(noise.tobytes()).digest())
        if key in self._kept:
            return self._kept[key]
        if t not in self._networks:
            single = dataclasses.replace(self._model, scoring_mode=ScoringMode(Schedule((Level(t, 1),))))
            self._networks[t] = registry.create(self._backend, single, self._device)
        images, found = self._images[of], []
        for first in range(0, len(images), MAX_BATCH):
            part = slice(first, first + MAX_BATCH)
            z = torch.from_numpy(noise if len(noise) == 1 else noise[part])[None]
            errors, _ = self._networks[t].maps(torch.from_numpy(images[part]), [z])
            found.append(errors[:, 0].cpu().numpy())
        self._kept[key] = np.concatenate(found)
        return self._kept[key]


def scored(errors: Floats, setting: ScoringMode) -> tuple[Floats, Floats]:
    """pred_score (n,) and anomaly maps (n, 256, 256) of error maps (n, H, W) under a setting."""
    maps = np.stack([anomaly_map(each) for each in errors])
    return np.array([setting.score(*each) for each in zip(errors, maps, strict=True)]), maps
