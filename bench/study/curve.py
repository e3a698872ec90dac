"""Accuracy against minutes of training: how far each recipe gets in how long, by the published setting.

Both recipes lower their learning rate towards the end of the time they are given, so that every point is a training of its own
and not a stop on the way of a longer one.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sprfast import environment, evaluation, files, metrics
from sprfast.bench.study import report, summary
from sprfast.config import RECIPES, Schedule, TrainingConfig
from sprfast.data import Category
from sprfast.engine import Engine
from sprfast.errors import InputError
from sprfast.model_file import Model

SCHEMA_VERSION = 1
_FREE = ("epochs", "steps", "time_limit", "hold_back", "seed")  # of a training's configuration, what no recipe says
_COLOURS = {"published": "#0b5fa5", "fast": "#c2410c"}


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
        models: trained with --time-limit by one of the recipes, taking images in one way; those of one recipe and one limit, such as
            trainings with several seeds, are one point.
        category: with labelled test images.
        backend, device: what scores.
        on_progress: called with the number of models evaluated, their total, and the file at hand.

    Returns:
        The report, plain values: `points`, each with its `recipe`, `minutes` (of the limit), what the trainings did (`steps`,
        `images_per_s`, `peak_memory_mib`) and `metrics`, all of them as `summary.spread` has them.

    Raises:
        InputError: a model was trained in another way, or an image cannot be used.
        BackendError: the backend cannot run here.
    """
    if len({(repr(model.preprocessing), repr(model.network)) for _, model in models}) != 1:
        raise InputError("study curve: the models have different networks or take images in different ways; give those of one size")
    of_points: dict[tuple[str, float], list[tuple[Path, Model]]] = {}
    for path, model in models:
        of_points.setdefault(_trained(path, model), []).append((path, model))
    points, done = [], 0
    for recipe, seconds in sorted(of_points, key=lambda point: (list(RECIPES).index(point[0]), point[1])):
        alike, found = of_points[recipe, seconds], []
        for path, model in alike:
            on_progress(done, len(models), path.name)
            engine = Engine(dataclasses.replace(model, schedule=Schedule(), threshold=None), backend, device)
            found.append(evaluation.evaluate(engine, category).metrics)
            done += 1
        points.append(
            {
                "recipe": recipe,
                "minutes": seconds / 60,
                "files": [{"file": path.name, "sha256": model.sha256} for path, model in alike],
                "steps": summary.spread([model.provenance["steps"] for _, model in alike]),
                "images_per_s": summary.spread([_images_per_s(model.provenance) for _, model in alike]),
                "peak_memory_mib": summary.spread([model.provenance["peak_memory_mib"] for _, model in alike]),
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
    keys = [key.replace("_AUROC", "\nAUROC") for key in metrics.KEYS]
    size = curve["preprocessing"]["size"]
    title = f"{curve['category']}, {size}x{size}, scored by the published setting, in percent"
    drawn = report.grid("recipe", "minutes", "models", "steps", "images/s", "MiB", *keys, title=title, tight=True)
    for point in curve["points"]:
        trained = [f"{point['steps']['mean']:.0f}", f"{point['images_per_s']['mean']:.1f}", f"{point['peak_memory_mib']['mean']:.0f}"]
        cells = [report.percent(point["metrics"][key]) for key in metrics.KEYS]
        drawn.add_row(point["recipe"], f"{point['minutes']:g}", str(len(point["files"])), *trained, *cells)
    return drawn


def figure(curve: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the picture as a PNG: image and pixel AUROC of each recipe against minutes, with whiskers of one standard error.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10.0, 4.0), dpi=110, facecolor="white")
    for axes, key in zip(drawn.subplots(1, 2), ("image_AUROC", "pixel_AUROC"), strict=True):
        for recipe in RECIPES:
            points = [each for each in curve["points"] if each["recipe"] == recipe and each["metrics"][key]]
            if points:
                minutes = [each["minutes"] for each in points]
                values = [100 * each["metrics"][key]["mean"] for each in points]
                errors = [100 * (each["metrics"][key]["standard_error"] or 0.0) for each in points]
                axes.errorbar(minutes, values, errors, fmt="o-", markersize=4, linewidth=1.2, color=_COLOURS[recipe], label=recipe)
        axes.set_xlabel("minutes of training")
        axes.set_xlim(left=0.0)
        axes.set_title(f"{key}, %", fontsize=10, loc="left")
        axes.grid(color="#e4e7eb")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.containers:
            axes.legend(frameon=False)
    size = curve["preprocessing"]["size"]
    drawn.suptitle(f"{curve['category']}, {size}x{size}, {curve['device']}", fontsize=11, parse_math=False)
    drawn.tight_layout()
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())


def _trained(path: Path, model: Model) -> tuple[str, float]:
    """The recipe and the time limit, in seconds, of a model's training."""
    training = model.provenance.get("training", {})
    for name, changes in RECIPES.items():
        recipe = TrainingConfig(**changes).to_json()
        if training and all(training.get(key) == value for key, value in recipe.items() if key not in _FREE):
            if not training["time_limit"]:
                raise InputError(f"{path}: was trained for a number of steps; a curve is of trainings with --time-limit")
            return name, training["time_limit"]
    raise InputError(f"{path}: was not trained by one of the recipes ({', '.join(RECIPES)})")


def _images_per_s(provenance: Mapping[str, Any]) -> float:
    return float(provenance["steps"] * provenance["training"]["batch_size"] / provenance["seconds"])
