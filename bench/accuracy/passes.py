"""Error maps of single passes of a network, of which every way of scoring is a mean; each is
computed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from sprfast.backends import registry
from sprfast.bench.accuracy.rows import StudyRow
from sprfast.config import Level, Schedule
from sprfast.engine.predictor import MAX_BATCH
from sprfast.formats.model import Model
from sprfast.method.anomaly_map import anomaly_map
from sprfast.method.noise import draws
from sprfast.method.scoring_mode import ScoringMode

Floats = npt.NDArray[np.float32]


class Passes:
    """The passes of one model over sets of images.

    Args:
        model: its network and noise seed are used.
        images: (n, 3, H, W) network inputs by the name of their set, all of one size.
        backend, device: see `registry.create`.
    """

    def __init__(self, model: Model, images: dict[str, Floats], backend: str, device: torch.device) -> None:
        self._model, self._images, self._backend, self._device = model, images, backend, device
        self._networks: dict[float, registry.Backend] = {}
        self._kept: dict[tuple[str, float, bytes], Floats] = {}

    def error_maps(self, row: StudyRow, of: str, weights: tuple[float, ...]) -> Floats:
        """The error maps (n, H, W) of a set of images.

        Args:
            row: the way of scoring.
            of: name of the set.
            weights: of the levels, summing to 1.
        """
        count, _, height, width = self._images[of].shape
        total = np.zeros((count, height, width), np.float32)
        bank = draws(row.schedule, height, width, self._model.noise_seed)
        for index, (level, weight, of_level) in enumerate(zip(row.schedule.levels, weights, bank, strict=True)):
            for k, z in enumerate(of_level):
                one = self._independent(of, level.t, (index, k)) if row.independent else self._frozen(of, level.t, z)
                total += np.float32(weight / level.draws) * one
        return total

    def weights(self, row: StudyRow, of: str) -> tuple[float, ...]:
        """Weights of the row's levels; for a balanced row from the error maps of this set, which
        must be good images.
        """
        if not row.balanced:
            return row.schedule.weights
        levels = [dataclasses.replace(row.schedule, levels=(level,)) for level in row.schedule.levels]
        inverse = [1.0 / float(self.error_maps(StudyRow(row.name, each), of, (1.0,)).mean()) for each in levels]
        return tuple(value / sum(inverse) for value in inverse)

    def _frozen(self, of: str, t: float, z: Floats) -> Floats:
        key = (of, t, hashlib.sha256(z.tobytes()).digest())
        if key not in self._kept:
            self._kept[key] = self._computed(of, t, lambda part: z[None, None])
        return self._kept[key]

    def _independent(self, of: str, t: float, draw: tuple[int, int]) -> Floats:
        height, width = self._images[of].shape[2:]

        def fresh(part: range) -> Floats:
            seeds = ([self._model.noise_seed, index, *draw] for index in part)
            return np.stack(
                [np.random.default_rng(seed).standard_normal((3, height, width), np.float32) for seed in seeds]
            )[None]

        return self._computed(of, t, fresh)

    def _computed(self, of: str, t: float, noise: Callable[[range], Floats]) -> Floats:
        """One pass over a set; `noise` gives the draws (1, 1 or B, 3, H, W) for a range of its
        images.
        """
        if t not in self._networks:
            single = dataclasses.replace(self._model, scoring_mode=ScoringMode(Schedule((Level(t, 1),))))
            self._networks[t] = registry.create(self._backend, single, self._device)
        images = self._images[of]
        parts = [range(first, min(first + MAX_BATCH, len(images))) for first in range(0, len(images), MAX_BATCH)]
        found = []
        for part in parts:
            x = torch.from_numpy(images[part.start : part.stop])
            errors, _ = self._networks[t].maps(x, [torch.from_numpy(np.ascontiguousarray(noise(part)))])
            found.append(errors[:, 0].cpu().numpy())
        return np.concatenate(found)


def scored(errors: Floats, setting: ScoringMode) -> tuple[Floats, Floats]:
    """pred_score (n,) and anomaly maps (n, 256, 256) of error maps (n, H, W) under a setting."""
    maps = np.stack([anomaly_map(each) for each in errors])
    return np.array([setting.score(*each) for each in zip(errors, maps, strict=True)]), maps
