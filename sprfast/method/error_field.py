"""The error field: what error good parts show at each place, which scoring divides by before it
looks for the largest error.

Edges and texture come back less well than flat surface, on good parts too. Divided by what is usual
at its place, an error on flat surface counts for as much as one on an edge. That is right for one
number an image, and wrong for the map: where good parts err most is often where defects are, and
the map would lose that knowledge: `sprfast study` shows how much. So only the score is divided.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.errors import InputError
from sprfast.method.anomaly_map import anomaly_map

Map = npt.NDArray[np.float32]

# added to the field, as a multiple of its average: a place without error on good parts does not
# decide alone
FLOOR = 1.0
BLUR = 5 / 64  # side of the window that the mean is averaged over, as a share of the map's: parts never lie quite alike
MAX_SIDE = 1024  # pixels, which a file can hold


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorField:
    """What error maps are divided by.

    Raises:
        InputError: it is not a map of positive, finite numbers of at most `MAX_SIDE` pixels a side.
    """

    expected: Map  # (H, W) float32, positive, at the network's input
    samples: int  # good images that it was fitted on

    def __post_init__(self) -> None:
        field = self.expected
        if field.ndim != 2 or not 1 <= min(field.shape) <= max(field.shape) <= MAX_SIDE:
            raise InputError(f"error field: shape {field.shape}, expected height and width of at most {MAX_SIDE}")
        if field.dtype != np.float32 or not (np.isfinite(field) & (field > 0)).all():
            raise InputError("error field: expected finite, positive float32 numbers")
        if type(self.samples) is not int or self.samples < 1:
            raise InputError(f"error field: samples {self.samples!r}, expected at least 1")

    __hash__ = None  # type: ignore[assignment]  # as of the array in it

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ErrorField):
            return NotImplemented
        return self.samples == other.samples and np.array_equal(self.expected, other.expected)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the error maps that it belongs to."""
        return self.expected.shape[0], self.expected.shape[1]

    def require_size(self, size: tuple[int, ...], name: str) -> None:
        """Raise InputError, which begins with `name`, where it does not belong to error maps of
        this (height, width).
        """
        if self.size != size:
            got, fitted = ("x".join(map(str, each)) for each in (size, self.size))
            raise InputError(
                f"{name}: {got} pixels (height x width) at the network's input, the error field was fitted at "
                f"{fitted}; calibrate with images of one size, or train with the size policy 'stretch'"
            )

    def score(self, errors: Map, window: int | None = None) -> float:
        """The maximum of the map of errors (H, W), smoothed with the scoring mode's window, divided
        by the field first; NaN where one of them is.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite gets the verdict ERROR
            return float(anomaly_map(errors / self.expected, window).max())

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes it again."""
        content = np.ascontiguousarray(self.expected, "<f4").tobytes()
        return {"shape": list(self.size), "expected": base64.b64encode(content).decode(), "samples": self.samples}

    @classmethod
    def from_json(cls, document: Any) -> ErrorField:
        """The field of `to_json`.

        Raises:
            InputError: it is not one.
        """
        try:
            height, width = document["shape"]
            content = base64.b64decode(document["expected"], validate=True)
            field = np.frombuffer(content, "<f4").reshape(height, width).astype(np.float32)
            samples = document["samples"]
            if field.shape != (height, width):  # numpy takes -1 for whatever is left
                raise ValueError(f"shape {height} x {width}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"error field: expected shape, samples and base64 of float32 numbers ({error})") from error
        return cls(field, samples)


def fit(errors: Iterable[Map]) -> ErrorField:
    """The field of good parts, none of which may have been trained on.

    Args:
        errors: error maps (H, W), float32; one is held at a time.

    Raises:
        InputError: there are none, they are not of one size or not finite, or are 0 throughout.
    """
    from scipy.ndimage import uniform_filter  # type: ignore[import-untyped]

    total, samples = np.zeros((0, 0)), 0
    for each in errors:
        if not samples:
            total = np.zeros(each.shape)
        if each.ndim != 2 or each.shape != total.shape:
            sizes = sorted({total.shape, each.shape})
            raise InputError(f"error field: expected good images of one size at the network's input, got {sizes}")
        total += each
        samples += 1
    if not samples:
        raise InputError("error field: expected at least one good image, got none")
    mean = total / samples
    window = [max(1, round(side * BLUR)) for side in mean.shape]
    expected = uniform_filter(mean, window, mode="nearest") + FLOOR * mean.mean()
    return ErrorField(expected.astype(np.float32), samples)
