"""Figures over several models: the mean, its standard error, and the difference from the published
setting, model by model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sprfast.evaluation import metrics
from sprfast.evaluation.metrics import Metric

Metrics = dict[str, Metric]


def over_models(of_row: Sequence[Metrics], published: Sequence[Metrics]) -> dict[str, Any]:
    """Each metric of a way of scoring.

    Args:
        of_row: one set a model.
        published: those of the published setting on the same models.

    Returns:
        `metrics` and `difference` (from the published setting, paired by model), each metric as
        `spread` has it, or null where it is undefined.
    """
    differences = {
        key: [less(row[key].value, base[key].value) for row, base in zip(of_row, published, strict=True)]
        for key in metrics.KEYS
    }
    return {"metrics": means(of_row), "difference": {key: _defined(values) for key, values in differences.items()}}


def means(of_models: Sequence[Metrics]) -> dict[str, dict[str, Any] | None]:
    """Each metric over the models as `spread` has it, null where it is undefined for one."""
    return {key: _defined([each[key].value for each in of_models]) for key in metrics.KEYS}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error of the mean (null for a single value), and the values themselves."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "values": [float(value) for value in values]}


def less(value: float | None, other: float | None) -> float | None:
    """`value` less `other`; None where one of them is."""
    return None if value is None or other is None else value - other


def _defined(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None
