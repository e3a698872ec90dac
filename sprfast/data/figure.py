"""Pictures for people: the heat overlay of one image, and the figure of an evaluation."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sprfast.data.lettering import lettered
from sprfast.errors import InputError
from sprfast.system.files import write_bytes
from sprfast.system.libraries import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_OPACITY = 0.55  # of the heat from 1.5 times the threshold on
_MOST_PIXELS = 4_194_304  # of an overlay
_CELL = 1.9  # inches: width of a column of the evaluation figure
_TALLEST = 2.0  # height/width of a cell; taller images are drawn narrower
_DPI = 150
_LONGEST = 26  # characters of a name over a column


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One example of the evaluation figure."""

    title: str  # its kind: `good` or the name of the defect
    image: NDArray[np.uint8]  # (H, W, 3)
    error_map: NDArray[np.float32]  # (h, w), at the size the network saw
    mask: NDArray[np.bool_]  # (256, 256), True on the defect
    score: float  # shown above the column


def overlay(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], threshold: float | None) -> NDArray[np.uint8]:
    """The image with its anomaly map over it as heat, and what exceeds the threshold outlined in
    white.

    Below half the threshold the image is left as it is; from there the heat runs over green at the
    threshold to red at twice the threshold and above, so overlays of one model compare. Without a
    threshold, or with one that is not positive, red is the maximum of this map, and only places
    within the image compare.

    Args:
        image: (H, W, 3) uint8, the source image.
        anomaly_map: (256, 256) float32; stretched to the image.
        threshold: in the units of the map; None: no outline.

    Returns:
        (H, W, 3) uint8, a new array; of an image above 4,194,304 pixels, at that many at most.

    Raises:
        InputError: a wrong shape or dtype, or a NaN or infinite value in the map or threshold.
        BackendError: matplotlib or SciPy is not installed.
    """
    colormaps = require("matplotlib", "figures").colormaps
    binary_erosion = require("scipy.ndimage", "figures").binary_erosion
    _check_image(image)
    _check_map("anomaly_map", anomaly_map)
    if threshold is not None and not np.isfinite(threshold):
        raise InputError(f"threshold: {threshold!r} is not allowed, expected a finite number")
    image = _reduced(image)
    height, width = image.shape[:2]
    stretched = np.asarray(
        Image.fromarray(anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    )
    end = 2 * threshold if threshold is not None and threshold > 0 else float(stretched.max())
    heat = np.clip(stretched / end, 0, 1) if end > 0 else np.zeros_like(stretched)
    alpha = _OPACITY * np.clip(2 * heat - 0.5, 0, 1)[..., None]
    colour = colormaps["turbo"](0.1 + 0.8 * heat)[..., :3] * 255  # without the near-black ends
    blended = np.where(alpha > 0, np.rint(image * (1 - alpha) + colour * alpha), image).astype(np.uint8)
    if threshold is not None:
        above = stretched > threshold
        line = max(1, round(min(height, width) / 256))
        # a dark edge keeps white readable on white
        blended[above & ~binary_erosion(above, np.ones((3, 3)), 2 * line)] = 0
        blended[above & ~binary_erosion(above, np.ones((3, 3)), line)] = 255
    return blended


def captioned(rgb: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.uint8]:
    """The picture with a dark strip under it that holds a text: the first of `texts` that fits its
    width, else the last.

    Args:
        rgb: (H, W, 3) uint8.
        texts: the longest first.

    Returns:
        (H + strip, W, 3) uint8; the strip is at least 16 pixels high.

    Raises:
        InputError: a wrong shape or dtype.
    """
    _check_image(rgb)
    height, width = rgb.shape[:2]
    size = max(11, round(min(height, width) / 24))
    font = ImageFont.load_default(size)
    text = next((text for text in texts if font.getlength(text) + size <= width), texts[-1])
    strip = Image.new("RGB", (width, round(1.5 * size)), (31, 35, 40))
    ImageDraw.Draw(strip).text((size / 2, strip.height / 2), text, (255, 255, 255), font, anchor="lm")
    return np.concatenate([rgb, np.asarray(strip)])


def save_png(path: str | os.PathLike[str], rgb: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 as a PNG, whole or not at all.

    Raises:
        InputError: a wrong shape or dtype, or the file cannot be written.
    """
    _check_image(rgb)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def evaluation_figure(columns: Sequence[Column], path: str | os.PathLike[str]) -> None:
    """Write the examples as a PNG, one a column: input image, restoration error map, ground truth.

    The error maps share one colour scale, from 0 to the 99.5th percentile of them all. Above a
    column stand its title and its score. The same columns give the same bytes.

    Raises:
        InputError: no columns, an array of a wrong shape or dtype, a NaN or infinite map, or the
            file cannot be written.
    """
    if not columns:
        raise InputError("evaluation figure: no columns were given")
    for column in columns:
        _check_image(column.image)
        _check_map("error_map", column.error_map)
        if column.mask.ndim != 2 or column.mask.dtype != np.bool_:
            raise InputError(f"mask: {column.mask.dtype} {column.mask.shape}, expected bool of two dimensions")
    buffer = io.BytesIO()
    _draw(columns).savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _draw(columns: Sequence[Column]) -> Figure:
    """The figure, placed by hand in inches so that the three rows line up to the pixel."""
    from matplotlib.figure import Figure

    cell_height = _CELL * min(_TALLEST, max(column.image.shape[0] / column.image.shape[1] for column in columns))
    left, right, top, bottom, gap = 0.4, 0.75, 0.5, 0.1, 0.08
    width = left + len(columns) * (_CELL + gap) + right
    height = top + 3 * (cell_height + gap) + bottom
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")

    def place(row: int, x: float, cell_width: float) -> Axes:
        y = bottom + gap + (2 - row) * (cell_height + gap)
        return figure.add_axes((x / width, y / height, cell_width / width, cell_height / height))

    scale = float(np.percentile(np.concatenate([column.error_map.ravel() for column in columns]), 99.5)) or 1.0
    for i, column in enumerate(columns):
        x = left + i * (_CELL + gap)
        ratio = column.image.shape[0] / column.image.shape[1]
        name, font = lettered(column.title)
        title = f"{_fitting(name)}\nscore {column.score:.3g}"
        _show(place(0, x, _CELL), _reduced(column.image), ratio).axes.set_title(title, fontsize=9, **font)
        errors = _show(place(1, x, _CELL), column.error_map, ratio, cmap="inferno", vmin=0, vmax=scale)
        _show(place(2, x, _CELL), column.mask, ratio, cmap="gray", vmin=0, vmax=1)
    for row, label in enumerate(("input image", "restoration error map", "ground truth")):
        y = bottom + gap + (2 - row) * (cell_height + gap) + cell_height / 2
        figure.text(left / 2 / width, y / height, label, fontsize=9, rotation=90, ha="center", va="center")
    bar = figure.colorbar(errors, cax=place(1, width - right, 0.1), extend="max", format="%.2g")
    bar.ax.tick_params(labelsize=7)
    return figure


def _fitting(name: str) -> str:
    """What fits over a column of a name; Chinese, Japanese and Korean characters are wide."""
    widths = itertools.accumulate(1 + (unicodedata.east_asian_width(character) in "WF") for character in name)
    shown = sum(width <= _LONGEST for width in widths)
    return name if shown == len(name) else f"{name[: shown - 1]}…"


def _show(axis: Axes, picture: NDArray[Any], ratio: float, **options: Any) -> AxesImage:
    """`picture` without ticks in a box of height/width `ratio`, whatever the shape of its array."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_box_aspect(ratio)
    return axis.imshow(picture, aspect="auto", **options)


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Averaged over blocks until it is small enough to draw on, which takes 80 bytes a pixel."""
    height, width = image.shape[:2]
    factor = next(factor for factor in itertools.count(1) if -(-height // factor) * -(-width // factor) <= _MOST_PIXELS)
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _check_image(image: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(f"image: {image.dtype} {image.shape}, expected uint8 (H, W, 3)")


def _check_map(name: str, values: NDArray[Any]) -> None:
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating) or values.size == 0:
        raise InputError(f"{name}: {values.dtype} {values.shape}, expected float32 of two dimensions")
    if not np.isfinite(values).all():
        raise InputError(f"{name}: has a NaN or infinite value, expected finite numbers")
