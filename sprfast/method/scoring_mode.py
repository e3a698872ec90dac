"""The scoring mode: how the passes of a network become a score, a map and a verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

from sprfast.config import Schedule, checked
from sprfast.errors import InputError
from sprfast.method.error_field import ErrorField, Map
from sprfast.method.threshold import MapThreshold, Threshold

_PUBLISHED_SCHEDULE = Schedule()


def refuse_gone(name: str) -> None:
    """Raise InputError where a mode of this name was in earlier versions and is not in this one."""
    if name == "cascade":
        raise InputError("setting 'cascade': this mode is gone; use 'single' or 'published' instead")


@dataclasses.dataclass(frozen=True)
class ScoringMode:
    """Sigma levels, error field and thresholds: what scoring needs beside the network."""

    schedule: Schedule = _PUBLISHED_SCHEDULE
    error_field: ErrorField | None = None  # None: the score is the maximum of the anomaly map
    threshold: Threshold | None = None  # on pred_score; None: not calibrated, no image passes
    # on the pixels of the anomaly map; None: `threshold`, where there is no error field
    map_threshold: MapThreshold | None = None

    def score(self, errors: Map, anomalies: Map) -> float:
        """pred_score of an image, from its error map (H, W) and its anomaly map (256, 256); NaN
        where one of them is.
        """
        return self.error_field.score(errors) if self.error_field else float(anomalies.max())

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
        return cls(checked("schedule", Schedule, document.get("schedule")), given.pop("field", None), **given)
