"""From a file, a PIL image or an array to planes, under the contract that `images` states.

What is wrong is an InputError without the picture's name, which `images` puts in front.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import BmpImagePlugin, ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from sprfast.config import Preprocessing
from sprfast.errors import InputError

_MODES = ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N")
_ARRAYS = "accepted are native uint8, uint16 or float32 in [0, 1] of shape (H, W), (H, W, 1) or (H, W, 3)"
_TIFF_PHOTOMETRIC, _TIFF_ORIENTATION, _TIFF_SAMPLE_FORMAT = 262, 274, 339

# Pillow's own readers, by signature. PIL.Image.open is not used: its pixel limit is a process-wide
# global, and it would try every format it knows, PostScript among them.
_READERS: tuple[tuple[re.Pattern[bytes], Callable[[Any], PIL.Image.Image]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.jpeg_factory),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
)


def planes(source: Any, preprocessing: Preprocessing, channel_order: Any) -> tuple[PIL.Image.Image, ...]:
    """One grey or three RGB planes at source size, oriented: mode L, or mode F in [0, 1].

    Raises:
        InputError: the picture breaks the contract.
    """
    if not isinstance(channel_order, str | None):  # an array would be compared by element
        raise InputError(f"channel_order: a {type(channel_order).__name__}, expected 'rgb', 'bgr', 'grey' or None")
    if isinstance(source, np.ndarray):
        return _array_planes(source, preprocessing, channel_order)
    if channel_order is not None:
        raise InputError(f"channel_order {channel_order!r} is for arrays only; files and PIL images carry their own")
    if isinstance(source, PIL.Image.Image):
        _check_header(source, preprocessing)
        with _decoding():
            source.load()  # so that it counts as the caller has it, loaded before or not
        return _image_planes(source, preprocessing)
    if isinstance(source, str | os.PathLike | io.BytesIO):
        with _opened(source, preprocessing) as image:
            return _image_planes(image, preprocessing)
    raise InputError("not a picture; accepted are a path, a PIL image, a numpy array or a file in io.BytesIO")


def oriented_size(path: str | os.PathLike[str], preprocessing: Preprocessing) -> tuple[int, int]:
    """The (height, width) of the oriented source, by its header where no orientation may be stored.

    Raises:
        InputError: the header breaks the contract.
    """
    with _opened(path, preprocessing) as image:
        oriented = _image_planes(image, preprocessing)[0] if _has_orientation(image) else image
        width, height = oriented.size
    return height, width


def _has_orientation(image: PIL.Image.Image) -> bool:
    """Whether an orientation may be stored with a picture that is not decoded yet."""
    with _decoding():
        if isinstance(image, PngImagePlugin.PngImageFile):  # it may stand after the pixels
            assert image.fp is not None
            image.fp.seek(0)
            return re.search(rb"eXIf|Raw profile type exif|XML:com\.adobe\.xmp", image.fp.read()) is not None
        return bool(image.getexif().get(_TIFF_ORIENTATION, 1) != 1)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise InputError("above Pillow's own limit for this format; raise PIL.Image.MAX_IMAGE_PIXELS too") from error
    # on damaged bytes Pillow's readers raise a dozen types, down to KeyError and struct.error
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"cannot be decoded, the file is damaged or truncated ({detail})") from error


class _WholeFile(io.BufferedReader):
    """A file in which reading on at the end is an error.

    Pillow fills up what is missing of a truncated file when the application has set its global
    LOAD_TRUNCATED_IMAGES; it does so on an empty read, so there must not be one.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        if not content and size != 0:
            raise OSError("unexpected end of file")
        return content


def _stream(source: str | os.PathLike[str] | io.BytesIO) -> io.FileIO | io.BytesIO:
    """From the beginning of the file, wherever the caller's own stands."""
    try:
        if isinstance(source, io.BytesIO):
            return io.BytesIO(source.getvalue())
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise InputError("not a regular file")
        return io.FileIO(os.fspath(source))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or a closed BytesIO
        raise InputError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str] | io.BytesIO, preprocessing: Preprocessing) -> Iterator[PIL.Image.Image]:
    """The file as a lazily decoded PIL image whose header, and PNG checksums, have been checked."""
    with _WholeFile(_stream(source)) as stream:
        signature = stream.peek(16)[:16]
        if not signature:
            raise InputError("the file is empty")
        reader = next((reader for pattern, reader in _READERS if pattern.match(signature)), None)
        if reader is None:
            raise InputError("the content is not a PNG, JPEG, BMP, TIFF or WebP image, whatever the name says")
        with _decoding():
            image = reader(stream)
        _check_header(image, preprocessing)
        if reader is PngImagePlugin.PngImageFile:
            with _decoding():  # decoding skips the checksums of pixel data
                stream.seek(0)
                reader(stream).verify()
        yield image


