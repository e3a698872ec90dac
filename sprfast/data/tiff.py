"""Which TIFF files are read, and whether one lists all of its strips or tiles.

Pillow reads more kinds than it reads right, and leaves black what a file does not list.
"""

from __future__ import annotations

from typing import Any

from PIL.TiffImagePlugin import TiffImageFile

from sprfast.errors import InputError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_SAMPLES, _ROWS_PER_STRIP, _PLANAR, _COLOURS, _EXTRA, _SAMPLE_FORMAT = 277, 278, 284, 320, 338, 339
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and byte counts
_TILE_SIZE = (322, 323)

_RAW = 1
_COMPRESSIONS = {_RAW, 5, 8, 32773, 32946, 34925, 50000}  # and LZW, deflate, PackBits, LZMA, Zstandard
_RGB = (2, (8, 8, 8), ())
# photometric interpretation, bits of each sample, meaning of the samples beyond the colours
_LAYOUTS = {
    *((white, (bits,), ()) for white in (0, 1) for bits in (1, 2, 4, 8)),
    *((1, (bits,), ()) for bits in (12, 16)),
    *((1, (8, 8), (extra,)) for extra in (0, 2)),
    *((3, (bits,), ()) for bits in (1, 2, 4, 8)),
    _RGB,
    *((2, (8, 8, 8, 8), extra) for extra in ((), (0,), (1,), (2,))),
}
_MOST_PARTS = 100_000  # strips and tiles, each of which costs its time


def check(image: TiffImageFile, length: int) -> None:
    """Refuse what is not known to be read right, and what does not list all of its pixels.

    Args:
        image: as opened, not loaded.
        length: of the file in bytes.

    Raises:
        InputError: a kind of TIFF that is not read.
        ValueError: strips, tiles, planes or colours are missing.
    """
    tags: Any = image.tag_v2
    bits = tuple(tags.get(_BITS, (1,)))
    samples = tags.get(_SAMPLES, 1)
    layout = (tags.get(_PHOTOMETRIC), bits * samples if len(bits) == 1 else bits, tuple(tags.get(_EXTRA, ())))
    if layout[0] == 2 and set(bits) == {16}:
        raise InputError("colour or alpha with 16 bits a channel would lose 8 of them; save 8, or pass a uint16 array")
    planes = samples if tags.get(_PLANAR, 1) == 2 else 1
    usual = (
        set(tags.get(_SAMPLE_FORMAT, (1,))) == {1} and tags.get(_FILL_ORDER, 1) == 1 and tags.get(_PLANAR, 1) in (1, 2)
    )
    if not usual or layout not in _LAYOUTS or (planes > 1 and layout != _RGB):
        raise InputError(
            f"this layout of a TIFF is not accepted (photometric interpretation {layout[0]}, bits {layout[1]}, extra "
            f"samples {layout[2]}, sample format {tags.get(_SAMPLE_FORMAT, (1,))}, {planes} planes); save unsigned "
            "8-bit grey, palette or RGB, or 16-bit grey that is not inverted"
        )
    compression = tags.get(_COMPRESSION, _RAW)
    if compression not in _COMPRESSIONS:
        raise InputError(
            f"a TIFF of compression {compression} is not accepted, as what it lacks would be made up; save it without, "
            "or with LZW, deflate, PackBits, LZMA or Zstandard"
        )
    if layout[0] == 3:
        _check_colours(tags[_COLOURS], bits[0])
    _check_parts(tags, planes, compression == _RAW, sum(layout[1]) // planes, length)


def _check_colours(colours: tuple[int, ...], bits: int) -> None:
    if len(colours) != 3 << bits:
        raise ValueError(f"has {len(colours)} of {3 << bits} values of colours")
    if 0 < max(colours) < 256:
        raise ValueError("its colours have 8 bits, and 16 are asked for")


def _check_parts(tags: Any, planes: int, raw: bool, bits: int, length: int) -> None:
    """All strips or tiles must be listed, each with its content; `bits` are those of a pixel of a
    plane.
    """
    width, height = tags[_WIDTH], tags[_HEIGHT]
    tiled = any(tag in tags for tag in (*_TILES, *_TILE_SIZE))
    if tiled and any(tag in tags for tag in _STRIPS):
        raise ValueError("has both strips and tiles")
    across, down = (
        (tags[tag] for tag in _TILE_SIZE) if tiled else (width, min(tags.get(_ROWS_PER_STRIP, height), height))
    )
    offsets, counts = (tuple(tags[tag]) for tag in (_TILES if tiled else _STRIPS))
    down_the_image = -(-height // down)
    expected = -(-width // across) * down_the_image * planes
    if not len(offsets) == len(counts) == expected:
        raise ValueError(f"lists {min(len(offsets), len(counts))} of its {expected} strips or tiles")
    if expected > _MOST_PARTS:
        raise ValueError(f"{expected} strips or tiles would take too long, {_MOST_PARTS} are read")
    if min(offsets) < 8 or any(at + size > length for at, size in zip(offsets, counts, strict=True)):
        raise ValueError("a strip or tile lies outside of the file")
    row = -(-across * bits // 8) if raw else 1
    whole = row * down if raw else 1
    last = whole if tiled or not raw else row * (height - down * (down_the_image - 1))
    short = [
        index for index, size in enumerate(counts) if size < (last if (index + 1) % down_the_image == 0 else whole)
    ]
    if short:
        raise ValueError(f"strip or tile {short[0]} is too short")
