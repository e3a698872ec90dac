"""From image bytes to the network's input: the one place that decodes, orients, scales and resizes.

The contract, carried out for every file, PIL image and array alike:

* Files are PNG, JPEG, BMP, TIFF, WebP, HEIC, PGM or PPM, told by their content; only layouts that
  are known to be decoded rightly are taken. Of a JPEG or HEIC of several pictures the primary one
  is read. Every pixel must be in the file: a truncated file, a warning of the JPEG decoder, a
  missing scan, strip or tile, pixel data of another length, a damaged PNG checksum and a header
  above `Preprocessing.max_pixels` are errors.
* Colour is 8-bit RGB, grey, 1-bit or palette, taken as sRGB; grey fills three equal channels. Alpha
  is refused unless it is opaque everywhere, or composited over black. RGB profiles are converted to
  sRGB, unless the policy is to refuse them. CMYK, YCbCr, LAB, HSV, float files and other profiles
  than these, sRGB and grey gamma 2.2 are errors.
* 16-bit grey is divided by 2**bit_depth - 1, or by a PGM's greatest value where that is below
  65535, and resized in float; a value above that is an error. 16-bit *colour* files are an error,
  because Pillow would drop their lower 8 bits in silence; the same picture is accepted as a uint16
  array.
* The EXIF orientation is applied before anything is measured, unless the policy is to ignore it.
* Resizing is Pillow's Lanczos with antialias: 8-bit pictures as 8 bits, others in float, clipped to
  the range. A picture that has the network's size is not resampled. Then x * 2 - 1 in float32.

Every error is an InputError that names the file ("file in memory", "array" and "PIL image" where
there is no name), but for a BackendError where HEIC lacks its library.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image

from sprfast.config import Preprocessing
from sprfast.data.bands import bands
from sprfast.data.decoding import oriented_size, planes
from sprfast.errors import InputError

ChannelOrder = Literal["rgb", "bgr", "grey"]
MASK_PREPROCESSING = Preprocessing(alpha="composite")  # how masks are read; their size policy is load_mask's own

_MAX_INPUT_PIXELS = 4_194_304  # of the network's input: 2048 x 2048
_HALF = {"L": 127, "F": 0.5}  # of the value range of a plane
_RESIZING_BYTES = 2**26  # that resizing may take beside 12 for a pixel of the source


@dataclass(frozen=True, eq=False)
class Image:
    """One picture as the network takes it."""

    pixels: npt.NDArray[np.float32]  # (3, H, W) C-contiguous in [-1, 1], RGB, at network size
    source_size: tuple[int, int]  # (height, width) of the source in pixels, after orientation


def load_image(
    source: str | os.PathLike[str] | io.BytesIO | PIL.Image.Image | npt.NDArray[Any],
    preprocessing: Preprocessing,
    *,
    channel_order: ChannelOrder | None = None,
) -> Image:
    """Read a picture under the contract above.

    Args:
        source: a file's path, a file's bytes as `io.BytesIO`, a PIL image (the frame it stands at;
            its decoding is the caller's), or an array of shape (H, W), (H, W, 1) or (H, W, 3),
            native uint8, uint16 (scaled by `preprocessing.bit_depth`) or float32 in [0, 1], with
            any strides. It is never written, and the result shares no memory with it.
        preprocessing: policies and network size.
        channel_order: required for arrays of 3 channels ("rgb" or "bgr"), None or "grey" for grey
            arrays, None for files and PIL images.

    Raises:
        InputError: the picture breaks the contract.
    """
    with _named(_source_name(source)):
        source_planes = planes(
            source, preprocessing, channel_order, lambda height, width: network_size(height, width, preprocessing)
        )
        width, height = source_planes[0].size
        rows, columns = network_size(height, width, preprocessing)
        resized = [plane.resize((columns, rows), PIL.Image.Resampling.LANCZOS) for plane in source_planes]
        pixels = np.empty((3, rows, columns), np.float32)
        for channel in range(3):
            pixels[channel] = _unit(resized[channel % len(resized)]) * 2 - 1
    return Image(pixels, (height, width))


def network_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The (height, width) of the network's input for an oriented source of `height` x `width`
    pixels.

    `fit` makes the shorter side `size` and the longer floor(size * long / short); `stretch` and
    `refuse` make both sides `size`.

    Raises:
        InputError: no pixels, not square under `refuse`, more than 4,194,304 input pixels under
            `fit`, or so thin that resizing takes far more memory than the picture.
    """
    rows, columns = _network_size(height, width, preprocessing)
    # between the two passes, and for Lanczos' weights of the longer side
    memory = 4 * max(rows * width, columns * height) + 48 * max(height, width)
    if memory > _RESIZING_BYTES + 12 * height * width:
        raise InputError(
            f"{height}x{width} pixels (height x width) are too thin: resizing them to {rows}x{columns} would take "
            f"{memory >> 20} MiB; cut the image"
        )
    return rows, columns


def _network_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    size = preprocessing.size
    short, long = sorted((height, width))
    if short < 1:
        raise InputError(f"{height}x{width} pixels (height x width): a picture needs at least one")
    if preprocessing.size_policy == "refuse" and short != long:
        raise InputError(f"{height}x{width} pixels is not square; size_policy 'refuse' takes square images only")
    if preprocessing.size_policy != "fit":
        return size, size
    scaled = size * long // short
    if size * scaled > _MAX_INPUT_PIXELS:
        raise InputError(
            f"{height}x{width} pixels (height x width) fitted to a shorter side of {size} gives {size * scaled} pixels "
            f"of input, above the limit of {_MAX_INPUT_PIXELS}; use size_policy 'stretch' or cut the image"
        )
    return (size, scaled) if height <= width else (scaled, size)


def load_mask(path: str | os.PathLike[str], size: int = 256) -> npt.NDArray[np.bool_]:
    """A ground-truth mask as bool (size, size), True where defective.

    A pixel is defective where a colour channel is above half of the value range, or, in a mask
    without such a pixel (of labels 0, 1, 2), where one is not 0. Palettes count by colour, not by
    index; transparent pixels are not defective. In shrinking, a target pixel is defective where any
    of its source pixels is; otherwise the source pixel under its centre counts. A warning names a
    mask that is mostly defective, as it may be inverted.

    Raises:
        InputError: the file breaks the contract above.
    """
    with _named(display_name(path)):
        channels = planes(path, MASK_PREPROCESSING, None)
        highest = max(np.asarray(band).max() for channel in channels for _, band in bands(channel))
        half = 0 if highest <= _HALF[channels[0].mode] else _HALF[channels[0].mode]
        defective = np.zeros(channels[0].size[::-1], np.bool_)
        for channel in channels:
            for top, band in bands(channel):
                defective[top : top + band.height] |= np.asarray(band) > half
    share = float(defective.mean())
    if share > 0.5:
        warnings.warn(
            f"{display_name(path)}: marks {share:.0%} of the image as defective; is it inverted?", stacklevel=2
        )
    return _stretched(_stretched(defective, size).T, size).T.copy()


def _stretched(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """`mask` with `size` rows."""
    height = len(mask)
    if height > size:
        return np.logical_or.reduceat(mask, -(-np.arange(size) * height // size), axis=0)
    return mask[(2 * np.arange(size) + 1) * height // (2 * size)]


def read_rgb(path: str | os.PathLike[str], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The oriented source as uint8 (H, W, 3) RGB, for overlays; 16-bit grey is rounded to 8 bits.

    Raises:
        InputError: the file breaks the contract above.
    """
    with _named(display_name(path)):
        channels = [_eight_bits(plane) for plane in planes(path, preprocessing, None)]
    return np.stack([channels[channel % len(channels)] for channel in range(3)], axis=-1)


def image_size(path: str | os.PathLike[str], preprocessing: Preprocessing) -> tuple[int, int]:
    """The (height, width) in pixels of the oriented source, by its header.

    Pixels are decoded only where an orientation is stored with them.

    Raises:
        InputError: the header breaks the contract above (the size policy is not looked at).
    """
    with _named(display_name(path)):
        return oriented_size(path, preprocessing)


def display_name(path: str | os.PathLike[str]) -> str:
    r"""`path` as one printable line of valid Unicode, for messages and JSON.

    Bytes that are not UTF-8 and characters that cannot be printed are shown as `\x..` escapes.
    """
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # a name that no file of this system can have
        encoded = os.fspath(path).encode("utf-8", "backslashreplace")
    text = encoded.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the picture's name in front of what is wrong with it, or with the machine."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error.__cause__
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise InputError(f"{name}: too large for the memory of this machine") from error


def _source_name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return display_name(source)
    if isinstance(source, PIL.Image.Image):
        return "PIL image"
    if isinstance(source, io.BytesIO):
        return "file in memory"
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _unit(plane: PIL.Image.Image) -> npt.NDArray[np.float32]:
    """float32 (H, W) in [0, 1]; Lanczos overshoots in mode F."""
    values = np.asarray(plane, dtype=np.float32)
    return values / np.float32(255) if plane.mode == "L" else values.clip(0, 1)


def _eight_bits(plane: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 (H, W), rounded."""
    if plane.mode == "L":
        return np.asarray(plane)
    values = np.empty((plane.height, plane.width), np.uint8)
    for top, band in bands(plane):
        values[top : top + band.height] = np.rint(_unit(band) * 255)
    return values
