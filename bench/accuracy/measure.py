"""The study of one category: every way of scoring, on every model that was trained for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sprfast.bench.accuracy import costs, named, summary
from sprfast.bench.accuracy.passes import Floats, Passes, scored
from sprfast.bench.accuracy.rows import StudyRow
from sprfast.config import PUBLISHED, Preprocessing
from sprfast.data import datasets, images
from sprfast.data.datasets import Category
from sprfast.errors import InputError
from sprfast.evaluation import metrics
from sprfast.formats import trained_on
from sprfast.formats.model import Model
from sprfast.system import environment

SCHEMA_VERSION = 1
FEWEST = 9  # good images to fit on: what a threshold for a rate of 0.1 takes


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The images of a category as the network takes them, and what is known of them."""

    good: Floats  # (n, 3, H, W), neither trained nor tested on
    test: Floats  # (m, 3, H, W)
    labels: npt.NDArray[np.bool_]  # (m,)
    masks: npt.NDArray[np.bool_] | None  # (m, 256, 256); None: the category has none

    @classmethod
    def load(cls, category: Category, good: Sequence[Path], preprocessing: Preprocessing) -> Images:
        """Decode and resize all of them.

        Raises:
            InputError: there are no test images, an image cannot be read, or they are not of one
                size at the network's input.
        """
        if not category.test:
            raise InputError(f"{category.name}: there are no test images")
        paths = [*good, *(sample.path for sample in category.test)]
        pixels = [images.load_image(path, preprocessing).pixels for path in paths]
        sizes = sorted({each.shape[1:] for each in pixels})
        if len(sizes) != 1:
            raise InputError(f"study: the images are of different sizes at the network's input: {sizes}")
        labels = np.array([bool(sample.label) for sample in category.test])
        masks = None
        if all(sample.mask for sample in category.test if sample.label):
            masks = np.stack(
                [images.load_mask(each.mask) if each.mask else np.zeros((256, 256), bool) for each in category.test]
            )
        return cls(np.stack(pixels[: len(good)]), np.stack(pixels[len(good) :]), labels, masks)


