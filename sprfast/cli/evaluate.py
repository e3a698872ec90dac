"""The command `evaluate`: metrics of a model or an export on labelled images."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

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
from sprfast.config import PUBLISHED, Schedule
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.data.datasets import Category as CategoryData
    from sprfast.engine.predictor import Predictor
    from sprfast.evaluation.evaluate import Evaluation
    from sprfast.evaluation.metrics import Metric
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
    folder = files.output_folder(figure) if figure and category == ALL else contextlib.nullcontext()
    with folder:
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
    from sprfast.data import datasets
    from sprfast.evaluation.evaluate import write_figure
    from sprfast.system.process_group import ProcessGroup

    group = ProcessGroup(process_timeout)
    everything = category == ALL
    evaluations = []
    for name in datasets.list_categories(root) if everything else [category]:
        model = files.confined(path, f"{name}.safetensors") if everything else path
        engine = _opened(model, schedule, runtime)
        data = datasets.load_category(root, name, engine.preprocessing)
        target = None
        if figure_path and group.rank == 0:
            target = files.confined(figure_path, f"{name}.png") if everything else figure_path
            files.check_writable(target)  # before the images are scored
            files.refuse_source(target, _read(model, data))
        evaluation = evaluated(group, engine, data)
        if evaluation is None:
            continue
        if target:
            write_figure(evaluation, engine, target)
            console.say(f"figure: {target}")
        evaluations.append(evaluation)
    return evaluations


def _read(model: Path, data: CategoryData) -> list[Path]:
    """The files that an evaluation reads."""
    return [model, *data.train, *(path for sample in data.test for path in (sample.path, sample.mask) if path)]


def _opened(path: Path, schedule: Schedule | None, runtime: Runtime) -> Predictor:
    """An engine or a runner, with other sigma levels where they are given."""
    if schedule is None:
        return runtime.open(path)
    if runtime.setting != PUBLISHED:
        raise InputError("--level: has its own sigma levels, and so has --setting; give one of the two")
    from sprfast.formats import export as export_file

    if export_file.kind(path) != "model":
        raise InputError("--level: an export has the sigma levels that it was exported with")
    from sprfast.formats import model as model_file

    model = model_file.load(path)
    mode = dataclasses.replace(model.scoring_mode, schedule=schedule)
    return runtime.engine(dataclasses.replace(model, scoring_mode=mode))


def evaluated(group: ProcessGroup, engine: Predictor, category: CategoryData) -> Evaluation | None:
    """`evaluation.evaluate_among` with a progress bar."""
    from sprfast.evaluation.evaluate import evaluate_among

    with console.counter(f"evaluating {category.name}") as on_image:
        return evaluate_among(group, engine, category, on_image)


def print_evaluations(evaluations: list[Evaluation], as_json: bool) -> None:
    """Print every category and, where there are several, their mean."""
    from sprfast.evaluation.evaluate import metrics_json

    document: dict[str, Any] = {"categories": [evaluation.to_json() for evaluation in evaluations]}
    if len(evaluations) > 1:
        document["mean"] = metrics_json(_mean(evaluations))
    console.emit(document, as_json, lambda: table(evaluations))


def table(evaluations: list[Evaluation]) -> Table:
    """Metrics in percent: of one category by kind of defect; of several a row each, and their mean.

    An undefined metric is a dash.
    """
    if len(evaluations) == 1:
        only = evaluations[0]
        rows = {f"{kind} against good": row for kind, row in only.kinds.items()} | {"all": only.metrics}
        title = f"{only.category}: {only.images} images, in percent"
    else:
        rows = {evaluation.category: evaluation.metrics for evaluation in evaluations}
        title = f"{len(rows)} categories, in percent"
        rows["mean"] = _mean(evaluations)
    printed = Table("", *evaluations[0].metrics, title=title)
    for name, row in rows.items():
        printed.add_row(name, *("-" if each.value is None else f"{100 * each.value:.1f}" for each in row.values()))
    return printed


def _mean(evaluations: list[Evaluation]) -> dict[str, Metric]:
    from sprfast.evaluation import metrics

    return metrics.mean([evaluation.metrics for evaluation in evaluations])
