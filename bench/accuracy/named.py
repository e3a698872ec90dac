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
from sprfast.method import error_field, threshold
from sprfast.method.anomaly_map import anomaly_map
from sprfast.method.scoring_mode import ScoringMode


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What a setting makes of the images."""

    good: Floats  # (n,) scores of those that are fitted on
    test: Floats  # (m,)
    maps: Floats  # (m, 256, 256)
    good_maps: Floats  # (n, 256, 256)


def measure(
    passes: Passes, labels: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_] | None
) -> dict[str, dict[str, Any]]:
    """Figures of every named setting for one model.

    Args:
        passes: over the sets "good" and "test".
        labels, masks: of the test images.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in _rows():
        each = _scored(passes, row)
        found[row.name] = {
            "metrics": metrics.evaluate(each.test, labels, each.maps, masks),
            "passes": float(row.passes),
            **_promises(each, labels, fitted=row.field),
            "divided": _divided(passes, row, labels, masks),
        }
    return found


def over_models(found: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What `measure` found for each model, put together."""
    published = [each[PUBLISHED]["metrics"] for each in found]
    return {name: _together([each[name] for each in found], published) for name in found[0]}


def model_with_settings(model: Model, passes: Passes) -> Model:
    """The model with every named setting in it, thresholds 1: for the measurement of times."""
    one = threshold.manual(1.0)
    modes = {row.name: ScoringMode(row.schedule, _field(passes, row), one) for row in _rows() if row.name != PUBLISHED}
    published = ScoringMode(ROWS[0].schedule, threshold=one)  # whatever the model has under this name
    return dataclasses.replace(model, scoring_mode=published, scoring_modes=modes)


def _rows() -> tuple[StudyRow, ...]:
    others = (StudyRow(name, schedule, field) for name, (schedule, field) in calibration.SETTINGS.items())
    return (ROWS[0], *others)


def _field(passes: Passes, row: StudyRow) -> error_field.ErrorField | None:
    return error_field.fit(passes.error_maps(row, "good", passes.weights(row, "good"))) if row.field else None


def _scored(passes: Passes, row: StudyRow) -> Scored:
    setting = ScoringMode(row.schedule, _field(passes, row))
    weights = passes.weights(row, "good")
    good, test = (scored(passes.error_maps(row, of, weights), setting) for of in ("good", "test"))
    return Scored(good[0], test[0], test[1], good[1])


def _promises(of_setting: Scored, labels: npt.NDArray[np.bool_], *, fitted: bool) -> dict[str, Any]:
    """What thresholds keep on the good test images; those that a score was `fitted` on cannot be
    calibrated on too.
    """
    scores, maps = of_setting.test[~labels], of_setting.maps[~labels]
    of_scores = None if fitted else of_setting.good
    return {
        "images": [promises.of_images(scores, rate, of_scores) for rate in promises.RATES],
        "maps": [promises.of_maps(maps, rate, of_setting.good_maps) for rate in promises.RATES],
    }


def _divided(
    passes: Passes, row: StudyRow, labels: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_] | None
) -> dict[str, float | None] | None:
    """pixel_AUROC of what a setting with a field does not show: the maps divided by the field, and
    the field itself as every map.
    """
    field = _field(passes, row)
    if field is None:
        return None
    errors = passes.error_maps(row, "test", passes.weights(row, "good"))
    alone = np.broadcast_to(anomaly_map(field.expected), (len(errors), 256, 256))
    divided = np.stack([anomaly_map(each / field.expected) for each in errors])
    of_maps = {"maps": divided, "field_alone": alone}
    return {
        name: metrics.evaluate(maps.max(axis=(1, 2)), labels, maps, masks)["pixel_AUROC"].value
        for name, maps in of_maps.items()
    }


def _together(found: Sequence[dict[str, Any]], published: Sequence[summary.Metrics]) -> dict[str, Any]:
    document = summary.over_models([each["metrics"] for each in found], published)
    document["passes"] = summary.spread([each["passes"] for each in found])
    for key in ("images", "maps"):
        document[key] = [[each[key][index] for each in found] for index in range(len(found[0][key]))]
    if found[0]["divided"] is not None:
        document["divided"] = [each["divided"] for each in found]
    return document
