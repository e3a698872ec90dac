"""Frozen noise as torch tensors."""

from __future__ import annotations

import torch

from sprfast.config import Schedule
from sprfast.method.draws import draws


def noise_bank(schedule: Schedule, height: int, width: int, seed: int) -> list[torch.Tensor]:
    """`draws.draws` as one tensor a level, to be broadcast over the images of a batch.

    Returns:
        for each level a float32 tensor (K, 1, 3, height, width) on the CPU.
    """
    return [torch.from_numpy(z[:, None]) for z in draws(schedule, height, width, seed)]
