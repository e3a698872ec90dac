"""The heat map's resampling and averaging as matrices: bilinear to 256x256, then a 31x31 mean, one matrix a side.

Both steps are linear and separable, so the anomaly map is A_H · E · A_Wᵀ.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

MAP_SIZE = 256  # pixels, both sides of an anomaly map
BOX_SIZE = 31  # pixels, both sides of the averaging window


@functools.lru_cache(maxsize=32)
def smoothing_matrix(size: int) -> npt.NDArray[np.float32]:
    """(256, size): bilinear resampling (pixel centres, align_corners=False) and the box filter behind it (zero padding counts).

    Shared by all callers: not to be written.
    """
    centres = np.clip((np.arange(MAP_SIZE) + 0.5) * (size / MAP_SIZE) - 0.5, 0, size - 1)
    resampled = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(size)))  # (256, size), rows sum to 1
    near = np.abs(np.arange(MAP_SIZE)[:, None] - np.arange(MAP_SIZE)) <= BOX_SIZE // 2
    matrix: npt.NDArray[np.float32] = (near.astype(np.float64) @ resampled / BOX_SIZE).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def anomaly_map(errors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The heat map (256, 256) of an error map (H, W)."""
    rows, columns = (smoothing_matrix(side) for side in errors.shape)
    smoothed = np.empty((MAP_SIZE, MAP_SIZE), np.float32)
    return np.matmul(rows @ errors, columns.T, out=smoothed)
