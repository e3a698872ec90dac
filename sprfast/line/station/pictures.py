"""Pictures of a station as JPEG, with the heat of their maps; made where they are asked for."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg

from sprfast.config import Preprocessing
from sprfast.data import figure, images
from sprfast.data.images import ChannelOrder
from sprfast.errors import InputError
from sprfast.line.station.history import Shown

QUALITY = 80  # of JPEG


def jpeg(shown: Shown, side: int, heat: bool, preprocessing: Preprocessing) -> bytes:
    """The picture with at most `side` pixels a side, and with `heat` its map over it.

    Raises:
        InputError: it cannot be read, such as a file that has been moved.
        BackendError: matplotlib or SciPy is not installed.
    """
    rgb = _reduced(_rgb(shown.image, shown.channel_order, side, preprocessing), side)
    if heat and shown.anomaly_map is not None:
        rgb = figure.overlay(rgb, shown.anomaly_map, shown.threshold)
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), QUALITY, "RGB", "420")
    return encoded


def _rgb(image: Any, order: ChannelOrder | None, side: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8; of a large array every n-th pixel, so that no copy of all is made."""
    if isinstance(image, str | os.PathLike):
        return images.read_rgb(image, preprocessing)
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise InputError(f"image: {type(image).__name__} cannot be shown, expected a path or an array")
    step = max(1, max(image.shape[:2]) // (2 * side))
    pixels = image[::step, ::step]
    if pixels.dtype == np.uint16:
        pixels = (np.minimum(pixels, 2**preprocessing.bit_depth - 1) >> (preprocessing.bit_depth - 8)).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = np.rint(np.nan_to_num(np.clip(pixels, 0, 1)) * 255).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return pixels[..., ::-1] if order == "bgr" else pixels


def _reduced(rgb: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    picture = PIL.Image.fromarray(np.ascontiguousarray(rgb))
    picture.thumbnail((side, side), PIL.Image.Resampling.BILINEAR)
    return np.asarray(picture)
