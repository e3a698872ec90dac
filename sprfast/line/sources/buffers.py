"""From a camera's raw buffer to an array, by GenICam's names of pixel formats."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.data.images import ChannelOrder
from sprfast.errors import CameraError, InputError
from sprfast.line.frames import FrameFormat, PixelType

PIXEL_FORMATS: dict[str, tuple[ChannelOrder, PixelType]] = {
    "Mono8": ("grey", "uint8"),
    "Mono10": ("grey", "uint16"),  # the model's preprocessing declares how many of the 16 bits are used
    "Mono12": ("grey", "uint16"),
    "Mono16": ("grey", "uint16"),
    "RGB8": ("rgb", "uint8"),
    "BGR8": ("bgr", "uint8"),
}


def pixels(
    data: bytes | bytearray | memoryview, pixel_format: str, height: int, width: int, padding: int = 0, offset: int = 0
) -> tuple[npt.NDArray[Any], ChannelOrder]:
    """A copy of the picture in a buffer, and its channel order.

    Args:
        data: of the buffer; what lies after the picture is left out.
        pixel_format: its name in the GenICam Pixel Format Naming Convention.
        height, width: pixels.
        padding: bytes after each row.
        offset: bytes before the picture.

    Raises:
        InputError: the pixel format is not supported; the message says what to set.
        CameraError: there are fewer bytes than the picture has.
    """
    order, dtype = form(pixel_format)
    row = width * (1 if order == "grey" else 3) * np.dtype(dtype).itemsize
    whole = memoryview(data).cast("B")[offset : offset + height * (row + padding)]
    if height < 1 or width < 1 or len(whole) < height * (row + padding) - padding:
        raise CameraError(
            f"the picture is not whole: {len(whole)} bytes for {height} x {width} pixels (height x width) of "
            f"{pixel_format}"
        )
    view = FrameFormat(height, width, order, dtype, row + padding).view(whole)
    return np.array(view if dtype == "uint8" else view.view("<u2"), dtype, order="C"), order


def form(pixel_format: str, others: Collection[str] = ()) -> tuple[ChannelOrder, PixelType]:
    """Channel order and type of a pixel format; RGB for one of `others`, which are converted to it.

    Raises:
        InputError: it is not supported; the message says what to set.
    """
    if pixel_format in others:
        return PIXEL_FORMATS["RGB8"]
    if pixel_format not in PIXEL_FORMATS:
        raise InputError(
            f"pixel format {pixel_format} is not supported; set the camera's PixelFormat to one of "
            f"{', '.join((*PIXEL_FORMATS, *others))}"
        )
    return PIXEL_FORMATS[pixel_format]
