"""WebP files, decoded in little memory and so that a missing pixel is an error.

Pillow reads each as an animation, which takes 24 bytes a pixel. Here its libwebp is asked for one
picture. libwebp reads zeros for up to eight bytes beyond the end of its data, which may stand for
half of a picture. Such a picture depends on what follows the data; a whole one does not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from sprfast.errors import InputError

_CODED = (b"VP8 ", b"VP8L")  # chunks of coded colours
_FRAME_HEADER = 16  # bytes of an animation's frame before its chunks
_ALPHA_FLAG = 16  # of VP8X
_TAIL = b"\xff" * 32
_INFO = {b"ICCP": "icc_profile", b"EXIF": "exif", b"XMP ": "xmp"}  # by Pillow's names

Place = tuple[bytes, int, int]  # a chunk's name, and where its content begins and ends


class WebPFile(ImageFile.ImageFile):
    """What a WebP file says of its picture, or of its first frame; `pixels` decodes it."""

    format = "WEBP"
    is_animated: bool
    coded: list[Place]  # alpha, where it is stored by itself, and colours

    def _open(self) -> None:
        length = struct.unpack("<I", self._bytes(4, 8))[0]
        chunks = list(self._chunks(12, 8 + length))
        size = None
        if chunks and chunks[0][0] == b"VP8X":
            size = _sides(self._bytes(*chunks[0][1:]))
        for name, begin, end in reversed(chunks):  # of two, the first counts
            if name in _INFO:
                self.info[_INFO[name]] = self._bytes(begin, end)
        frames = [chunk for chunk in chunks if chunk[0] == b"ANMF"]
        self.is_animated = len(frames) > 1
        if frames:
            _, begin, end = frames[0]
            chunks = list(self._chunks(begin + _FRAME_HEADER, end))
        self.coded = [chunk for chunk in chunks if chunk[0] in (b"ALPH", *_CODED)]
        names = [name for name, _, _ in self.coded]
        if names not in ([b"VP8 "], [b"VP8L"], [b"ALPH", b"VP8 "]):
            raise ValueError(f"has the coded chunks {names}, which make no picture")
        self._size, transparent = _picture(names[-1], self._bytes(*self.coded[-1][1:])[:10])
        if size not in (None, self.size):
            raise ValueError(f"a picture of {self.size} (width, height) where the file says {size}")
        self._mode = "RGBA" if transparent or len(names) > 1 else "RGB"

    def container(self, tail: bytes) -> bytearray:
        """A file of the picture alone, with `tail` behind each part of its data."""
        start = b"WEBP"
        if len(self.coded) > 1:
            width, height = (struct.pack("<I", side - 1)[:3] for side in self.size)
            start += _header(b"VP8X", 10) + bytes([_ALPHA_FLAG, 0, 0, 0]) + width + height
        lengths = [end - begin + len(tail) for _, begin, end in self.coded]
        whole = len(start) + sum(8 + length + length % 2 for length in lengths)
        result = bytearray(8 + whole)
        at = 8 + len(start)
        result[:at] = _header(b"RIFF", whole) + start
        for (name, begin, end), length in zip(self.coded, lengths, strict=True):
            result[at : at + 8] = _header(name, length)
            at += 8
            self._read_into(memoryview(result)[at : at + end - begin], begin)
            result[at + end - begin : at + length] = tail
            at += length + length % 2
        return result

    def _chunks(self, at: int, end: int) -> Iterator[Place]:
        while at + 8 <= end:
            name, length = struct.unpack("<4sI", self._bytes(at, at + 8))
            if at + 8 + length > end:
                raise ValueError(f"chunk {name!r} goes beyond the end")
            yield name, at + 8, at + 8 + length
            at += 8 + length + length % 2

    def _bytes(self, begin: int, end: int) -> bytes:
        result = bytearray(end - begin)
        self._read_into(memoryview(result), begin)
        return bytes(result)

    def _read_into(self, place: memoryview, begin: int) -> None:
        assert self.fp is not None
        self.fp.seek(begin)
        if self.fp.readinto(place) < len(place):  # type: ignore[attr-defined]
            raise ValueError("the file ends early")


def pixels(image: WebPFile) -> npt.NDArray[np.uint8]:
    """The pixels, (H, W, 3) or with alpha (H, W, 4), not oriented.

    Raises:
        ValueError: something is missing or damaged.
        InputError: Pillow's libwebp cannot be called.
    """
    values = np.empty((image.height, image.width, len(image.mode)), np.uint8)
    _decode(image, _TAIL, values)
    expected = hashlib.sha256(values.data).digest()
    _decode(image, b"", values)
    if hashlib.sha256(values.data).digest() != expected:
        raise ValueError("some of its data is missing")
    return values


def _header(name: bytes, length: int) -> bytes:
    return name + struct.pack("<I", length)


def _sides(extended: bytes) -> tuple[int, int]:
    """Width and height in the content of VP8X, of 24 bits each."""
    width, height = (1 + int.from_bytes(extended[at : at + 3], "little") for at in (4, 7))
    return width, height


def _picture(name: bytes, start: bytes) -> tuple[tuple[int, int], bool]:
    """(width, height) of coded colours, and whether alpha is coded with them."""
    if name == b"VP8 ":
        if start[3:6] != b"\x9d\x01\x2a":
            raise ValueError("its picture has no start")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", start, 6))
        return (width, height), False
    if start[0] != 0x2F:
        raise ValueError("its picture has no start")
    bits = int.from_bytes(start[1:5], "little")
    return (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), bool(bits >> 28 & 1)


def _decode(image: WebPFile, tail: bytes, values: npt.NDArray[np.uint8]) -> None:
    library, container = _libwebp(), image.container(tail)
    content = (ctypes.c_char * len(container)).from_buffer(container)
    width, height = ctypes.c_int(), ctypes.c_int()
    if not library.WebPGetInfo(content, len(content), ctypes.byref(width), ctypes.byref(height)):
        raise ValueError("libwebp does not know its header")
    if (width.value, height.value) != image.size:
        raise ValueError("its parts have several sizes")
    decode = library.WebPDecodeRGBAInto if image.mode == "RGBA" else library.WebPDecodeRGBInto
    if not decode(content, len(content), values.ctypes.data, values.nbytes, values.strides[0]):
        raise ValueError("libwebp cannot decode its data")


@functools.cache
def _libwebp() -> Any:
    """The library that Pillow's own module for WebP is linked with."""
    try:
        from PIL import _webp

        library = ctypes.CDLL(_webp.__file__)  # finds names of the libraries behind it, too
        library.WebPGetInfo.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
        for decode in (library.WebPDecodeRGBInto, library.WebPDecodeRGBAInto):
            decode.restype = ctypes.c_void_p
            decode.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    except (ImportError, OSError, AttributeError) as error:
        raise InputError(
            f"WebP needs a Pillow with libwebp as a shared library; pip install pillow ({error})"
        ) from error
    return library
