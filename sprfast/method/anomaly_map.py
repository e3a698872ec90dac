"""The heat map's resampling and averaging as matrices: bilinear to 256x256, then a 31x31 mean, one
matrix a side.

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
    """(256, size): bilinear resampling (pixel centres, align_corners=False) and the box filter
    behind it (zero padding counts).

    Shared by all callers: not to be written.
    """
    low, high, share = _between(size)
    resampled, places = np.zeros((MAP_SIZE, size)), np.arange(MAP_SIZE)
    resampled[places, low] = 1.0 - share
    resampled[places, high] += share
    matrix = _averaged(resampled).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


@functools.lru_cache(maxsize=32)
def skipped(height: int, width: int) -> str | None:
    """One sentence where pixels of an error map of this size count for nothing in the anomaly map,
    else None.

    The resampling takes two pixels a side for each of 256 places, and so skips some of more than
    512.
    """
    if max(height, width) <= 2 * MAP_SIZE:
        return None
    used = [_looked_at(side) / side for side in (height, width)]
    return (
        f"{height}x{width} pixels (height x width) at the network's input: above {2 * MAP_SIZE} a side the anomaly map "
        f"skips pixels, here {1 - used[0] * used[1]:.0%} of them, and a small defect there is not seen; use a smaller "
        f"--size, or cut long parts into pieces that are nearly square"
    )


def anomaly_map(errors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The heat map (256, 256) of an error map (H, W).

    By running sums rather than by the matrices: a BLAS has threads of its own, which after a
    product wait in a loop on the cores that the next image's network wants, and take it to twice
    its time.
    """
    return _smoothed(_smoothed(errors.astype(np.float64)).T).T.astype(np.float32)


def _smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(size, n) resampled and averaged along the first axis: (256, n)."""
    low, high, share = _between(len(values))
    return _averaged(values[low] * (1.0 - share[:, None]) + values[high] * share[:, None])


def _between(size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The two of `size` pixels that each place lies between, and the share of the second."""
    centres = np.clip((np.arange(MAP_SIZE) + 0.5) * (size / MAP_SIZE) - 0.5, 0, size - 1)
    low = np.minimum(centres.astype(np.int64), max(0, size - 2))
    return low, np.minimum(low + 1, size - 1), centres - low


def _looked_at(size: int) -> int:
    """How many of `size` pixels count for a place."""
    low, high, share = _between(size)
    return len(np.union1d(low[share < 1], high[share > 0]))


def _averaged(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(256, n) averaged along the first axis, by running sums."""
    places, half = np.arange(MAP_SIZE), BOX_SIZE // 2
    sums = np.zeros((MAP_SIZE + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    ends, starts = np.minimum(places + half + 1, MAP_SIZE), np.maximum(places - half, 0)
    averaged: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / BOX_SIZE
    return averaged