def study(
    models: Sequence[tuple[Path, Model]],
    category: Category,
    good: Sequence[Path] | None,
    *,
    backend: str,
    device: torch.device,
    seconds: float,
    rows: Sequence[StudyRow],
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Accuracy, cost and kept promises of every way of scoring.

    Args:
        models: of one category and one preprocessing, such as trainings with several seeds; figures
            are their mean with its standard error.
        category: with labelled test images.
        good: images to fit on, neither trained nor tested on; None: those that each training held
            back.
        backend, device: what computes the error maps.
        seconds: for the measurement of times.
        rows: the published passes first; the named settings are measured beside them in any case.
        on_progress: called with the number of ways of scoring done, over all models, their total,
            and what is going on.

    Returns:
        The report, plain values: see `summary`.

    Raises:
        InputError: the models do not belong together, there are too few good images to fit on, or
            an image cannot be used.
        BackendError: the backend cannot run here.
    """
    if len({model.network for _, model in models}) != 1:
        raise InputError("study: the models have networks of different sizes; study one at a time")
    if len({repr(model.preprocessing) for _, model in models}) != 1:
        raise InputError(
            "study: the models take images in different ways (size, bit depth, ...); study one size at a time"
        )
    fitted_on = [_to_fit_on(category, model, good) for _, model in models]
    report = _header(models, category, backend, device)
    of_rows: list[dict[str, summary.Metrics]] = []
    settings: list[dict[str, dict[str, Any]]] = []
    total = len(models) * len(rows)
    for index, (path, model) in enumerate(models):
        given = Images.load(category, fitted_on[index], model.preprocessing)
        passes = Passes(model, {"good": given.good, "test": given.test}, backend, device)
        found: dict[str, summary.Metrics] = {}
        for row in rows:
            on_progress(index * len(rows) + len(found), total, f"{path.name}: {row.name}")
            found[row.name] = _metrics(passes, row, given, found)
        of_rows.append(found)
        on_progress((index + 1) * len(rows), total, f"{path.name}: settings")
        settings.append(named.measure(passes, given.labels, given.masks))
        if index == 0:
            report["images"] = {"good": len(given.good), "test": len(given.test), "defective": int(given.labels.sum())}
            # far from 0.5: the images were taken in different light, and a score may follow that
            brightness = metrics.evaluate(given.test.mean(axis=(1, 2, 3)), given.labels, None, None)
            report["brightness_AUROC"] = brightness["image_AUROC"].value
            report["backends"] = costs.backends_apart(model, given.test, given.labels, given.masks, device)
            whole = named.model_with_settings(model, passes)
            report["times"] = costs.times(whole, given.test, rows, backend, device, seconds)
    published = [found[PUBLISHED] for found in of_rows]
    report["rows"] = [
        {**_row(row, report["times"]), **summary.over_models([each[row.name] for each in of_rows], published)}
        for row in rows
    ]
    report["settings"] = named.over_models(settings)
    return report


def _to_fit_on(category: Category, model: Model, good: Sequence[Path] | None) -> list[Path]:
    """The good images given, or else the training images that the model's provenance says it was
    not trained on.
    """
    by_name = {path.name: path for path in category.train}
    names = model.provenance.get("held_back", [])
    if good is None and (gone := [name for name in names if name not in by_name]):
        raise InputError(
            f"{category.name}: {gone[0]}, which the model's training held back, is not among the training images"
        )
    chosen = [by_name[name] for name in names] if good is None else list(good)
    if good is None and trained_on.HELD_BACK in model.provenance:  # files of earlier versions have names only
        known = trained_on.among(model.provenance, map(datasets.digest, category.train), trained_on.HELD_BACK)
        chosen = [path for path, held in zip(category.train, known, strict=True) if held]
    if len(chosen) < FEWEST:
        raise InputError(
            f"{category.name}: at least {FEWEST} good images are needed to fit on, got {len(chosen)}; "
            f"train with --hold-back, or give --fit DIR"
        )
    return chosen


def _metrics(passes: Passes, row: StudyRow, given: Images, before: Mapping[str, summary.Metrics]) -> summary.Metrics:
    """The metrics of a row; those of its maps, which take long, are taken over from the row without
    the field.
    """
    scores, maps = scored(passes.error_maps(row, "test"), passes.scoring_mode(row))
    plain = before.get(row.name.removesuffix(", field")) if row.field else None
    if plain is None:
        return metrics.evaluate(scores, given.labels, maps, given.masks)
    of_images = metrics.evaluate(scores, given.labels, None, None)
    return {key: plain[key] if key in ("pixel_AUROC", "AUPRO") else of_images[key] for key in metrics.KEYS}


def _row(row: StudyRow, times: Mapping[str, Any]) -> dict[str, Any]:
    passes = row.schedule.draws
    flags = {key: getattr(row, key) for key in ("field", "independent", "balanced")}
    ms = times["passes"][str(passes)]["ms"]["median"]
    return {"name": row.name, "passes": passes, **flags, "schedule": row.schedule.to_json(), "ms": ms}


def _header(
    models: Sequence[tuple[Path, Model]], category: Category, backend: str, device: torch.device
) -> dict[str, Any]:
    first = models[0][1]
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "category": category.name,
        "network": first.network.to_json(),
        "preprocessing": first.preprocessing.to_json(),
        "backend": backend,
        "device": str(device),
        "models": [_trained(path, model) for path, model in models],
    }


def _trained(path: Path, model: Model) -> dict[str, Any]:
    """What a model is, without the images held back and where they were."""
    provenance = {**trained_on.summary(model.provenance), "held_back": len(model.provenance.get("held_back", []))}
    provenance.pop("data", None)
    return {"file": path.name, "sha256": model.sha256, "noise_seed": model.noise_seed, "provenance": provenance}
