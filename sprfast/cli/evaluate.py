"""The command `evaluate`: metrics of a model or an export on labelled images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from sprfast.cli import console, options
from sprfast.cli.options import (
    BackendName,
    Category,
    Device,
    Json,
    Levels,
    PrecisionName,
    ProcessTimeout,
    Runtime,
    SettingName,
)
from sprfast.config import Schedule
from sprfast.data import datasets
from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.evaluation import metrics
from sprfast.evaluation.evaluate import Evaluation, evaluate_among, metrics_json, write_figure
from sprfast.formats import export as export_file
from sprfast.method.scoring_mode import PUBLISHED
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.system.process_group import ProcessGroup

ALL = "all"  # the --category that means every one


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file; for --category all the folder with one a category.")
    ],
    data: Annotated[Path, typer.Argument(help="A data set or a category, with test images.")],
    category: Category = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write the figure of examples here (PNG); a folder for --category all.")
    ] = None,
    level: Levels = None,
    setting: SettingName = "published",
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    process_timeout: ProcessTimeout = "5m",
    device: Device = None,
    json_: Json = False,
) -> None:
    """image_AUROC, pixel_AUROC, AUPRO and F1_max on labelled test images, overall and per kind;
    under torchrun, on several processes.
    """
    schedule = options.schedule(level) if level else None
    runtime = Runtime(backend, device, precision, setting)
    evaluations = _evaluate(model, data, category, figure, schedule, runtime, console.seconds(process_timeout))
    if evaluations:
        print_evaluations(evaluations, json_)


def _evaluate(
    path: Path,
    root: Path,
    category: str | None,
    figure_path: Path | None,
    schedule: Schedule | None,
    runtime: Runtime,
    process_timeout: float,
) -> list[Evaluation]:
    """Evaluate one category, or every one of `root` with the model file of its name in the folder
    `path`.

    Under torchrun the processes share the images; the list is empty on all but the first.
    """
    from sprfast.system.process_group import ProcessGroup

    group = ProcessGroup(process_timeout)
    everything = category == ALL
    if everything and figure_path:
        figure_path.mkdir(parents=True, exist_ok=True)
    evaluations = []
    for name in datasets.list_categories(root) if everything else [category]:
        engine = _opened(files.confined(path, f"{name}.safetensors") if everything else path, schedule, runtime)
        evaluation = evaluated(group, engine, datasets.load_category(root, name, engine.preprocessing))
        if evaluation is None:
            continue
        if figure_path:
            target = files.confined(figure_path, f"{name}.png") if everything else figure_path
            write_figure(evaluation, engine, target)
            console.say(f"figure: {target}")
        evaluations.append(evaluation)
    return evaluations


def _opened(path: Path, schedule: Schedule | None, runtime: Runtime) -> Predictor:
    """An engine or a runner, with other sigma levels where they are given."""
    if schedule is None:
        return runtime.open(path)
    if runtime.setting != PUBLISHED:
        raise InputError("--level: has its own sigma levels, and so has --setting; give one of the two")
    if export_file.kind(path) != "model":
        raise InputError("--level: an export has the sigma levels that it was exported with")
    from sprfast.formats import model as model_file

    model = model_file.load(path)
    mode = dataclasses.replace(model.scoring_mode, schedule=schedule)
    return runtime.engine(dataclasses.replace(model, scoring_mode=mode))


def evaluated(group: ProcessGroup, engine: Predictor, category: datasets.Category) -> Evaluation | None:
    """`evaluation.evaluate_among` with a progress bar."""
    with console.counter(f"evaluating {category.name}") as on_image:
        return evaluate_among(group, engine, category, on_image)


def print_evaluations(evaluations: list[Evaluation], as_json: bool) -> None:
    """Print every category and, where there are several, their mean."""
    console.emit(_json(evaluations), as_json, lambda: table(evaluations))


def _json(evaluations: list[Evaluation]) -> dict[str, Any]:
    rows = {"categories": [evaluation.to_json() for evaluation in evaluations]}
    if len(evaluations) > 1:
        return rows | {"mean": metrics_json(metrics.mean([evaluation.metrics for evaluation in evaluations]))}
    return rows


def table(evaluations: list[Evaluation]) -> RenderableType:
    """A table for each category with its kinds of defect; for several, one table with the
    mean row.
    """
    if len(evaluations) == 1:
        only = evaluations[0]
        rows = {f"{kind} against good": row for kind, row in only.kinds.items()} | {"all": only.metrics}
        return console.metrics_table(rows, f"{only.category}: {only.images} images, in percent")
    rows = {evaluation.category: evaluation.metrics for evaluation in evaluations}
    return console.metrics_table(
        rows | {"mean": metrics.mean(list(rows.values()))}, f"{len(rows)} categories, in percent"
    )