def _check_header(image: PIL.Image.Image, preprocessing: Preprocessing) -> None:
    """Refuse what can be told before the pixels are decoded."""
    width, height = image.size
    _check_pixel_count(height, width, preprocessing)
    if image.mode not in _MODES:
        kind = "float" if image.mode == "F" else image.mode
        raise InputError(f"{kind} pixels are not accepted, only 8-bit RGB, grey, 1-bit, palette or 16-bit grey")
    rawmodes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if not image.mode.startswith("I") and re.search(r";16[BLN]", rawmodes):
        raise InputError("colour or alpha with 16 bits a channel would lose 8 of them; save 8, or pass a uint16 array")
    tags = getattr(image, "tag_v2", {})
    inverted = image.mode.startswith("I") and tags.get(_TIFF_PHOTOMETRIC, 1) == 0
    signed = image.mode == "L" and tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] != 1
    if inverted or signed:
        raise InputError("a TIFF of inverted 16-bit or signed 8-bit values is not accepted; save unsigned, 0 = black")
    if preprocessing.frames == "refuse":
        with _decoding():
            frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise InputError(f"holds {frames} frames or pages; pass one, or allow the first with frames 'first'")


def _check_pixel_count(height: int, width: int, preprocessing: Preprocessing) -> None:
    if height * width < 1:
        raise InputError(f"{height}x{width} pixels (height x width): a picture needs at least one")
    if height * width > preprocessing.max_pixels:
        raise InputError(
            f"{height}x{width} (height x width) is {height * width} pixels, above max_pixels {preprocessing.max_pixels}"
        )


def _image_planes(image: PIL.Image.Image, preprocessing: Preprocessing) -> tuple[PIL.Image.Image, ...]:
    with _decoding():
        tiff_orientation = getattr(image, "tag_v2", {}).get(_TIFF_ORIENTATION)  # loading drops the tag
        image.load()
    _check_profile(image)
    with _decoding():
        image = (
            ImageOps.exif_transpose(image)
            if preprocessing.orientation == "exif"
            else _turned_back(image, tiff_orientation)
        )
        if image.mode.startswith("I"):
            if "transparency" in image.info:
                raise InputError("16-bit grey with a transparent value is not accepted; save it without")
            return (PIL.Image.fromarray(_from_integers(np.asarray(image), preprocessing.bit_depth)),)
        if image.has_transparency_data:
            image = _without_alpha(image.convert("RGBA"), preprocessing)
        return (image.convert("L"),) if image.mode in ("1", "L") else image.convert("RGB").split()


def _turned_back(image: PIL.Image.Image, tiff_orientation: int | None) -> PIL.Image.Image:
    """Undo the orientation, which Pillow applies by itself to TIFF files (and to no others) as it
    loads them.
    """
    turn = PIL.Image.Transpose
    undo = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE}
    undo |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    return image.transpose(undo[tiff_orientation]) if tiff_orientation in undo else image


def _check_profile(image: PIL.Image.Image) -> None:
    """Accept no colour profile, sRGB, or grey with gamma 2.2 or the sRGB curve."""
    if "icc_profile" not in image.info:
        return
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"] or b""))
        description = ImageCms.getProfileDescription(profile).strip()
        grey = profile.profile.xcolor_space.strip() == "GRAY"
    # ImportError: a Pillow built without littlecms
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError, ImportError) as error:
        raise InputError("its embedded colour profile cannot be read; convert the file to sRGB") from error
    if "srgb" not in description.lower() and not (grey and "gamma 2.2" in description.lower()):
        raise InputError(f"embedded colour profile {description!r} is not accepted; convert the file to sRGB")


def _without_alpha(image: PIL.Image.Image, preprocessing: Preprocessing) -> PIL.Image.Image:
    """RGBA to RGB by the alpha policy."""
    opaque = np.asarray(image.getchannel("A")).min() == 255
    if opaque:
        return image.convert("RGB")
    if preprocessing.alpha == "refuse":
        raise InputError("has transparent pixels; save it without alpha, or allow alpha 'composite' (over black)")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _array_planes(
    array: npt.NDArray[Any], preprocessing: Preprocessing, order: str | None
) -> tuple[PIL.Image.Image, ...]:
    kinds = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype not in kinds or not shaped or isinstance(array, np.ma.MaskedArray):
        raise InputError(
            f"{type(array).__name__} of dtype {array.dtype.str} and shape {array.shape} is not accepted; {_ARRAYS}"
        )
    _check_pixel_count(array.shape[0], array.shape[1], preprocessing)
    colour = array.ndim == 3 and array.shape[2] == 3
    allowed = ("rgb", "bgr") if colour else (None, "grey")
    if order not in allowed:
        raise InputError(f"channel_order {order!r} for shape {array.shape}: expected {allowed[0]!r} or {allowed[1]!r}")
    values = np.atleast_3d(np.asarray(array))
    if values.dtype == np.uint16:
        values = _from_integers(values, preprocessing.bit_depth)
    elif values.dtype == np.float32 and not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise InputError("float values must be finite and in [0, 1]; NaN, infinity or a value outside was given")
    if order == "bgr":
        values = values[..., ::-1]
    return tuple(PIL.Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, 2, 0))


def _from_integers(values: npt.NDArray[Any], bit_depth: int) -> npt.NDArray[np.float32]:
    """Integers of up to `bit_depth` bits to [0, 1]."""
    top = 2**bit_depth - 1
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > top:
        raise InputError(f"holds values from {lowest} to {highest}; bit_depth {bit_depth} allows 0 to {top}")
    return values.astype(np.float32) / np.float32(top)
