"""Pictures in files, as tests of the image contract need them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from sprfast.config import Preprocessing
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


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(path: Path, pixels: Pixels, **options: Any) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, pixels, **options)
    return path


def refuses(source: Any, match: str, preprocessing: Preprocessing = SMALL, **options: Any) -> str:
    with pytest.raises(InputError, match=match) as caught:
        load_image(source, preprocessing, **options)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(source, Path):
        assert message.startswith(str(source))
    return message
