"""What passes and settings cost, and how far the backends' scores lie apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sprfast.backends import registry
from sprfast.bench.accuracy import summary
from sprfast.bench.accuracy.passes import Floats, Passes, scored
from sprfast.bench.accuracy.rows import ROWS, StudyRow
from sprfast.bench.core import named_settings
from sprfast.config import PUBLISHED, Level, Schedule
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import Predictor
from sprfast.errors import BackendError
from sprfast.evaluation import metrics
from sprfast.formats.model import Model
from sprfast.method.scoring_mode import ScoringMode

COMPARED = registry.NAMES  # whose scores are held against eager's, where they can run
_TOO_SLOW = "needs a CUDA device; Triton's interpreter is too slow for whole categories"


def times(
    model: Model, test: Floats, rows: Sequence[StudyRow], backend: str, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Time from input to verdict for each number of passes and each of the model's settings.

    Args:
        model: with its settings.
        test: (m, 3, H, W) inputs.
        rows: whose numbers of passes are measured.
        seconds: as of `named_settings.times`.

    Returns:
        `passes` by number and `settings` by name, each as `named_settings.times` has it.
    """
    predictors: dict[str, Predictor] = {}
    for passes in sorted({row.schedule.draws for row in rows}):
        of_passes = dataclasses.replace(model, scoring_mode=ScoringMode(Schedule((Level(1e-3, passes),))))
        predictors[f"passes {passes}"] = Engine(of_passes, backend, device)
    for name in (PUBLISHED, *model.scoring_modes):
        predictors[f"settings {name}"] = Engine(model.using(name), backend, device)
    document: dict[str, Any] = {"threads": torch.get_num_threads(), "passes": {}, "settings": {}}
    for key, found in named_settings.times(predictors, test, device, seconds, f"settings {PUBLISHED}").items():
        kind, _, name = key.partition(" ")
        document[kind][name] = found
    return document


def backends_apart(
    model: Model, test: Floats, labels: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_] | None, device: torch.device
) -> list[dict[str, Any]]:
    """AUROC of the published setting by every backend that can run here, and how far each lies from
    eager's.
    """
    found: list[dict[str, Any]] = []
    eager: dict[str, float | None] = {}
    for name in sorted(COMPARED, key=lambda each: each != "eager"):
        slow = name in ("triton", "cuda_graph") and device.type != "cuda"
        reason = _TOO_SLOW if slow else registry.unavailable(name)
        if reason:
            found.append({"backend": name, "reason": reason})
            continue
        try:
            errors = Passes(model, {"test": test}, name, device).error_maps(ROWS[0], "test")
        except BackendError as error:  # of a backend that is here, but not for this device
            found.append({"backend": name, "reason": str(error)})
            continue
        scores, maps = scored(errors, ScoringMode(ROWS[0].schedule))
        row = metrics.evaluate(scores, labels, maps, masks)
        values = {key: row[key].value for key in ("image_AUROC", "pixel_AUROC")}
        eager = eager or values
        apart = {key: summary.less(values[key], eager[key]) for key in values}
        found.append({"backend": name, **values, "from_eager": apart})
    return found
