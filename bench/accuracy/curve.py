"""Accuracy against minutes of training: how far each recipe gets in how long, by the published
setting.

Every recipe lowers its learning rate towards the end of the time that it is given, so that a point
is a training of its own and not a stop on the way of a longer one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sprfast.bench.accuracy import report, summary
from sprfast.bench.accuracy.measure import SCHEMA_VERSION
from sprfast.data.datasets import Category
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.evaluation.evaluate import evaluate
from sprfast.formats.model import Model
from sprfast.method.scoring_mode import ScoringMode
from sprfast.system import environment
from sprfast.training.recipes import RECIPES, trained_by


def measure(
    models: Sequence[tuple[Path, Model]],
    category: Category,
    *,
    backend: str,
    device: torch.device,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Evaluate trainings of several lengths on the category's test images.

    Args:
        models: trained with --time-limit by one of the recipes, taking images in one way; those of
            one recipe and one limit, such as trainings with several seeds, are one point.
        category: with labelled test images.
        backend, device: what scores.
        on_progress: called with the number of models evaluated, their total, and the file at hand.

    Returns:
        The report, plain values: `points`, each with its `recipe`, `minutes` (of the limit), what
        the trainings did (`steps`, `images_per_s`, `peak_memory_mib`) and `metrics`, all of them as
        `summary.spread` has them.

    Raises:
        InputError: a model was trained in another way, or an image cannot be used.
        BackendError: the backend cannot run here.
    """
    if len({(repr(model.preprocessing), repr(model.network)) for _, model in models}) != 1:
        raise InputError(
            "study curve: the models have different networks or take images in different ways; give those of one size"
        )
    of_points: dict[tuple[str, float], list[tuple[Path, Model]]] = {}
    for path, model in models:
        of_points.setdefault(_trained(path, model), []).append((path, model))
    points, done = [], 0
    for recipe, seconds in sorted(of_points, key=lambda point: (list(RECIPES).index(point[0]), point[1])):
        alike, found = of_points[recipe, seconds], []
        for path, model in alike:
            on_progress(done, len(models), path.name)
            engine = Engine(dataclasses.replace(model, scoring_mode=ScoringMode()), backend, device)
            found.append(evaluate(engine, category).metrics)
            done += 1
        trained = [model.provenance for _, model in alike]
        speeds = [each["steps"] * each["training"]["batch_size"] / each["seconds"] for each in trained]
        points.append(
            {
                "recipe": recipe,
                "minutes": seconds / 60,
                "files": [{"file": path.name, "sha256": model.sha256} for path, model in alike],
                "steps": summary.spread([each["steps"] for each in trained]),
                "images_per_s": summary.spread(speeds),
                "peak_memory_mib": summary.spread([each["peak_memory_mib"] for each in trained]),
                "metrics": summary.means(found),
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "category": category.name,
        "preprocessing": models[0][1].preprocessing.to_json(),
        "backend": backend,
        "device": str(device),
        "points": points,
    }


def table(curve: Mapping[str, Any]) -> Table:
    """A line a point; fits 110 columns."""
    title = f"{report.subject(curve)}, scored by the published setting, in percent"
    headings = ("recipe", "minutes", "models", "steps", "images/s", "MiB", *report.HEADINGS)
    drawn = report.grid(*headings, title=title, tight=True)
    for point in curve["points"]:
        steps, speed, memory = (point[key]["mean"] for key in ("steps", "images_per_s", "peak_memory_mib"))
        trained = (str(len(point["files"])), f"{steps:.0f}", f"{speed:.1f}", f"{memory:.0f}")
        drawn.add_row(point["recipe"], f"{point['minutes']:g}", *trained, *report.percents(point["metrics"]))
    return drawn


def _trained(path: Path, model: Model) -> tuple[str, float]:
    """The recipe and the time limit, in seconds, of a model's training."""
    recipe = trained_by(model.provenance)
    if recipe is None:
        raise InputError(f"{path}: was not trained by one of the recipes ({', '.join(RECIPES)})")
    seconds: float = model.provenance["training"]["time_limit"]
    if not seconds:
        raise InputError(f"{path}: was trained for a number of steps; a curve is of trainings with --time-limit")
    return recipe, seconds
