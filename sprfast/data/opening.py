"""Image files, opened and checked before their pixels are believed.

What is wrong is an InputError without the picture's name, which `images` puts in front.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from sprfast.config import Preprocessing
from sprfast.data import heic, jpeg, netpbm, png, tiff, webp
from sprfast.errors import InputError
from sprfast.system.reading import open_regular

_MODES = ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N")
_LONGEST_SIDE = 1_000_000  # pixels; Pillow keeps an address for each row, which thin pictures have many of
_OVERHEAD, _BYTES_PER_PIXEL = 2**24, 3  # that a JPEG, a WebP or a HEIC may have, which are read whole
_DECODED_BYTES = 100_000_000  # of a file of up to a MiB: what is decoded in about a second

SizeCheck = Callable[[int, int], object]  # of height and width; raises InputError

# Pillow's own readers, by signature. PIL.Image.open is not used: its pixel limit is a process-wide
# global, and it would try every format it knows, PostScript among them.
_READERS: tuple[tuple[re.Pattern[bytes], Callable[[Any], PIL.Image.Image]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),  # of several pictures it shows the primary one
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), webp.WebPFile),
    (re.compile(rb"....ftyp(he[iv][cmsx]|m[is]f1)", re.DOTALL), heic.HeicFile),
    (re.compile(rb"P[1-7][\s#]"), netpbm.NetpbmFile),
)

# What Pillow reads right, by its names for the order of the bits in a file.
_PNG_ORDERS = {"1", "L", "L;2", "L;4", "I;16B", "P;1", "P;2", "P;4", "P", "LA", "RGB", "RGBA"}
_BMP_BITS = {"1": 1, "P;1": 1, "P;4": 4, "L": 8, "P": 8, "BGR;15": 16, "BGR;16": 16, "BGR": 24}
_BMP_BITS |= dict.fromkeys(("BGRX", "XBGR", "BGXR", "RGBA", "BGRA", "ABGR", "BGAR"), 32)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Pillow's errors as InputError; what the machine lacks goes through."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise InputError("above Pillow's own limit for this format; raise PIL.Image.MAX_IMAGE_PIXELS too") from error
    # on damaged bytes Pillow's readers raise a dozen types, down to KeyError and struct.error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"cannot be decoded, the file is damaged or truncated ({detail})") from error


@contextlib.contextmanager
def opened(
    source: str | os.PathLike[str] | io.BytesIO, preprocessing: Preprocessing, check_size: SizeCheck | None = None
) -> Iterator[PIL.Image.Image]:
    """The file as a PIL image whose header, and PNG data, has been checked; `loaded` decodes it.

    `check_size` is called with height and width, perhaps exchanged, before pixels are looked at.

    Raises:
        InputError: the header breaks the contract, or there is no such file.
        BackendError: it is a HEIC file, and pillow-heif is not installed.
    """
    _refuse_tolerance()
    with io.BufferedReader(_stream(source)) as stream:
        start = stream.peek(30)[:30]
        if not start:
            raise InputError("the file is empty")
        reader = next((reader for pattern, reader in _READERS if pattern.match(start)), None)
        if reader is None:
            raise InputError(
                "the content is not a PNG, JPEG, BMP, TIFF, WebP, HEIC, PGM or PPM image, whatever the name says"
            )
        if reader is heic.HeicFile:
            heic.library()
            _check_length(stream, preprocessing.max_pixels)
        with decoding():
            image = reader(stream)
        check_header(image, preprocessing)
        if isinstance(image, JpegImagePlugin.JpegImageFile | webp.WebPFile | heic.HeicFile):
            _check_length(stream, image.width * image.height)
        _check_time(image, _length(stream))
        if check_size is not None:
            check_size(image.height, image.width)
        if isinstance(image, PngImagePlugin.PngImageFile):
            with decoding():
                png.check(stream)
        yield image


def loaded(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture of a file with its pixels, all of which the file must hold; not oriented but for
    TIFF files.

    Raises:
        InputError: it does not.
    """
    with decoding():
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            assert image.fp is not None
            image.fp.seek(0)
            return _picture(jpeg.pixels(image.fp.read(), image.size, image.mode), image)
        if isinstance(image, webp.WebPFile):
            return _picture(webp.pixels(image), image)
        if isinstance(image, heic.HeicFile):
            return _picture(heic.pixels(image), image)
        if isinstance(image, netpbm.NetpbmFile):
            return _picture(netpbm.pixels(image), image)
        colours = _colours(image)
        image.load()
        if colours is not None and np.asarray(image).max() >= colours:
            raise ValueError("a pixel has a colour that the palette lacks")
    return image


