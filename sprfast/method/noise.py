"""Frozen noise: the draws z of every sigma level, a function of the seed alone.

The same draws perturb every image, so a score depends neither on the batch an image is in nor on
the device. Draws come from numpy's legacy generator, whose stream is guaranteed never to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sprfast.config import Schedule

if TYPE_CHECKING:
    import torch


def draws(schedule: Schedule, height: int, width: int, seed: int) -> list[npt.NDArray[np.float32]]:
    """One array of draws a level.

    Draw k of level l depends on (seed, l, k, height, width) only: asking for more draws keeps the
    first ones. Noise is standard normal; signs: the signs of normal noise, as strong at every
    pixel, so that fewer draws even out; none: 0, the image goes through the network as it is.
    Antithetic noise, which only stored schedules have, is normal, draws 2j and 2j + 1 being z and
    -z.

    Returns:
        for each level (K, 3, height, width).
    """
    bank = []
    for index, level in enumerate(schedule.levels):
        if schedule.noise == "none":
            of_level = [np.zeros((3, height, width), np.float32)]
        elif schedule.noise == "antithetic":
            half = [_draw(seed, index, k, height, width) for k in range(level.draws // 2)]
            of_level = [signed for z in half for signed in (z, -z)]
        else:
            of_level = [_draw(seed, index, k, height, width) for k in range(level.draws)]
            if schedule.noise == "signs":
                of_level = [np.copysign(np.float32(1), z) for z in of_level]
        bank.append(np.stack(of_level))
    return bank


def stacked(schedule: Schedule, height: int, width: int, seed: int) -> npt.NDArray[np.float32]:
    """The draws of all levels (D, 3, height, width)."""
    return np.concatenate(draws(schedule, height, width, seed))


def noise_bank(schedule: Schedule, height: int, width: int, seed: int) -> list[torch.Tensor]:
    """The draws as one tensor a level, to be broadcast over the images of a batch.

    Returns:
        for each level a float32 tensor (K, 1, 3, height, width) on the CPU.
    """
    import torch

    return [torch.from_numpy(z[:, None]) for z in draws(schedule, height, width, seed)]


def _draw(seed: int, level: int, k: int, height: int, width: int) -> npt.NDArray[np.float32]:
    generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, level, k])))
    return generator.standard_normal((3, height, width)).astype(np.float32)
