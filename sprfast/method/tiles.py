"""Large images in tiles: each tile goes through the network by itself, and the error map of the
image is the mean of theirs where they overlap.

On a side that is longer than a tile, tiles lie evenly, the first and the last flush with the
border, as few as overlap by at least a quarter. On a shorter side they are as long as it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float32]

MIN_TILE, MAX_TILE = 16, 4096  # network pixels; the network takes none that are smaller
TOGETHER = 16  # tiles a call of what computes their error maps


def shape(size: tuple[int, ...], tile: int | None) -> tuple[int, int]:
    """Height and width of the tiles of images of this height and width; of a `tile` of None there
    is one, the image.
    """
    height, width = (side if tile is None else min(side, tile) for side in size)
    return height, width


def starts(size: int, tile: int) -> list[int]:
    """Where tiles of `tile` pixels begin on a side of `size`."""
    steps = -(-max(0, size - tile) // (tile * 3 // 4))
    return [index * (size - tile) // steps for index in range(steps + 1)] if steps else [0]


def cut(image: Map, tile: int | None) -> Map:
    """(3, H, W) to its tiles (T, 3, h, w), row by row."""
    return np.stack([image[:, rows, columns] for rows, columns in _places(image.shape[1:], tile)])


def joined(errors: Map, size: tuple[int, ...], tile: int | None) -> Map:
    """The error maps (T, 1, h, w) of the tiles of an image of this size, in float32: (1, H, W)."""
    total, count = np.zeros((1, *size), np.float32), np.zeros(size, np.float32)
    for each, (rows, columns) in zip(errors, _places(size, tile), strict=True):
        total[:, rows, columns] += each
        count[rows, columns] += 1
    return total / count


def error_maps(x: Map, tile: int | None, of_tiles: Callable[[Map], Map]) -> Map:
    """The error maps (B, 1, H, W) of images (B, 3, H, W), by way of their tiles.

    Args:
        of_tiles: from (T, 3, h, w) to (T, 1, h, w), for up to `TOGETHER` tiles of an image.
    """
    found = []
    for image in x:
        tiles = cut(image, tile)
        parts = [of_tiles(tiles[first : first + TOGETHER]) for first in range(0, len(tiles), TOGETHER)]
        found.append(joined(np.concatenate(parts), image.shape[1:], tile))
    return np.stack(found)


def _places(size: tuple[int, ...], tile: int | None) -> list[tuple[slice, slice]]:
    """Rows and columns of each tile."""
    sides = shape(size, tile)
    rows, columns = ([slice(at, at + n) for at in starts(side, n)] for side, n in zip(size, sides, strict=True))
    return [(row, column) for row in rows for column in columns]
