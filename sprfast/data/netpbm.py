"""PGM and PPM files in binary, whose greatest value (maxval) says what white is."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from sprfast.errors import InputError

_HEADER_BYTES = 2**16  # within which the pixels begin, comments included
_SPACE = rb"[ \t\r\n\v\f]"
_GAP = rb"(?:" + _SPACE + rb"|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([56])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,5})" + _SPACE)


class NetpbmFile(ImageFile.ImageFile):
    """The header of a PGM or PPM; `pixels` reads what follows."""

    format = "PPM"
    maxval: int
    start: int  # of the pixels, in bytes
    length: int  # of them
    is_animated: bool  # something follows them, as where pictures are strung together

    def _open(self) -> None:
        assert self.fp is not None
        beginning = self.fp.read(_HEADER_BYTES)
        if beginning[1:2] not in b"56":
            raise InputError(f"a Netpbm file P{chr(beginning[1])} is not accepted; save PGM or PPM in binary (P5, P6)")
        found = _HEADER.match(beginning)
        if found is None:
            raise ValueError("its header has no width, height and greatest value")
        kind, *numbers = (int(each) for each in found.groups())
        width, height, self.maxval = numbers
        if not 0 < self.maxval < 2**16:
            raise ValueError(f"a greatest value of {self.maxval}, where 1 to 65535 are possible")
        if kind == 6 and self.maxval > 255:
            raise InputError("colour with 16 bits a channel is not read from files; save 8, or pass a uint16 array")
        self._size, self.start = (width, height), found.end()
        self._mode = "RGB" if kind == 6 else "L" if self.maxval < 256 else "I;16"
        self.length = width * height * {"L": 1, "I;16": 2, "RGB": 3}[self._mode]
        self.is_animated = self.fp.seek(0, os.SEEK_END) > self.start + self.length


def pixels(image: NetpbmFile) -> npt.NDArray[Any]:
    """The pixels: uint8 (H, W) or (H, W, 3), stretched to 255 from a smaller greatest value; or
    uint16 (H, W) as they are.

    Raises:
        ValueError: some are missing.
        InputError: one is above the greatest value.
    """
    assert image.fp is not None
    image.fp.seek(image.start)
    content = image.fp.read(image.length)
    if len(content) < image.length:
        raise ValueError(f"{len(content)} of {image.length} bytes of pixels")
    shape = (image.height, image.width, 3)[: 3 if image.mode == "RGB" else 2]
    values = np.frombuffer(content, np.uint8 if image.maxval < 256 else ">u2").reshape(shape)
    if values.max() > image.maxval:
        raise InputError(f"holds the value {values.max()}; its header says that {image.maxval} is the greatest")
    if image.maxval > 255:
        return values.astype(np.uint16)
    stretched = (np.arange(256) * 255 + image.maxval // 2) // image.maxval
    return values if image.maxval == 255 else stretched.clip(0, 255).astype(np.uint8)[values]
