"""The named settings of a model: accuracy, passes an image, and whether their thresholds keep what
they promise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.bench.accuracy import promises, summary
from sprfast.bench.accuracy.passes import Floats, Passes, scored
from sprfast.bench.accuracy.rows import ROWS, StudyRow
from sprfast.config import PUBLISHED
from sprfast.evaluation import calibration, metrics
from sprfast.formats.model import Model
from sprfast.method import threshold
from sprfast.method.anomaly_map import anomaly_map
from sprfast.method.error_field import ErrorField

_ROWS = (
    ROWS[0],
    *(
        StudyRow(name, setting.schedule, setting.field, balanced=setting.balanced)
        for name, setting in calibration.SETTINGS.items()
    ),
)


def measure(
    passes: Passes, labels: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_] | None
) -> dict[str, dict[str, Any]]:
    """Figures of every named setting for one model.

    Args:
        passes: over the sets "good" and "test".
        labels, masks: of the test images.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in _ROWS:
        setting = passes.scoring_mode(row)
        errors = passes.error_maps(row, "test")
        scores, maps = scored(errors, setting)
        fit_scores, fit_maps = scored(passes.error_maps(row, "good"), setting)
        # a score is lower on the images that its field or weights were fitted on
        calibration_scores = None if row.field or row.balanced else fit_scores
        found[row.name] = {
            "metrics": metrics.evaluate(scores, labels, maps, masks),
            "passes": float(row.schedule.draws),
            "images": [promises.of_images(scores[~labels], rate, calibration_scores) for rate in promises.RATES],
            "maps": [promises.of_maps(maps[~labels], rate, fit_maps) for rate in promises.RATES],
            "divided": _divided(errors, setting.error_field, labels, masks) if setting.error_field else None,
        }
    return found


def over_models(found: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What `measure` found for each model, put together."""
    published = [each[PUBLISHED]["metrics"] for each in found]
    document: dict[str, Any] = {}
    for name, first in found[0].items():
        of_models = [each[name] for each in found]
        document[name] = summary.over_models([each["metrics"] for each in of_models], published)
        document[name]["passes"] = summary.spread([each["passes"] for each in of_models])
        for key in ("images", "maps"):
            document[name][key] = [list(of_rate) for of_rate in zip(*(each[key] for each in of_models), strict=True)]
        if first["divided"] is not None:
            document[name]["divided"] = [each["divided"] for each in of_models]
    return document


def model_with_settings(model: Model, passes: Passes) -> Model:
    """The model with every named setting in it, thresholds 1: for the measurement of times."""
    one = threshold.manual(1.0)
    modes = {row.name: dataclasses.replace(passes.scoring_mode(row), threshold=one) for row in _ROWS}
    published = modes.pop(PUBLISHED)  # whatever the model has under this name
    return dataclasses.replace(model, scoring_mode=published, scoring_modes=modes)


def _divided(
    errors: Floats, field: ErrorField, labels: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_] | None
) -> dict[str, float | None]:
    """pixel_AUROC of what a setting with a field does not show: the maps divided by the field, and
    the field itself as every map.
    """
    of_maps = {
        "maps": np.stack([anomaly_map(each / field.expected) for each in errors]),
        "field_alone": np.broadcast_to(anomaly_map(field.expected), (len(errors), 256, 256)),
    }
    return {
        name: metrics.evaluate(maps.max(axis=(1, 2)), labels, maps, masks)["pixel_AUROC"].value
        for name, maps in of_maps.items()
    }
