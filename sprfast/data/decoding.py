"""From a file, a PIL image or an array to planes, under the contract that `images` states.

What is wrong is an InputError without the picture's name, which `images` puts in front.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageOps, PngImagePlugin

from sprfast.config import Preprocessing
from sprfast.data import netpbm, profiles
from sprfast.data.bands import bands
from sprfast.data.opening import SizeCheck, check_header, check_pixel_count, decoding, loaded, opened
from sprfast.errors import InputError

_ARRAYS = "accepted are native uint8, uint16 or float32 in [0, 1] of shape (H, W), (H, W, 1) or (H, W, 3)"
_TIFF_ORIENTATION = 274


def planes(
    source: Any, preprocessing: Preprocessing, channel_order: Any, check_size: SizeCheck | None = None
) -> tuple[PIL.Image.Image, ...]:
    """One grey or three RGB planes at source size, oriented: mode L, or mode F in [0, 1].

    `check_size` is called with height and width, perhaps exchanged, before anything is decoded.

    Raises:
        InputError: the picture breaks the contract.
    """
    if not isinstance(channel_order, str | None):  # an array would be compared by element
        raise InputError(f"channel_order: a {type(channel_order).__name__}, expected 'rgb', 'bgr', 'grey' or None")
    if isinstance(source, np.ndarray):
        _check_array(source, preprocessing, channel_order)
        if check_size is not None:
            check_size(source.shape[0], source.shape[1])
        return _array_planes(source, preprocessing, channel_order)
    if channel_order is not None:
        raise InputError(f"channel_order {channel_order!r} is for arrays only; files and PIL images carry their own")
    if isinstance(source, PIL.Image.Image):
        check_header(source, preprocessing)
        if check_size is not None:
            check_size(source.height, source.width)
        with decoding():
            source.load()  # so that it counts as the caller has it, loaded before or not
        return _image_planes(source, preprocessing, None)
    if isinstance(source, str | os.PathLike | io.BytesIO):
        with opened(source, preprocessing, check_size) as image:
            return _file_planes(image, preprocessing)
    raise InputError("not a picture; accepted are a path, a PIL image, a numpy array or a file in io.BytesIO")


def oriented_size(path: str | os.PathLike[str], preprocessing: Preprocessing) -> tuple[int, int]:
    """The (height, width) of the oriented source, by its header where no orientation may be stored.

    Raises:
        InputError: the header breaks the contract.
    """
    with opened(path, preprocessing) as image:
        oriented = _file_planes(image, preprocessing)[0] if _has_orientation(image) else image
        width, height = oriented.size
    return height, width


def _has_orientation(image: PIL.Image.Image) -> bool:
    """Whether an orientation may be stored with a picture that is not decoded yet."""
    with decoding():
        if isinstance(image, PngImagePlugin.PngImageFile):  # it may stand after the pixels
            assert image.fp is not None
            image.fp.seek(0)
            return re.search(rb"eXIf|Raw profile type exif|XML:com\.adobe\.xmp", image.fp.read()) is not None
        return bool(image.getexif().get(_TIFF_ORIENTATION, 1) != 1)


def _file_planes(image: PIL.Image.Image, preprocessing: Preprocessing) -> tuple[PIL.Image.Image, ...]:
    with decoding():
        tiff_orientation = getattr(image, "tag_v2", {}).get(_TIFF_ORIENTATION)  # loading drops the tag
    if isinstance(image, netpbm.NetpbmFile) and 255 < image.maxval < 65535:
        return (_deep(loaded(image), image.maxval),)
    return _image_planes(loaded(image), preprocessing, tiff_orientation)


def _image_planes(
    image: PIL.Image.Image, preprocessing: Preprocessing, tiff_orientation: int | None
) -> tuple[PIL.Image.Image, ...]:
    to_srgb = profiles.to_srgb(image, preprocessing.profiles)
    _check_transparency(image)
    with decoding():
        if preprocessing.orientation == "ignore":
            image = _turned_back(image, tiff_orientation)
        elif image.getexif().get(_TIFF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return (_deep(image, 2**preprocessing.bit_depth - 1),)
        if image.has_transparency_data:
            result = _flattened(image, preprocessing)
        elif image.mode in ("1", "L"):
            result = (image.convert("L"),)
        else:
            result = (image if image.mode == "RGB" else image.convert("RGB")).split()
    if to_srgb is not None:
        profiles.convert(result, to_srgb)
    return result


def _deep(image: PIL.Image.Image, top: int) -> PIL.Image.Image:
    """Integers from 0 to `top` as mode F in [0, 1]."""
    result = PIL.Image.new("F", image.size)
    for row, band in bands(image):
        result.paste(PIL.Image.fromarray(_from_integers(np.asarray(band), top)), (0, row))
    return result


def _check_transparency(image: PIL.Image.Image) -> None:
    """Refuse a transparent value of grey or RGB that Pillow does not compare rightly."""
    if "transparency" not in image.info or image.mode == "P":
        return
    if image.mode.startswith("I") or image.mode == "1":
        raise InputError("grey of 1 or 16 bits with a transparent value is not accepted; save it without")
    value = image.info["transparency"]
    if max(value if isinstance(value, tuple) else (value,)) > 255:
        raise InputError("a transparent value beyond 255 is not accepted; save it without")


def _turned_back(image: PIL.Image.Image, tiff_orientation: int | None) -> PIL.Image.Image:
    """Undo the orientation, which Pillow applies by itself to TIFF files (and to no others) as it
    loads them.
    """
    turn = PIL.Image.Transpose
    undo = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE}
    undo |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    return image.transpose(undo[tiff_orientation]) if tiff_orientation in undo else image


def _flattened(image: PIL.Image.Image, preprocessing: Preprocessing) -> tuple[PIL.Image.Image, ...]:
    """RGB planes by the alpha policy, band by band, since Pillow takes much memory to composite."""
    result = tuple(PIL.Image.new("L", image.size) for _ in range(3))
    for top, part in bands(image):
        band = part.convert("RGBA")
        if band.getchannel("A").getextrema() != (255, 255):
            if preprocessing.alpha == "refuse":
                raise InputError(
                    "has transparent pixels; save it without alpha, or allow alpha 'composite' (over black)"
                )
            band = PIL.Image.alpha_composite(PIL.Image.new("RGBA", band.size, (0, 0, 0, 255)), band)
        for plane, channel in zip(result, band.split(), strict=False):  # without alpha
            plane.paste(channel, (0, top))
    return result


def _check_array(array: npt.NDArray[Any], preprocessing: Preprocessing, order: str | None) -> None:
    kinds = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype not in kinds or not shaped or isinstance(array, np.ma.MaskedArray):
        raise InputError(
            f"{type(array).__name__} of dtype {array.dtype.str} and shape {array.shape} is not accepted; {_ARRAYS}"
        )
    check_pixel_count(array.shape[0], array.shape[1], preprocessing)
    colour = array.ndim == 3 and array.shape[2] == 3
    allowed = ("rgb", "bgr") if colour else (None, "grey")
    if order not in allowed:
        raise InputError(f"channel_order {order!r} for shape {array.shape}: expected {allowed[0]!r} or {allowed[1]!r}")


def _array_planes(
    array: npt.NDArray[Any], preprocessing: Preprocessing, order: str | None
) -> tuple[PIL.Image.Image, ...]:
    values = np.atleast_3d(np.asarray(array))
    if values.dtype == np.uint16:
        values = _from_integers(values, 2**preprocessing.bit_depth - 1)
    elif values.dtype == np.float32 and not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise InputError("float values must be finite and in [0, 1]; NaN, infinity or a value outside was given")
    if order == "bgr":
        values = values[..., ::-1]
    return tuple(PIL.Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, 2, 0))


def _from_integers(values: npt.NDArray[Any], top: int) -> npt.NDArray[np.float32]:
    """Integers from 0 to `top` to [0, 1]; `top` is 2**depth - 1, or no value is above it."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > top:
        raise InputError(f"holds values from {lowest} to {highest}; bit_depth {top.bit_length()} allows 0 to {top}")
    scaled = values.astype(np.float32)
    scaled /= np.float32(top)
    return scaled
