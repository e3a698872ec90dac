"""A picture in bands of rows, so that work on it takes little memory beside its own."""

from __future__ import annotations

from collections.abc import Iterator

import PIL.Image

_PIXELS = 2**17  # of a band


def bands(image: PIL.Image.Image) -> Iterator[tuple[int, PIL.Image.Image]]:
    """The first row of each band, and the band."""
    rows = max(1, _PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
