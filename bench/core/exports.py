"""Exports of the model as candidates of a bench: beside speed and error what each costs in flipped
verdicts and, on labelled images, in AUROC.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table
from torch import Tensor

from sprfast.bench.core import tables
from sprfast.bench.core.peers import Candidate, Maps
from sprfast.bench.core.sweeps import METRICS
from sprfast.data.datasets import Category
from sprfast.data.images import display_name
from sprfast.deploy import export
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import Predictor
from sprfast.engine.runner import Runner
from sprfast.errors import InputError
from sprfast.evaluation.evaluate import Evaluation, evaluate
from sprfast.formats import export as export_file
from sprfast.formats.export_metadata import tolerance
from sprfast.formats.model import Model

IMAGES = 8  # whose verdicts are compared with the definition's, at most
OWN = "the model itself"  # name of the first row
HEADINGS = (
    "score\nerror",
    "flips",
    *(part for name in METRICS for part in (f"{name.replace('_', chr(10))} %", "change")),
    "verdicts\nchanged",
)


@contextlib.contextmanager
def opened(model: Model, paths: Sequence[Path], device: torch.device) -> Iterator[dict[str, Runner]]:
    """A runner for each export of this model, by the name of its file; closed in the end.

    Raises:
        ModelFileError: a file is not an export, or damaged.
        InputError: it was made from another model, or two files have one name.
        BackendError: it cannot run here.
    """
    with contextlib.ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for path in paths:
            name = display_name(path.name)
            if name in runners:
                raise InputError(f"--export {path}: another export has this file name; give each one its own")
            runners[name] = _runner(model, path, device)
            stack.callback(runners[name].close)
        yield runners


def candidate(name: str, runner: Runner) -> Candidate:
    """The export as a candidate; on a CPU its graph multiplies in float32 whatever it stores."""
    metadata = runner.metadata
    stored = "/".join(filter(None, (metadata.quantization, metadata.precision)))

    def build(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
        metadata.require_size(tuple(noise[0].shape[-2:]), f"--export {name}: images of the bench")

        def maps(x: Tensor) -> tuple[Tensor, Tensor]:
            errors, anomaly_maps = runner.maps(x.cpu().numpy())
            return torch.from_numpy(errors).to(device), torch.from_numpy(anomaly_maps).to(device)

        return maps

    return Candidate(
        name,
        f"export by sprfast, stored as {stored}, by {runner.backend}",
        build,
        "float32" if str(runner.device) == "cpu" else metadata.precision,
        own_tolerance=tolerance(metadata.precision, metadata.quantization),
    )


def accuracy(
    model: Model,
    runners: Mapping[str, Runner],
    paths: Sequence[Path],
    labelled: Category | None,
    on_progress: Callable[[str], None],
    into: list[dict[str, Any]],
) -> None:
    """Append a row for the model by backend auto, then one for each export, plain JSON values.

    `score_relative_error` is the largest among up to `IMAGES` of `paths`, `flips` how many of their
    verdicts differ from the definition's; a metric's `_change` is from the first row's, and
    `verdict_changes` counts labelled images whose verdict is not the first row's. What is not known
    is null.

    Raises:
        InputError: an image cannot be used, or an export takes images of another size.
        BackendError: a backend failed.
    """
    chosen = paths[:: math.ceil(len(paths) / IMAGES)] if paths else []
    predictors: dict[str, Predictor] = {OWN: Engine(model), **runners}
    first: Evaluation | None = None
    for name, predictor in predictors.items():
        on_progress(f"exports: {name}")
        found = evaluate(predictor, labelled) if labelled else None
        first = first or found
        compared: dict[str, Any] = {"score_relative_error": None, "flips": None, "passed": True}
        if chosen and isinstance(predictor, Runner):
            checked = export.check(model, predictor, chosen).to_json()
            _, score, _, flips = (row["value"] for row in checked["rows"])
            compared = {"score_relative_error": score, "flips": flips, "passed": checked["passed"]}
        into.append({"name": name, **compared, **_changes(found, first)})


def cells(row: Mapping[str, Any]) -> list[str | None]:
    """The text of a row below `HEADINGS`; None for what is not known."""
    metrics = [pair for name in METRICS for pair in ((name, ".2%"), (f"{name}_change", "+.2%"))]
    specs = (("score_relative_error", ".1e"), ("flips", ".0f"), *metrics, ("verdict_changes", "d"))
    return [None if row[key] is None else format(row[key], spec).rstrip("%") for key, spec in specs]


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    result = tables.empty(HEADINGS, "exports", first=Column("candidate", overflow="fold"))
    for row in rows:
        result.add_row(row["name"], *(cell or "-" for cell in cells(row)))
    return result


def _runner(model: Model, path: Path, device: torch.device) -> Runner:
    stored = export_file.read(path)
    for what, of_export, of_model in (
        ("weights", stored.metadata.model_sha256, model.sha256),
        ("sigma levels", stored.metadata.schedule, model.schedule),
        ("noise", stored.metadata.noise_seed, model.noise_seed),
    ):
        if of_export != of_model:
            raise InputError(
                f"{path}: was made from another model, its {what} differ; export the model that is given again"
            )
    backend = "tensorrt" if device.type == "cuda" and not stored.folded else "auto"
    return Runner(stored, backend, threads=torch.get_num_threads())


def _changes(found: Evaluation | None, first: Evaluation | None) -> dict[str, float | None]:
    """Metrics on labelled images, their change from the first row's, and how many verdicts are not
    its; null where not defined.
    """
    values: dict[str, float | None] = {}
    for name in METRICS:
        value, before = (None if each is None else each.metrics[name].value for each in (found, first))
        values |= {name: value, f"{name}_change": None if value is None or before is None else value - before}
    if found is None or first is None or found.rejected_good is None or first.rejected_good is None:
        return values | {"verdict_changes": None}
    pairs = zip(found.results, first.results, strict=True)
    return values | {"verdict_changes": sum(ours.verdict is not theirs.verdict for ours, theirs in pairs)}
