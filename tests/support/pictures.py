"""Pictures in files, as tests of the image contract need them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.data.decoding import planes
from sprfast.data.images import load_image
from sprfast.errors import InputError

SMALL = Preprocessing(size=16)
COMPOSITE = Preprocessing(size=16, alpha="composite")
Pixels = npt.NDArray[Any]


def picture(height: int = 16, width: int = 16, channels: int = 3, dtype: Any = np.uint8) -> Pixels:
    values = np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)
    return values[..., 0] if channels == 1 else values


def saved(path: Path, image: PIL.Image.Image | Pixels, **options: Any) -> Path:
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(path, **options)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, interlaced: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(path: Path, pixels: Pixels, **options: Any) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, pixels, **options)
    return path


def tagged_tiff(tags: dict[int, list[int]], content: bytes) -> bytes:
    """A TIFF of these tags, whose offsets count from where `content` begins."""
    tags = dict(sorted(tags.items()))
    start = 10 + 12 * len(tags) + 4
    after = start + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    entries, longer = b"", b""
    for tag, values in tags.items():
        if tag in (273, 324):
            values = [value + after for value in values]  # noqa: PLW2901
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack("<I", start + len(longer))
        longer += packed if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + longer + content


def profile(description: str, space: bytes = b"RGB ") -> bytes:
    """A colour profile with the primaries of Display P3 and the curve of sRGB; of grey, that curve
    alone.
    """

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    text, white = description.encode("utf-16-be"), (0.9642, 1.0, 0.8249)
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0)
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"desc": b"mluc" + bytes(4) + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text + b"\0\0"}
    tags |= {b"wtpt": b"XYZ " + bytes(4) + fixed(*white), b"kTRC" if space == b"GRAY" else b"rTRC": curve}
    if space == b"RGB ":
        primaries = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
        for name, each in zip(b"rgb", primaries, strict=True):
            tags[b"%cXYZ" % name] = b"XYZ " + bytes(4) + fixed(*each)
        tags |= {b"gTRC": curve, b"bTRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s12s4s28s", 132 + 12 * len(tags) + len(body), b"", 0x4000000, b"mntr", space,
                         b"XYZ ", b"", b"acsp", b"")  # fmt: skip
    return header + fixed(*white) + bytes(48) + table + body


def decoded(content: bytes, preprocessing: Preprocessing = SMALL) -> Pixels:
    """The (H, W, 3) pixels of a file in memory, at its own size."""
    return stacked(planes(io.BytesIO(content), preprocessing, None))


def stacked(channels: tuple[PIL.Image.Image, ...]) -> Pixels:
    return np.stack([np.asarray(channels[channel % len(channels)]) for channel in range(3)], axis=-1)


def refuses(source: Any, match: str, preprocessing: Preprocessing = SMALL, **options: Any) -> str:
    with pytest.raises(InputError, match=match) as caught:
        load_image(source, preprocessing, **options)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(source, Path):
        assert message.startswith(str(source))
    return message