def check_header(image: PIL.Image.Image, preprocessing: Preprocessing) -> None:
    """Refuse what can be told before the pixels are decoded.

    Raises:
        InputError: it breaks the contract.
    """
    width, height = image.size
    check_pixel_count(height, width, preprocessing)
    if image.mode not in _MODES:
        kind = "float" if image.mode == "F" else image.mode
        raise InputError(f"{kind} pixels are not accepted, only 8-bit RGB, grey, 1-bit, palette or 16-bit grey")
    if isinstance(image, ImageFile.ImageFile) and image.tile:  # a file that is not decoded yet
        _refuse_tolerance()
        with decoding():
            _check_layout(image)
    several = preprocessing.frames == "refuse" and getattr(image, "is_animated", False)  # counting pages takes long
    if several and image.format != "MPO":  # which has one primary picture
        raise InputError("holds several frames or pages; pass one, or allow the first with frames 'first'")


def check_pixel_count(height: int, width: int, preprocessing: Preprocessing) -> None:
    """Refuse too many pixels, none, and sides beyond a million.

    Raises:
        InputError: so it is.
    """
    if height * width < 1:
        raise InputError(f"{height}x{width} pixels (height x width): a picture needs at least one")
    if height * width > preprocessing.max_pixels:
        raise InputError(
            f"{height}x{width} (height x width) is {height * width} pixels, above max_pixels {preprocessing.max_pixels}"
        )
    if max(height, width) > _LONGEST_SIDE:
        raise InputError(f"{height}x{width} pixels (height x width): a side may have up to {_LONGEST_SIDE}")


def _stream(source: str | os.PathLike[str] | io.BytesIO) -> io.FileIO | io.BytesIO:
    """From the beginning of the file, wherever the caller's own stands."""
    try:
        return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else open_regular(source)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or a closed BytesIO
        raise InputError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _refuse_tolerance() -> None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, which makes up pixels that a file lacks; "
            "set it to False"
        )


def _check_layout(image: ImageFile.ImageFile) -> None:
    """Only what Pillow is known to read right, and only where it covers the whole picture."""
    order = image.tile[0][3]
    order = order if isinstance(order, str) or order is None else order[0]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tiff.check(image, _length(image.fp))
    elif isinstance(image, PngImagePlugin.PngImageFile):
        _check_png(image, order)
    elif isinstance(image, BmpImagePlugin.BmpImageFile):
        _check_bmp(image, order)


def _check_png(image: PngImagePlugin.PngImageFile, order: Any) -> None:
    if order in ("RGB;16B", "LA;16B", "RGBA;16B"):
        raise InputError("colour or alpha with 16 bits a channel would lose 8 of them; save 8, or pass a uint16 array")
    if order in ("1", "L;2", "L;4") and "transparency" in image.info:
        raise InputError("grey of less than 8 bits with a transparent value is not accepted; save it without")
    if order not in _PNG_ORDERS or image.tile[0][1] != (0, 0, *image.size):
        raise ValueError("its pixels are in no known order, or do not cover it")


def _check_bmp(image: BmpImagePlugin.BmpImageFile, order: Any) -> None:
    if image.tile[0][0] != "raw":
        raise InputError("a BMP with run lengths may leave pixels out; save it without compression")
    assert image.fp is not None
    image.fp.seek(14)
    header = image.fp.read(16)
    size = int.from_bytes(header[:4], "little")
    at = 10 if size == 12 else 14
    if _BMP_BITS.get(order) != int.from_bytes(header[at : at + 2], "little") or image.tile[0][2] < 14 + size:
        raise ValueError("its bits for a pixel and its palette disagree, or its pixels lie in its header")


def _length(stream: Any) -> int:
    at = stream.tell()
    length: int = stream.seek(0, os.SEEK_END)
    stream.seek(at)
    return length


def _check_time(image: PIL.Image.Image, length: int) -> None:
    """Refuse a small file that takes long: a second is given for each MiB, and one more."""
    decoded = image.width * image.height * (2 if image.mode.startswith("I") else len(image.getbands()))
    if decoded > _DECODED_BYTES * (1 + length / 2**20):
        raise InputError(
            f"{image.height}x{image.width} pixels (height x width) in {length} bytes would take too long to decode; "
            "pass the pixels, or a smaller picture"
        )


def _check_length(stream: Any, pixels: int) -> None:
    """Of a file that is read whole."""
    length, limit = _length(stream), _OVERHEAD + _BYTES_PER_PIXEL * pixels
    if length > limit:
        raise InputError(f"{length} bytes are more than the {limit} that a file of {pixels} pixels may have")


def _colours(image: PIL.Image.Image) -> int | None:
    """How many the palette of a file has that is not decoded yet; None: it has no palette."""
    if image.mode != "P":
        return None
    palette = image.palette
    return 0 if palette is None else len(palette.palette) // (4 if palette.rawmode == "BGRX" else 3)


def _picture(values: npt.NDArray[Any], image: PIL.Image.Image) -> PIL.Image.Image:
    """The pixels, with what the file says of them."""
    picture = PIL.Image.fromarray(values)
    picture.info = image.info
    return picture
