"""The heat map's resampling and averaging as matrices: to 256x256, then the mean of a window, one
matrix a side.

Both steps are linear and separable, so the anomaly map is A_H · E · A_Wᵀ. A side of up to 512
pixels is resampled bilinearly, as published. That takes two pixels for each of 256 places, and
would skip some of more than 512: there a place is the mean of all that it covers, by area. At 512
both are the same.

The published window is 31 of 256 places on both sides. A window of w network pixels is, on a side
of n pixels, the odd number of places nearest to w·256/n, from 1 to 255: 128·w // n places to either
side, at most 127.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

MAP_SIZE = 256  # pixels, both sides of an anomaly map
BOX_SIZE = 31  # places, both sides of the published window
MAX_WINDOW = 4096  # network pixels, of a window that is given in them
LARGEST_BILINEAR = 2 * MAP_SIZE  # pixels a side


def reach(size: int, window: int | None) -> int:
    """Places to either side of one that its mean takes, on a side of `size` network pixels.

    Args:
        window: 1 to `MAX_WINDOW` network pixels; None: the published one.
    """
    return BOX_SIZE // 2 if window is None else min(MAP_SIZE // 2 * window // size, MAP_SIZE // 2 - 1)


@functools.lru_cache(maxsize=32)
def smoothing_matrix(size: int, window: int | None = None) -> npt.NDArray[np.float32]:
    """(256, size): resampling (bilinear with pixel centres, align_corners=False, or above 512 by
    area) and the box filter behind it (zero padding counts); `window` as of `reach`.

    Shared by all callers: not to be written.
    """
    if size > LARGEST_BILINEAR:
        resampled = np.diff(_share_before(size), axis=0) / (size / MAP_SIZE)
    else:
        low, high, share = _between(size)
        resampled, places = np.zeros((MAP_SIZE, size)), np.arange(MAP_SIZE)
        resampled[places, low] = 1.0 - share
        resampled[places, high] += share
    matrix = _averaged(resampled, reach(size, window)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def anomaly_map(errors: npt.NDArray[np.float32], window: int | None = None) -> npt.NDArray[np.float32]:
    """The heat map (256, 256) of an error map (H, W); `window` as of `reach`.

    By running sums rather than by the matrices: a BLAS has threads of its own, which after a
    product wait in a loop on the cores that the next image's network wants, and take it to twice
    its time.
    """
    return _smoothed(_smoothed(errors.astype(np.float64), window).T, window).T.astype(np.float32)


def _smoothed(values: npt.NDArray[np.float64], window: int | None) -> npt.NDArray[np.float64]:
    """(size, n) resampled and averaged along the first axis: (256, n)."""
    half = reach(len(values), window)
    if len(values) > LARGEST_BILINEAR:
        return _averaged(_means(values), half)
    low, high, share = _between(len(values))
    return _averaged(values[low] * (1.0 - share[:, None]) + values[high] * share[:, None], half)


def _between(size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The two of `size` pixels that each place lies between, and the share of the second."""
    centres = np.clip((np.arange(MAP_SIZE) + 0.5) * (size / MAP_SIZE) - 0.5, 0, size - 1)
    low = np.minimum(centres.astype(np.int64), max(0, size - 2))
    return low, np.minimum(low + 1, size - 1), centres - low


def _means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(size, n) to (256, n): the mean of what each place covers along the first axis, by running
    sums.
    """
    size = len(values)
    edges = np.arange(MAP_SIZE + 1) * (size / MAP_SIZE)
    before = edges.astype(np.int64)
    sums = np.zeros((size + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    inside = values[np.minimum(before, size - 1)] * (edges - before)[:, None]
    means: npt.NDArray[np.float64] = np.diff(sums[before] + inside, axis=0) / (size / MAP_SIZE)
    return means


def _share_before(size: int) -> npt.NDArray[np.float64]:
    """(257, size): the share of each pixel that lies before each edge of a place."""
    edges = np.arange(MAP_SIZE + 1) * (size / MAP_SIZE)
    shares: npt.NDArray[np.float64] = edges[:, None] - np.arange(size, dtype=np.float64)
    return np.clip(shares, 0.0, 1.0, out=shares)


def _averaged(values: npt.NDArray[np.float64], half: int) -> npt.NDArray[np.float64]:
    """(256, n) averaged along the first axis with `half` places to either side, by running sums."""
    places = np.arange(MAP_SIZE)
    sums = np.zeros((MAP_SIZE + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    ends, starts = np.minimum(places + half + 1, MAP_SIZE), np.maximum(places - half, 0)
    averaged: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (2 * half + 1)
    return averaged
