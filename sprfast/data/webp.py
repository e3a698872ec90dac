"""Whether a WebP file holds all of its pixels.

libwebp reads zeros for up to eight bytes beyond the end of its data, which may stand for half of a
picture. Such a picture depends on what follows the data; a whole one does not.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator

import PIL.Image
from PIL.WebPImagePlugin import WebPImageFile

from sprfast.data.bands import bands

_CODED = (b"VP8 ", b"VP8L", b"ALPH")  # chunks of coded pixels
_FRAME, _FRAME_HEADER = b"ANMF", 16  # a chunk of chunks, behind so many bytes
_TAIL = b"\xff" * 32


def load(image: WebPImageFile) -> None:
    """Decode the picture, also with other bytes behind its data.

    Raises:
        ValueError: its pixels are not the same.
    """
    assert image.fp is not None
    image.fp.seek(0)
    content = _longer(image.fp.read()[12:])  # behind the file's own header
    with WebPImageFile(io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content)) as other:
        other.load()
        expected = _digest(other)
    del other, content
    image.load()
    if _digest(image) != expected:
        raise ValueError("some of its data is missing")


def _longer(chunks: bytes, frames: bool = True) -> bytes:
    """The chunks, those of coded pixels with a tail; also those in frames."""
    result: list[bytes] = []
    for name, content in _chunks(chunks):
        body = content
        if name in _CODED:
            body += _TAIL
        elif name == _FRAME and frames:
            body = body[:_FRAME_HEADER] + _longer(body[_FRAME_HEADER:], frames=False)
        result += (name, struct.pack("<I", len(body)), body, bytes(len(body) % 2))
    return b"".join(result)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, at + 4)
        yield content[at : at + 4], content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _digest(image: PIL.Image.Image) -> bytes:
    """Of the pixels."""
    result = hashlib.sha256()
    for _, band in bands(image):
        result.update(band.tobytes())
    return result.digest()
