"""JPEG files, decoded so that a missing pixel is an error.

Pillow hides the warnings of libjpeg, which fills up what it lacks with grey. Here each warning is
an error, and the scans must bring every coefficient of every component.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import simplejpeg

_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # neither a stuffed byte nor a restart
_END, _SCAN = 0xD9, 0xDA
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # all but tables and an extension
_SCAN_PIXELS = 500_000_000  # of a file of up to a MiB: what is decoded in about a second


def pixels(content: bytes, size: tuple[int, int], mode: str) -> npt.NDArray[np.uint8]:
    """The pixels, (H, W, 3) of an RGB picture and (H, W) of a grey one, not oriented.

    Args:
        content: the file; what stands behind the end of its first picture is not looked at.
        size: (width, height), as its header says.
        mode: Pillow's, "RGB" or "L".

    Raises:
        ValueError: something is missing, damaged, or of a kind that is not decoded.
    """
    _check_scans(content, size[0] * size[1])
    values: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "GRAY" if mode == "L" else "RGB", strict=True)
    if values.shape[:2] != (size[1], size[0]):
        raise ValueError(f"has {values.shape[1]}x{values.shape[0]} pixels, and its header says {size[0]}x{size[1]}")
    return values if mode == "RGB" else values[..., 0]


def _check_scans(content: bytes, size: int) -> None:
    """Every component must have all of its coefficients, to the last bit.

    A decoder takes a picture without some of them for a whole one, which is grey or coarse there.
    """
    missing: dict[int, list[bool]] = {}
    progressive, scans = False, 0
    for marker, body in _segments(content):
        if marker in _FRAMES:
            if marker != _PROGRESSIVE and marker not in _SEQUENTIAL:
                raise ValueError(f"coding {marker:#x} is none of the baseline, extended and progressive ones")
            progressive = marker == _PROGRESSIVE
            missing = {body[at]: [True] * 64 for at in range(6, 6 + 3 * body[5], 3)}
            if len(missing) != body[5]:
                raise ValueError("two components have the same number")
        elif marker == _SCAN:
            scans += 1
            if scans > 1 and scans * size > _SCAN_PIXELS * (1 + len(content) / 2**20):
                raise ValueError(f"more than {scans - 1} scans would take too long")
            first, last, low = (*body[-3:-1], body[-1] & 15) if progressive else (0, 63, 0)
            for component in body[1 : 1 + 2 * body[0] : 2]:
                missing[component][first : last + 1] = [low > 0] * (last + 1 - first)
    if not missing or any(any(bits) for bits in missing.values()):
        raise ValueError("scans are missing")


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment up to the end of the first picture."""
    at = 2
    while (found := _MARKER.search(content, at)) and found[1][0] != _END:
        length = int.from_bytes(content[found.end() : found.end() + 2], "big")
        at = found.end() + length
        yield found[1][0], content[found.end() + 2 : at]
