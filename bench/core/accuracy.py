"""What candidates in less than float32, and exports, cost in accuracy: errors of scores, flipped
verdicts and, on labelled images, AUROC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from sprfast.bench.core import tables
from sprfast.bench.core.sweeps import METRICS
from sprfast.data.datasets import Category
from sprfast.deploy import export
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import Predictor
from sprfast.engine.runner import Runner
from sprfast.errors import InputError
from sprfast.evaluation import parity
from sprfast.evaluation.evaluate import Evaluation, evaluate
from sprfast.formats.model import Model

IMAGES = 8  # whose verdicts are compared with the definition's, at most
OWN = "the model"  # name of the first row, as backend auto scores it
HEADINGS = (
    "score\nerror",
    "flips",
    *(part for name in METRICS for part in (name.replace("_", "\n"), "+/-")),
    "verdicts\nchanged",
)
_NOT_COMPARED: dict[str, Any] = {"score_relative_error": None, "flips": None, "passed": True, "reason": None}


def measure(
    model: Model,
    predictors: Mapping[str, Predictor],
    paths: Sequence[Path],
    labelled: Category | None,
    on_progress: Callable[[str], None],
    into: list[dict[str, Any]],
) -> None:
    """Append a row for the model by backend auto, then one for each predictor, plain JSON values.

    `score_relative_error` is the largest among up to `IMAGES` of `paths`, `flips` how many of their
    verdicts differ from the definition's; a metric's `_change` is from the first row's, and
    `verdict_changes` counts labelled images whose verdict is not the first row's. What is not known
    is null, and `reason` says why a candidate cannot score these images. Only an export may not
    have `passed`: what another library's precision costs is for the user to weigh.

    Args:
        model: what defines the scores.
        predictors: exports, and engines around candidates, by name.
        paths: image files.
        labelled: test images; None leaves the metrics out.
        on_progress: called with what is going on.
        into: gets the rows.

    Raises:
        InputError: an image cannot be used, or is of a size that an export does not take.
        BackendError: a backend failed.
    """
    chosen = paths[:: math.ceil(len(paths) / IMAGES)] if paths else []
    first: Evaluation | None = None
    for name, predictor in {OWN: Engine(model), **predictors}.items():
        on_progress(f"accuracy: {name}")
        found, compared = None, _NOT_COMPARED
        try:
            found = evaluate(predictor, labelled) if labelled else None
            compared = _compared(model, predictor, chosen) if chosen and name != OWN else _NOT_COMPARED
        except InputError as error:
            if name == OWN or isinstance(predictor, Runner):
                raise
            compared = _NOT_COMPARED | {"reason": str(error)}
        first = first or found
        into.append({"name": name, **compared, **_changes(found, first)})


def _compared(model: Model, predictor: Predictor, paths: Sequence[Path]) -> dict[str, Any]:
    """Scores and verdicts beside the definition's."""
    if isinstance(predictor, Runner):
        checked = export.check(model, predictor, paths)
        rows, passed = checked.rows, checked.passed
    else:
        rows, passed = parity.image_rows(model, paths, predictor.maps, math.inf, None), True
    _, score, _, flips = (row.to_json()["value"] for row in rows)
    return _NOT_COMPARED | {"score_relative_error": score, "flips": flips, "passed": passed}


def cells(row: Mapping[str, Any]) -> list[str | None]:
    """The text of a row below `HEADINGS`; None for what is not known."""
    metrics = [pair for name in METRICS for pair in ((name, ".2%"), (f"{name}_change", "+.2%"))]
    specs = (("score_relative_error", ".1e"), ("flips", ".0f"), *metrics, ("verdict_changes", "d"))
    return [None if row[key] is None else format(row[key], spec).rstrip("%") for key, spec in specs]


def table(report: Mapping[str, Any]) -> Table:
    """The rows of a report for a terminal, each beside its candidate's Offline speed; metrics in
    percent. Fits 80 columns.
    """
    result = tables.empty(("images/s", *HEADINGS), "accuracy", first=Column("candidate", overflow="fold"))
    for row in report["accuracy"]:
        offline = report["candidates"].get(row["name"], {}).get("offline") or {}
        speed = tables.cell(offline.get("images_per_s"), ".4g")
        result.add_row(row["name"], speed, *(cell or "-" for cell in cells(row)))
    return result


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
