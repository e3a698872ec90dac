"""What a camera delivers: a picture with its id and the time of its trigger, in a declared form."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Hashable
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import numpy.typing as npt

from sprfast.data.images import ChannelOrder
from sprfast.errors import InputError, SprfastError

PixelType = Literal["uint8", "uint16", "float32"]
Buffer = bytes | bytearray | memoryview

_MAX_SIDE = 2**31 - 1  # pixels
_MAX_ROW = 2**40  # bytes
_PIXEL_BYTES = 12  # of the largest form that is accepted, three float32


@dataclasses.dataclass(frozen=True)
class FrameFormat:
    """The form in which a camera delivers its pictures, so that one in another form is noticed."""

    height: int  # pixels
    width: int  # pixels
    channel_order: ChannelOrder
    dtype: PixelType = "uint8"  # uint16: of the bit depth that the model's preprocessing declares
    row_bytes: int | None = None  # from the start of a row to that of the next, padding included; None: no padding

    def __post_init__(self) -> None:
        self._check_integer("height", 1, _MAX_SIDE)
        self._check_integer("width", 1, _MAX_SIDE)
        for name, allowed in (("channel_order", get_args(ChannelOrder)), ("dtype", get_args(PixelType))):
            # `in` would compare an array by element
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in allowed:
                self._refuse(name, f"one of {', '.join(allowed)}")
        if self.row_bytes is not None:
            self._check_integer("row_bytes", self._packed, _MAX_ROW)

    def _check_integer(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not least <= value <= most:
            self._refuse(name, f"an integer from {least} to {most}")

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise InputError(f"FrameFormat.{name}: {_shown(getattr(self, name))} is not allowed, expected {expected}")

    @property
    def _packed(self) -> int:
        """Bytes of a row without padding."""
        return self.width * self.channels * np.dtype(self.dtype).itemsize

    @property
    def channels(self) -> int:
        """1 for grey, else 3."""
        return 1 if self.channel_order == "grey" else 3

    def view(self, frame: Buffer | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The pixels (H, W) or (H, W, 3) of a raw buffer or an array, which must have this form; no
        copy is made.

        Args:
            frame: the bytes of `height` rows, the padding of the last one may be missing; or an
                array of any strides.

        Raises:
            InputError: it has another form; the message names both.
        """
        whole = (self.height, self.width, self.channels)
        shape = whole[:2] if self.channels == 1 else whole
        if isinstance(frame, np.ndarray):
            if frame.dtype != np.dtype(self.dtype) or frame.shape not in (shape, whole):
                raise InputError(
                    f"frame: {frame.dtype.str} of shape {frame.shape}, this camera was declared as {self.dtype} {shape}"
                )
            return frame
        row_bytes = self.row_bytes or self._packed
        given = _buffer(frame, self.dtype)
        if not 0 <= self.height * row_bytes - given.nbytes <= row_bytes - self._packed:
            raise InputError(
                f"frame: {given.nbytes} bytes, this camera was declared with {self.height} rows of {row_bytes} bytes"
            )
        itemsize = np.dtype(self.dtype).itemsize
        strides = (row_bytes, self.channels * itemsize, itemsize)
        return np.ndarray(shape, self.dtype, given, 0, strides[: len(shape)])


def _shown(value: object) -> str:
    """Fit for a message of one line, whatever was given."""
    plain = isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < _MAX_ROW)
    return repr(value) if plain else type(value).__name__


def _buffer(frame: Any, dtype: PixelType) -> memoryview:
    """A view of bytes, or of native elements of this type; those of another type or byte order
    would be taken for what they are not.
    """
    try:
        given = memoryview(frame)
        native = given.format.removeprefix("@").removeprefix("<" if sys.byteorder == "little" else ">")
    except (TypeError, ValueError) as error:  # ValueError: it was released
        raise InputError(f"frame: {type(frame).__name__} is not accepted, expected a buffer or an array") from error
    if not given.c_contiguous or native not in ("B", "b", "c", np.dtype(dtype).char):
        raise InputError(
            f"frame: a buffer of {given.format!r} and strides {given.strides}, expected contiguous bytes or native "
            f"{dtype}"
        )
    return given


def owned(
    image: Any, channel_order: ChannelOrder | None, declared: FrameFormat | None, max_pixels: int
) -> tuple[Any, ChannelOrder | None]:
    """The image as a line keeps it, with its channel order: arrays, tensors and buffers are copied,
    files and PIL images are the caller's.

    Args:
        declared: the form of the camera's frames; buffers need it.
        max_pixels: above which an image is refused before it is copied.

    Raises:
        InputError: it is too large, or has another form than declared.
    """
    if isinstance(image, (bytes, bytearray, memoryview)) or (declared and isinstance(image, np.ndarray)):
        if declared is None:
            raise InputError("image: a raw buffer needs a line with a frame_format")
        if channel_order not in (None, declared.channel_order):
            raise InputError(f"channel_order: {channel_order!r}, this camera was declared as {declared.channel_order}")
        view = declared.view(image)
        _check_bytes(view.nbytes, view.shape, max_pixels)
        return np.array(view, order="C"), declared.channel_order
    if isinstance(image, np.ndarray):
        _check_bytes(image.nbytes, image.shape, max_pixels)
        return np.array(image, order="K", subok=True), channel_order
    if isinstance(image, io.BytesIO):
        return io.BytesIO(image.getvalue()), channel_order  # which shares the bytes until one is written
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # where nobody has imported it, there is none
    if tensor is not None and isinstance(image, tensor):
        _check_bytes(image.numel() * image.element_size(), tuple(image.shape), max_pixels)
        return image.detach().clone(), channel_order
    return image, channel_order


def _check_bytes(count: int, shape: tuple[int, ...], max_pixels: int) -> None:
    """What is smaller in memory, such as a broadcast array, has all these bytes as a copy."""
    if count > max_pixels * _PIXEL_BYTES:
        raise InputError(
            f"image: shape {shape} is {count} bytes, more than {max_pixels} pixels (max_pixels) have at "
            f"{_PIXEL_BYTES} bytes each"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """What came of one trigger: a picture, or the reason why there is none."""

    id: Hashable  # of the part; carried to its answer
    image: Any  # a path, a PIL image, an array, or a buffer where the line has a `FrameFormat`; None with a `fault`
    trigger_time: float  # seconds of `time.monotonic`
    channel_order: ChannelOrder | None = None  # of an array, as `Predictor.predict` takes it
    fault: SprfastError | None = None  # why there is no picture
