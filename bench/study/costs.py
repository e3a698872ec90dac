"""What passes and settings cost, in turns, and how far the backends' scores lie apart."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sprfast import backends, engine, images, metrics
from sprfast.bench import timing
from sprfast.bench.study.passes import Floats, Passes
from sprfast.bench.study.rows import ROWS
from sprfast.config import Level, Schedule
from sprfast.model_file import Model
from sprfast.prediction import MAX_BATCH, Predictor
from sprfast.setting import PUBLISHED
from sprfast.smoothing import anomaly_map

ROUNDS = 5  # at least


def times(model: Model, test: Floats, backend: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Time from a network input to a verdict, for each number of passes and for each of the model's settings.

    Args:
        model: with its settings.
        test: (m, 3, H, W) inputs, which a call takes in turn.
        seconds: for calls of one image; as much again for calls of `MAX_BATCH`.

    Returns:
        `passes` by number and `settings` by name: `ms` of a call of one image, `images_per_s` of calls of `MAX_BATCH`, and
        `speedup`, the median of ratios within a round of the published setting's time in calls of `MAX_BATCH`.
    """
    predictors: dict[str, Predictor] = {}
    for passes in sorted({row.passes for row in ROWS}):
        of_passes = dataclasses.replace(model, schedule=Schedule((Level(1e-3, passes),)))
        predictors[f"passes {passes}"] = engine.Engine(of_passes, backend, device)
    for name in (PUBLISHED, *model.settings, *model.cascades):
        predictors[f"settings {name}"] = engine.predictor(model, backend, str(device), setting=name)
    prepared = [images.Image(each, (each.shape[1], each.shape[2])) for each in test]
    measured = {count: _rounds(predictors, prepared, count, device, seconds) for count in (1, MAX_BATCH)}
    document: dict[str, Any] = {"backend": backend, "threads": torch.get_num_threads(), "passes": {}, "settings": {}}
    base = f"settings {PUBLISHED}"
    for key in predictors:
        kind, _, name = key.partition(" ")
        document[kind][name] = {
            "ms": timing.spread([1e3 * each[key] for each in measured[1]]),
            "images_per_s": timing.spread([MAX_BATCH / each[key] for each in measured[MAX_BATCH]]),
            "speedup": timing.ratio(measured[MAX_BATCH], base, key),
        }
    return document


def backends_apart(
    model: Model, test: Floats, labels: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_] | None, device: torch.device
) -> list[dict[str, Any]]:
    """AUROC of the published setting by every backend that can run here, and how far each lies from eager's."""
    found: list[dict[str, Any]] = []
    eager: dict[str, float | None] = {}
    for name in sorted(backends.NAMES, key=lambda each: each != "eager"):
        if reason := _reason(name, device):
            found.append({"backend": name, "reason": reason})
            continue
        maps = np.stack([anomaly_map(each) for each in Passes(model, {"test": test}, name, device).error_maps(ROWS[0], "test", (1.0,))])
        row = metrics.evaluate(maps.max(axis=(1, 2)), labels, maps, masks)
        values = {key: row[key].value for key in ("image_AUROC", "pixel_AUROC")}
        eager = eager or values
        found.append({"backend": name, **values, "from_eager": {key: _apart(values[key], eager[key]) for key in values}})
    return found


def _reason(name: str, device: torch.device) -> str | None:
    """Why a backend is not compared."""
    if name in ("triton", "cuda_graph") and device.type != "cuda":
        return "needs a CUDA device; Triton's interpreter is too slow for whole categories"
    return backends.unavailable(name)


def _apart(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _rounds(
    predictors: dict[str, Predictor], prepared: list[images.Image], count: int, device: torch.device, seconds: float
) -> list[dict[str, float]]:
    """Seconds of a call of `count` images by each predictor, round by round; all get the same images."""

    def call(predictor: Predictor, turn: int) -> object:
        first = turn * count
        return predictor.score([prepared[(first + index) % len(prepared)] for index in range(count)])

    calls = {key: functools.partial(call, predictor) for key, predictor in predictors.items()}
    settle = {key: functools.partial(call, predictor, 0) for key, predictor in predictors.items()}
    return list(timing.rounds(calls, device, seconds, ROUNDS, settle=settle))
