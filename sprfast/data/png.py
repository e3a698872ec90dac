"""Whether a PNG file holds all the pixels that its header asks for."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

_BLOCK = 65_536  # bytes held at a time
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def check(stream: BinaryIO) -> None:
    """Read every chunk to the end mark: its checksum, and the length of the inflated pixels.

    Pillow looks at no checksum of pixels, and takes a stream that ends cleanly too early for a
    whole one.

    Raises:
        ValueError: something is damaged or missing.
        OSError: the file cannot be read.
    """
    stream.seek(8)
    expected = found = 0
    inflater = zlib.decompressobj()
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", _read(stream, 8))
        if kind in (b"PLTE", b"tRNS") and found:
            raise ValueError("its colours or its transparency stand behind its pixels")
        checksum = zlib.crc32(kind)
        while length:
            part = _read(stream, min(length, _BLOCK))
            length -= len(part)
            checksum = zlib.crc32(part, checksum)
            if kind == b"IHDR":
                expected = _expected(part)
            elif kind == b"IDAT":
                found += _inflated(inflater, part)
                if found > expected:
                    raise ValueError("holds more pixels than its header says")
        if struct.unpack(">I", _read(stream, 4))[0] != checksum:
            raise ValueError(f"the checksum of a chunk {kind!r} is wrong")
    if not inflater.eof or inflater.unused_data or found != expected:
        raise ValueError(f"holds {found} of the {expected} bytes of pixels that its header asks for")


def _expected(header: bytes) -> int:
    """Bytes of the rows, each with its filter's byte."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits = depth * _CHANNELS[colour]
    total = 0
    for left, across, top, down in _PASSES if interlaced else ((0, 1, 0, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflated(inflater: zlib._Decompress, part: bytes) -> int:
    """How many bytes it becomes."""
    length, more = 0, True
    while more:
        if inflater.eof:
            raise ValueError("pixel data goes on behind its end")
        block = inflater.decompress(part, _BLOCK)
        length, part = length + len(block), inflater.unconsumed_tail
        more = bool(part) or len(block) == _BLOCK
    return length


def _read(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise ValueError("unexpected end of file")
    return content
