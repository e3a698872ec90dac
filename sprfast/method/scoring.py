"""The definition of a score: perturb, restore in one step, square what does not come back.

Plain torch; every backend must give the same maps for the same image and
noise. Noise is an argument everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sprfast.config import Schedule
from sprfast.method import sde
from sprfast.method.anomaly_map import smoothing_matrix as _smoothing_matrix


class ScoreNetwork(Protocol):
    """What a score needs of a network."""

    def scaled_score(self, x: Tensor, t: Tensor) -> Tensor:
        """std(t)·s(x, t) for (B, 3, H, W) images and (B,) times: `unet.ScoreUNet.scaled_score`."""
        ...


def residual(network: ScoreNetwork, x: Tensor, t: float, z: Tensor) -> Tensor:
    """r = s(x + n, t)·std(t)² + n with n = std(t)·z: restored minus given image.

    Computed as std(t)·(f + z), f the network's undivided output: the same number without a
    division, a multiplication and the cancellation between them.

    Args:
        x: (B, 3, H, W) images in [-1, 1].
        t: time in (0, 1].
        z: (B, 3, H, W) standard-normal draws.

    Returns:
        (B, 3, H, W).
    """
    std = sde.std(t)
    times = torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)
    return std * (network.scaled_score(x + std * z, times) + z)


def error_map(network: ScoreNetwork, x: Tensor, schedule: Schedule, noise: Sequence[Tensor]) -> Tensor:
    """Weighted mean over levels of the mean over draws and channels of r².

    Args:
        x: (B, 3, H, W) images in [-1, 1].
        schedule: the sigma levels.
        noise: one tensor a level, (K, B, 3, H, W), or (K, 1, 3, H, W) for draws shared by all
            images.

    Returns:
        (B, 1, H, W).
    """
    total = torch.zeros_like(x[:, :1])
    for level, weight, z in zip(schedule.levels, schedule.weights, noise, strict=True):
        batch = (level.draws, *x.shape)
        r = residual(network, x.expand(batch).flatten(0, 1), level.t, z.expand(batch).flatten(0, 1))
        total += weight * r.square().reshape(batch).mean(dim=(0, 2)).unsqueeze(1)
    return total


def anomaly_map(errors: Tensor, window: int | None = None) -> Tensor:
    """The heat map: bilinear to 256x256 (align_corners=False), above 512 pixels a side by area,
    then the mean of a window, 31x31 or as given (zero padding counts).

    As one small matrix on each side, A_H · E · A_Wᵀ: see `sprfast.method.anomaly_map`.

    Args:
        errors: (B, 1, H, W) float32 error maps.
        window: of the scoring mode, network pixels.

    Returns:
        (B, 1, 256, 256) float32.
    """
    rows, columns = (smoothing_matrix(size, errors.device, window) for size in errors.shape[2:])
    return rows @ errors @ columns.mT


def image_score(anomaly_maps: Tensor) -> Tensor:
    """Maximum of each anomaly map: (B, 1, 256, 256) to (B,). A NaN anywhere in a map is a NaN
    score.
    """
    return anomaly_maps.amax(dim=(1, 2, 3))


def smoothing_matrix(size: int, device: torch.device, window: int | None = None) -> Tensor:
    """The smoothing matrix (256, size) of a window on a device, for the current stream.

    All callers share it, so it must not be written to.
    """
    matrix = _kept_matrix(size, device, window)
    if device.type == "cuda":
        # once dropped, its memory waits for this stream too, not only for the one that made it
        matrix.record_stream(torch.cuda.current_stream(device))
    return matrix


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # the matrix is kept, and a caller may want gradients
def _kept_matrix(size: int, device: torch.device, window: int | None) -> Tensor:
    return torch.tensor(_smoothing_matrix(size, window), device=device)
