"""The command `evaluate`: metrics of a model or an export on labelled images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sprfast.cli import console, options
from sprfast.cli.data_source import Bad, DataSource, Good, Recursive, another_category
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
    from sprfast.engine.predictor import Map, Predictor
    from sprfast.evaluation.evaluate import Evaluation
    from sprfast.evaluation.metrics import Metric
    from sprfast.system.process_group import ProcessGroup

ALL = "all"  # the --category that means every one


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file; for --category all the folder with one a category.")
    ],
    data: Annotated[
        Path | None, typer.Argument(help="A data set, a category, or a folder with folders good and bad in it.")
    ] = None,
    category: Category = None,
    good: Good = None,
    bad: Bad = None,
    recursive: Recursive = False,
    figure: Annotated[
        Path | None, typer.Option(help="Write the figure of examples here (PNG); a folder for --category all.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page of all results here (HTML, opens offline); a folder for --category all."),
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
    source = DataSource.of_options(data, category, good, bad, recursive)
    runtime = Runtime(backend, device, precision, setting)
    with contextlib.ExitStack() as stack:
        for folder in (figure, report) if category == ALL else ():
            if folder:
                stack.enter_context(files.output_folder(folder))
        seconds = console.seconds(process_timeout)
        evaluations = _evaluate(model, source, Outputs(figure, report), schedule, runtime, seconds)
    if evaluations:
        print_evaluations(evaluations, json_)
        if not json_:
            first = files.confined(model, f"{evaluations[0].category}.safetensors") if category == ALL else model
            chosen = [] if setting == PUBLISHED else ["--setting", setting]
            console.say_next("predict", str(first), "NEW_IMAGES", *chosen, "-o", "results")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Files beside what is printed; folders of them for every category."""

    figure: Path | None
    report: Path | None

    def within(self, name: str) -> Outputs:
        """Those of one category in the folders."""
        figure = files.confined(self.figure, f"{name}.png") if self.figure else None
        return Outputs(figure, files.confined(self.report, f"{name}.html") if self.report else None)

    def check(self, model: Path, data: CategoryData) -> None:
        """Raise InputError, before the images are scored, for what cannot be written."""
        for path in filter(None, (self.figure, self.report)):
            files.check_writable(path)
            files.refuse_source(path, _read(model, data))
        if self.report:
            from sprfast.evaluation.results_page import require_possible

            require_possible(self.report, len(data.test))


def _evaluate(
    path: Path,
    source: DataSource,
    outputs: Outputs,
    schedule: Schedule | None,
    runtime: Runtime,
    process_timeout: float,
) -> list[Evaluation]:
    """Evaluate one category, or every one of `source` with the model file of its name in the folder
    `path`.

    Under torchrun the processes share the images; the list is empty on all but the first.
    """
    from sprfast.data import datasets
    from sprfast.evaluation.evaluate import write_figure
    from sprfast.system.process_group import ProcessGroup

    group = ProcessGroup(process_timeout)
    everything = source.category == ALL
    evaluations = []
    for name in datasets.list_categories(source.data) if everything else [source.category]:
        model = files.confined(path, f"{name}.safetensors") if everything else path
        engine = _opened(model, schedule, runtime)
        data = source.of(name).load(engine.preprocessing)
        targets = outputs.within(name) if everything and name else outputs
        if group.rank == 0:
            targets.check(model, data)
        write = functools.partial(_write_report, targets.report, engine, model, runtime.setting)
        evaluation = evaluated(group, engine, data, write)
        if evaluation is None:
            continue
        if targets.figure:
            write_figure(evaluation, engine, targets.figure)
            console.note(f"figure: {targets.figure}")
        evaluations.append(evaluation)
    return evaluations


def _write_report(
    path: Path | None, engine: Predictor, model: Path, setting: str, evaluation: Evaluation, maps: Map
) -> None:
    if path:
        from sprfast.evaluation.results_page import write_evaluation

        write_evaluation(path, engine, model, setting, evaluation, maps)
        console.note(f"report: {path}")


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


def evaluated(
    group: ProcessGroup,
    engine: Predictor,
    category: CategoryData,
    on_maps: Callable[[Evaluation, Map], None] = lambda evaluation, maps: None,
) -> Evaluation | None:
    """`evaluation.evaluate_among` with a progress bar; where the category has bad images only, also
    on the good ones that were not trained on.
    """
    from sprfast.evaluation import unseen
    from sprfast.evaluation.evaluate import evaluate_among

    provenance = _provenance(engine)
    told = console.say if group.rank == 0 else lambda _: None
    if warning := another_category(provenance, category.name):
        told(f"sprfast: {warning}")
    if unseen.lacks_good(category) and category.train:
        good = unseen.good(category, provenance)
        told(
            f"{category.name}: of {len(category.train)} good images the {len(good)} that were not trained on are scored"
        )
        category = unseen.with_good(category, good)
    with console.counter(f"evaluating {category.name}") as on_image:
        return evaluate_among(group, engine, category, on_image, on_maps)


def _provenance(engine: Predictor) -> Mapping[str, Any]:
    """What the file behind an engine or a runner says of its training."""
    from sprfast.engine.runner import Runner
    from sprfast.formats import trained_on

    if isinstance(engine, Runner):
        return {trained_on.FIELD: engine.metadata.trained_on, "category": engine.metadata.category}
    return engine.model.provenance  # type: ignore[attr-defined,no-any-return]


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
