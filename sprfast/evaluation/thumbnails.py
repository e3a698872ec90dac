"""Pictures of a results page: small, in an open format, and never more bytes than there is room
for.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sprfast.config import Preprocessing
from sprfast.data import images
from sprfast.errors import InputError
from sprfast.evaluation.column import Column

LARGEST = 60_000  # bytes of an image's pictures, where there is room
# Longer side of the picture in pixels, its quality, side of the map: from the best on, each about
# two thirds of the bytes before.
_RUNGS = ((640, 80, 128), (512, 78, 128), (384, 76, 96), (288, 72, 96), (224, 68, 64), (176, 62, 64), (136, 56, 48))
_SMALLEST = (96, 45, 32)


class Thumbnails:
    """Encoded pictures of images, in a temporary file; each has a picture, a map and a mask, empty
    where there is none.

    Args:
        budget: bytes for an image on average; the smallest pictures may take more.
    """

    def __init__(self, budget: float) -> None:
        self._budget = min(LARGEST, budget)
        self._rung = 0  # where to begin: neighbours are alike
        self._bytes = Column()
        self._ends = [0]

    def close(self) -> None:
        """Give the room on the disk back."""
        self._bytes.close()

    def __getitem__(self, index: int) -> tuple[bytes, bytes, bytes]:
        """Picture, map and mask of an image, as WebP."""
        ends = self._ends[3 * index : 3 * index + 4]
        values = self._bytes.array()
        picture, map_, mask = (values[a:b].tobytes() for a, b in itertools.pairwise(ends))
        return picture, map_, mask

    def size(self, index: int) -> int:
        """Bytes that an image takes."""
        return self._ends[3 * index + 3] - self._ends[3 * index]

    def add(
        self,
        path: Path,
        preprocessing: Preprocessing,
        anomaly_map: NDArray[np.float32] | None,
        map_end: float | None,
        mask: NDArray[np.bool_] | None,
    ) -> None:
        """The next image; one that cannot be read has no pictures.

        Args:
            path: of the image.
            preprocessing: how it is read.
            anomaly_map: (256, 256).
            map_end: value of the map that is 255 in the page; None: its maximum.
            mask: (256, 256), True on a defect.
        """
        try:
            picture = Image.fromarray(images.read_rgb(path, preprocessing))
        except InputError:
            parts = [b"", b"", b""]
        else:
            parts = self._encoded(picture, _grey(anomaly_map, map_end), mask)
        for part in parts:
            self._bytes.append(np.frombuffer(part, np.uint8))
            self._ends.append(self._ends[-1] + len(part))

    def _encoded(self, picture: Image.Image, grey: Image.Image | None, mask: NDArray[np.bool_] | None) -> list[bytes]:
        for rung in range(max(0, self._rung - 1), len(_RUNGS)):
            parts = _parts(picture, grey, mask, *_RUNGS[rung])
            if sum(map(len, parts)) <= self._budget:
                self._rung = rung
                return parts
        self._rung = len(_RUNGS)
        return _parts(picture, grey, mask, *_SMALLEST)


def _grey(anomaly_map: NDArray[np.float32] | None, end: float | None) -> Image.Image | None:
    """A map in 8 bits, `end` and above as 255."""
    if anomaly_map is None or not np.isfinite(anomaly_map).all():
        return None
    end = float(anomaly_map.max()) if end is None else end
    share = np.clip(anomaly_map / end, 0, 1) if end > 0 else np.zeros_like(anomaly_map)
    return Image.fromarray(np.rint(255 * share).astype(np.uint8))


def _parts(
    picture: Image.Image, grey: Image.Image | None, mask: NDArray[np.bool_] | None, side: int, quality: int, small: int
) -> list[bytes]:
    shown = picture.copy()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    parts = [_webp(shown, quality=quality), b"", b""]
    if grey is not None:
        parts[1] = _webp(grey.resize((small, small), Image.Resampling.BOX), quality=80)
    if mask is not None:
        covered = mask.reshape(64, mask.shape[0] // 64, 64, mask.shape[1] // 64).any(axis=(1, 3))  # no defect is lost
        parts[2] = _webp(Image.fromarray(covered.astype(np.uint8) * 255), lossless=True)
    return parts


def _webp(picture: Image.Image, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="WEBP", method=2, **options)
    return buffer.getvalue()
