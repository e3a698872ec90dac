"""The scoring mode: how the passes of a network become a score, a map and a verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

from sprfast.config import Schedule, checked
from sprfast.errors import InputError
from sprfast.method import tiles
from sprfast.method.anomaly_map import MAX_WINDOW
from sprfast.method.error_field import ErrorField, Map
from sprfast.method.threshold import MapThreshold, Threshold

_PUBLISHED_SCHEDULE = Schedule()


def refuse_gone(name: str) -> None:
    """Raise InputError where a mode of this name was in earlier versions and is not in this one."""
    if name == "cascade":
        raise InputError("setting 'cascade': this mode is gone; use 'single' or 'published' instead")


@dataclasses.dataclass(frozen=True)
class ScoringMode:
    """Sigma levels, window, error field and thresholds: what scoring needs beside the network.

    Raises:
        InputError: the window is not an integer from 1 to `MAX_WINDOW`, or the tile not one from
            `tiles.MIN_TILE` to `tiles.MAX_TILE`, or without a window.
    """

    schedule: Schedule = _PUBLISHED_SCHEDULE
    error_field: ErrorField | None = None  # None: the score is the maximum of the anomaly map
    threshold: Threshold | None = None  # on pred_score; None: not calibrated, no image passes
    # on the pixels of the anomaly map; None: `threshold`, where there is no error field
    map_threshold: MapThreshold | None = None
    # network pixels, both sides of what the anomaly map averages, see `method.anomaly_map`; None:
    # 31 of its 256 places
    window: int | None = None
    # network pixels, both sides of the tiles of an image with a longer side, see `method.tiles`;
    # None: every image goes through the network as a whole
    tile: int | None = None

    def __post_init__(self) -> None:
        limits = {"window": (1, MAX_WINDOW), "tile": (tiles.MIN_TILE, tiles.MAX_TILE)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise InputError(f"{name}: {value!r} is not allowed, expected an integer from {least} to {most}")
        if self.tile is not None and self.window is None:
            raise InputError(
                f"tile: {self.tile} needs a window too, since 31 of 256 places are too many of a large image"
            )

    def score(self, errors: Map, anomalies: Map) -> float:
        """pred_score of an image, from its error map (H, W) and its anomaly map (256, 256); NaN
        where one of them is.
        """
        return self.error_field.score(errors, self.window) if self.error_field else float(anomalies.max())

    @property
    def map_value(self) -> float | None:
        """Above which a pixel of the anomaly map is marked; None: nothing says so."""
        chosen = self.map_threshold or (self.threshold if self.error_field is None else None)
        return chosen.value if chosen else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes it again."""
        return {
            "schedule": self.schedule.to_json(),
            "field": self.error_field.to_json() if self.error_field else None,
            "threshold": self.threshold.to_json() if self.threshold else None,
            "map_threshold": self.map_threshold.to_json() if self.map_threshold else None,
            "window": self.window,
            "tile": self.tile,
        }

    def summary(self) -> dict[str, Any]:
        """Plain values to be looked at: `to_json` without the pixels of the error field and the
        scores that the threshold is from.
        """
        field = self.error_field
        shown = {"shape": list(field.size), "samples": field.samples} if field else None
        return self.to_json() | {"field": shown, "threshold": self.threshold.summary() if self.threshold else None}

    @classmethod
    def from_json(cls, document: Any) -> ScoringMode:
        """The scoring mode of `to_json`; what is absent is None.

        Raises:
            InputError: it is not an object, or a value in it is not allowed; the message names it.
        """
        if not isinstance(document, dict):
            raise InputError(f"setting: expected an object, got {type(document).__name__}")
        parts = {"field": ErrorField, "threshold": Threshold, "map_threshold": MapThreshold}
        present = {name: kind for name, kind in parts.items() if document.get(name) is not None}
        given = {name: checked(name, kind, document[name]) for name, kind in present.items()}
        schedule = checked("schedule", Schedule, document.get("schedule"))
        return cls(
            schedule, given.pop("field", None), **given, window=document.get("window"), tile=document.get("tile")
        )
