"""What each setting of a model costs, from a network's input to a verdict, all in turns and in one
run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Column, Table

from sprfast.bench.core import timing
from sprfast.config import PUBLISHED
from sprfast.data import images
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import MAX_BATCH, Predictor
from sprfast.formats.model import Model
from sprfast.system import environment

SCHEMA_VERSION = 1
ROUNDS = 5  # at least
INPUTS = 2 * MAX_BATCH  # random images


def measure(model: Model, backend: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Times of the published setting and of all that the model file holds beside it, by one
    backend, on random images; `seconds` as in `times`.

    Returns:
        The report, plain values: `settings` as `times` has them, each with `error`, the relative
        RMS error of the probe image's error map against the definition.

    Raises:
        BackendError: the backend cannot run here, or a setting computes wrong maps.
    """
    names = (PUBLISHED, *model.scoring_modes)
    predictors = {name: Engine(model.using(name), backend, device) for name in names}
    errors = {name: predictor.self_test() for name, predictor in predictors.items()}
    height, width = predictors[PUBLISHED].input_size
    random = np.random.default_rng(0).uniform(-1, 1, (INPUTS, 3, height, width)).astype(np.float32)
    found = times(predictors, random, device, seconds, PUBLISHED)
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "model": model.sha256,
        "input": {"height": height, "width": width, "images": "uniform random in [-1, 1]"},
        "backend": predictors[PUBLISHED].backend,
        "threads": torch.get_num_threads(),
        "settings": {name: {**found[name], "error": errors[name]} for name in names},
    }


def times(
    predictors: Mapping[str, Predictor], inputs: np.ndarray, device: torch.device, seconds: float, base: str
) -> dict[str, dict[str, Any]]:
    """Time from a network input to a verdict by each predictor.

    Args:
        predictors: by name; they take turns.
        inputs: (n, 3, H, W) float32, which a call takes in turn, all predictors the same.
        seconds: for calls of one image; as much again for calls of `MAX_BATCH`.
        base: name of the predictor that ratios are taken over.

    Returns:
        For each name `ms` of a call of one image, `passes` of the network an image, `images_per_s`
        of calls of `MAX_BATCH`, and `speedup`, the ratios within each round of the base's time in
        calls of `MAX_BATCH`.
    """
    prepared = [images.Image(each, (each.shape[1], each.shape[2])) for each in inputs]
    passes = {name: [each.passes for each in predictor.score(prepared)] for name, predictor in predictors.items()}
    alone, together = (_rounds(predictors, prepared, count, device, seconds) for count in (1, MAX_BATCH))
    return {
        name: {
            "passes": float(np.mean(passes[name])),
            "ms": timing.spread([1e3 * each[name] for each in alone]),
            "images_per_s": timing.spread([MAX_BATCH / each[name] for each in together]),
            "speedup": timing.ratio(together, base, name),
        }
        for name in predictors
    }


def table(report: Mapping[str, Any]) -> Table:
    """The report for a terminal; fits 80 columns."""
    size = "{height}x{width}".format(**report["input"])
    title = f"{size}, {report['backend']}, {report['threads']} threads: from network input to verdict"
    headings = ("passes", "ms", "images/s", "x published (min-max)", "relative error")
    figures = (Column(heading, justify="right") for heading in headings)
    table = Table("setting", *figures, box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name, found in report["settings"].items():
        cells = (f"{found['passes']:.2f}", f"{found['ms']['median']:.1f}", f"{found['images_per_s']['median']:.1f}")
        ratio = "{median:.2f} ({min:.2f}-{max:.2f})".format(**found["speedup"])
        table.add_row(name, *cells, ratio, f"{found['error']:.1e}")
    return table


def _rounds(
    predictors: Mapping[str, Predictor],
    prepared: Sequence[images.Image],
    count: int,
    device: torch.device,
    seconds: float,
) -> list[dict[str, float]]:
    """Seconds of a call of `count` images by each predictor, round by round; all get the same
    images.
    """

    def call(predictor: Predictor, turn: int) -> object:
        return predictor.score([prepared[(turn * count + index) % len(prepared)] for index in range(count)])

    calls = {name: functools.partial(call, predictor) for name, predictor in predictors.items()}
    settle = {name: functools.partial(call, predictor, 0) for name, predictor in predictors.items()}
    return list(timing.rounds(calls, device, seconds, ROUNDS, settle=settle))
