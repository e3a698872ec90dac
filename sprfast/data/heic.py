"""HEIC files, decoded by the package pillow-heif, which comes with the extra `heic`.

Its decoder makes up what it lacks. A file that ends early is an error of the container's. Where the
rest of a picture was never written there are zeros, of which coded data has two in a row at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from sprfast.errors import InputError
from sprfast.system.libraries import require

# By the codes of ITU-T H.273; 2 is unspecified. BT.709 counts as sRGB, as in a JPEG.
_PRIMARIES, _CURVES = (1, 2), (1, 2, 6, 13)
_ZEROS = re.compile(rb"\0\0[\0\1\2]")  # which HEVC never has within a unit


class HeicFile(ImageFile.ImageFile):
    """What a HEIC file says of its primary picture; `pixels` decodes it.

    Its size is that after the turns and cuts that the file asks for, which belong to the picture.
    EXIF does not turn it once more.
    """

    format = "HEIC"
    is_animated: bool  # a sequence, beside its primary picture
    picture: Any  # pillow-heif's

    def _open(self) -> None:
        assert self.fp is not None
        self.fp.seek(8)
        self.is_animated = self.fp.read(4) in (b"hevc", b"hevx", b"hevm", b"hevs", b"msf1")
        self.fp.seek(0)
        content = self.fp.read()
        images = library().open_heif(content)
        _check_coded(content)
        self.picture = images[images.primary_index]
        said = self.picture.info
        if said["bit_depth"] > 8:
            raise InputError(f"HEIC with {said['bit_depth']} bits a channel would lose some of them; save 8")
        if "icc_profile" in said:
            self.info = {"icc_profile": said["icc_profile"]}
        elif "nclx_profile" in said:
            _check_colours(said["nclx_profile"])
        self._size, self._mode = self.picture.size, self.picture.mode


def library() -> Any:
    """The module pillow_heif.

    Raises:
        BackendError: it is not installed.
    """
    return require("pillow_heif", "heic")


def pixels(image: HeicFile) -> npt.NDArray[np.uint8]:
    """The pixels, (H, W), (H, W, 3) or with alpha (H, W, 4), turned and cut as the file asks; once.

    Raises:
        ValueError: something is missing or damaged.
    """
    values = np.asarray(image.picture)
    image.picture = None  # its memory goes with the pixels
    if values.dtype != np.uint8 or values.shape[:2] != (image.height, image.width):
        raise ValueError(f"has {values.shape} pixels, and its header says {image.height}x{image.width}")
    return values


def _check_coded(content: bytes) -> None:
    """Every coded picture must be units of the length that they say, without a run of zeros."""
    for begin, end in _coded(content):
        at = begin
        while at < end:
            length = int.from_bytes(content[at : at + 4], "big")
            at += 4 + length
            if not length or at > end or _ZEROS.search(content, at - length, at):
                raise ValueError("coded data is missing")


def _coded(content: bytes) -> Iterator[tuple[int, int]]:
    """Where each piece of a picture coded by HEVC lies in the file."""
    (meta,) = (place for name, *place in _boxes(content, 0, len(content)) if name == b"meta")
    parts = {name: content[begin:end] for name, begin, end in _boxes(content, meta[0] + 4, meta[1])}
    entries = parts[b"iinf"]
    coded = set()
    for _, begin, end in _boxes(entries, 8 if entries[0] else 6, len(entries)):
        entry = entries[begin:end]
        wide = 4 if entry[0] == 3 else 2
        if entry[6 + wide : 10 + wide] == b"hvc1":
            coded.add(int.from_bytes(entry[4 : 4 + wide], "big"))
    for item, begin, end in _extents(parts[b"iloc"]):
        if item in coded:
            yield begin, end


def _boxes(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of the content of each box."""
    while at + 8 <= end:
        length, start = int.from_bytes(content[at : at + 4], "big"), at + 8
        if length == 1:
            length, start = int.from_bytes(content[start : start + 8], "big"), at + 16
        length = length or end - at
        if length < start - at or at + length > end:
            raise ValueError("a box goes beyond its end")
        yield content[at + 4 : at + 8], start, at + length
        at += length


def _extents(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Number of the item, begin and end in the file of each piece that lies there by itself."""
    at, version = 6, table[0]
    sizes = [table[4] >> 4, table[4] & 15, table[5] >> 4, table[5] & 15 if version else 0]

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(table):
            raise ValueError("the table of its items ends early")
        return int.from_bytes(table[at - size : at], "big")

    offset_size, length_size, base_size, index_size = sizes
    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)  # of another file
        base = number(base_size)
        for _ in range(number(2)):
            number(index_size)
            begin = base + number(offset_size)
            end = begin + number(length_size)
            if method == 0:
                yield item, begin, end


def _check_colours(said: dict[str, Any]) -> None:
    primaries, curve = said["color_primaries"], said["transfer_characteristics"]
    if primaries not in _PRIMARIES or curve not in _CURVES:
        raise InputError(
            f"its colours are not those of sRGB (primaries {primaries}, curve {curve} by ITU-T H.273), and it has no "
            "colour profile; convert the file to sRGB"
        )
