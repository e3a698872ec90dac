"""What the commands do, between the library and the command line: loops over categories and files,
summaries.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from sprfast.cli import console, export_commands
from sprfast.cli.predict_commands import Runtime
from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig
from sprfast.data import datasets as data
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.evaluation import metrics
from sprfast.evaluation.evaluate import Evaluation, evaluate_among, metrics_json, write_figure
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.formats.model import Model
from sprfast.method.scoring_mode import PUBLISHED
from sprfast.system import files
from sprfast.system import torchrun as ranks
from sprfast.system.process_group import ProcessGroup

if TYPE_CHECKING:
    from sprfast.evaluation.parity import Report

ALL = "all"  # the --category that means every one


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """How to train, whatever the category."""

    network: NetworkConfig
    preprocessing: Preprocessing
    schedule: Schedule
    training: TrainingConfig
    device: str | None = None
    workers: int = 1
    checkpoint_every: float = 300.0  # seconds
    resume: bool = False
    process_timeout: float = 300.0  # seconds


def train_one(root: Path, category: str | None, output: Path | None, job: TrainingJob) -> dict[str, Any] | None:
    """Train on one category and describe the model file; None on all but the first of torchrun's
    processes.

    Raises:
        typer.Exit: a signal stopped the training; its checkpoint is written.
    """
    chosen = data.load_category(root, category, job.preprocessing)
    path = output or Path(f"{chosen.name}.safetensors")
    model = _train(chosen, path, job, job.resume)
    return describe(model, path) if ranks.is_first() else None


def train_all(root: Path, output: Path, job: TrainingJob) -> list[Evaluation]:
    """Train and evaluate every category of `root`; with `job.resume`, finished ones are only
    evaluated.

    The list is empty on all but the first of torchrun's processes.
    """
    from sprfast.training.checkpoint import checkpoint_path

    group = ProcessGroup(job.process_timeout)
    names = data.list_categories(root)
    output.mkdir(parents=True, exist_ok=True)
    evaluations = []
    for name in names:
        category = data.load_category(root, name, job.preprocessing)
        path = files.confined(output, f"{name}.safetensors")
        finished = job.resume and path.exists()
        model = (
            model_file.load(path)
            if finished
            else _train(category, path, job, job.resume and checkpoint_path(path).exists())
        )
        evaluation = evaluated(group, Engine(model, device=job.device), category)
        if evaluation:
            evaluations.append(evaluation)
    return evaluations


def _train(category: data.Category, path: Path, job: TrainingJob, resume: bool) -> Model:
    from sprfast.training import train as training

    with console.training_bar(f"training {category.name}") as on_step:
        outcome = training.train(
            list(category.train),
            path,
            network=job.network,
            preprocessing=job.preprocessing,
            schedule=job.schedule,
            training=job.training,
            device=job.device,
            workers=job.workers,
            checkpoint_every=job.checkpoint_every,
            resume=resume,
            process_timeout=job.process_timeout,
            on_step=on_step,
        )
    if outcome.stopped_by:
        console.say(
            f"sprfast: stopped by {outcome.stopped_by.name} after step {outcome.step}; go on with the same command "
            f"and --resume"
        )
        raise typer.Exit(128 + outcome.stopped_by)
    assert outcome.model is not None  # as no signal stopped it
    return outcome.model


def evaluate(
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
    group = ProcessGroup(process_timeout)
    everything = category == ALL
    if everything and figure_path:
        figure_path.mkdir(parents=True, exist_ok=True)
    evaluations = []
    for name in data.list_categories(root) if everything else [category]:
        engine = _opened(files.confined(path, f"{name}.safetensors") if everything else path, schedule, runtime)
        evaluation = evaluated(group, engine, data.load_category(root, name, engine.preprocessing))
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
    model = model_file.load(path)
    mode = dataclasses.replace(model.scoring_mode, schedule=schedule)
    return runtime.engine(dataclasses.replace(model, scoring_mode=mode))


def evaluated(group: ProcessGroup, engine: Predictor, category: data.Category) -> Evaluation | None:
    """`evaluation.evaluate_among` with a progress bar."""
    with console.counter(f"evaluating {category.name}") as on_image:
        return evaluate_among(group, engine, category, on_image)


def evaluations_json(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Every category and, where there are several, their mean."""
    rows = {"categories": [evaluation.to_json() for evaluation in evaluations]}
    if len(evaluations) > 1:
        return rows | {"mean": metrics_json(metrics.mean([evaluation.metrics for evaluation in evaluations]))}
    return rows


def evaluations_table(evaluations: list[Evaluation]) -> RenderableType:
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


def parity(
    model: Path | None, folder: Path | None, golden: Path | None, exported: Path | None, runtime: Runtime
) -> Report:
    """A parity report: against golden outputs, or against the definition on the images of a
    folder.
    """
    from sprfast.evaluation import parity as checks

    if golden is not None and model is None and folder is None and exported is None:
        if runtime.precision != "float32":
            raise InputError(
                f"--precision {runtime.precision}: the golden outputs are float32; check 16-bit storage with MODEL "
                f"--images"
            )
        return checks.check_golden(golden, runtime.backend, runtime.device)
    if golden is None and model is not None and folder is not None:
        paths = data.image_files([folder])
        if exported is not None:
            from sprfast.deploy import export

            return export.check(
                model_file.load(model), dataclasses.replace(runtime, setting=PUBLISHED).runner(exported), paths
            )
        return checks.check_images(
            model_file.load(model).using(runtime.setting), paths, runtime.backend, runtime.device, runtime.precision
        )
    raise InputError(
        "parity: give either --golden DIR, or MODEL and --images DIR, and with these --export FILE for an export of it"
    )


def parity_table(report: Report) -> Table:
    """One line a number, with its limit."""
    title = (
        f"parity of {report.backend} ({report.precision}) on {report.device}: {'passed' if report.passed else 'FAILED'}"
    )
    table = Table("case", "quantity", "value", "limit", "", title=title)
    for row in report.rows:
        value = (row.reason or "-") if row.value is None else f"{row.value:.3g}"
        table.add_row(
            row.case,
            row.quantity,
            value,
            "-" if row.limit is None else f"{row.limit:.3g}",
            "ok" if row.passed else "FAILED",
        )
    return table


def info(path: Path) -> dict[str, Any]:
    """Everything that a model file or an export holds but the network itself."""
    if export_file.kind(path) == "model":
        return describe(model_file.load(path), path)
    return export_commands.describe(path, export_file.read(path).metadata)


def describe(model: Model, path: Path) -> dict[str, Any]:
    """Everything a model file holds but the weights."""
    return {
        "model": str(path),
        "sha256": model.sha256,
        "parameters": sum(weight.numel() for weight in model.weights.values()),
        "network": model.network.to_json(),
        "noise_seed": model.noise_seed,
        "preprocessing": model.preprocessing.to_json(),
        **model.scoring_mode.summary(),
        "settings": {name: mode.summary() for name, mode in model.scoring_modes.items()},
        "provenance": model.provenance,
        "certificates": list(model.certificates),
    }


def info_table(summary: dict[str, Any]) -> Table:
    """What `info` gives, for a person."""
    return console.fields_table(summary) if "model" in summary else export_commands.table(summary)


def doctor() -> dict[str, Any]:
    """Versions and devices, for each backend and for each runtime of exports whether it can run,
    and what "auto" is.
    """
    from sprfast.backends import registry as backends
    from sprfast.engine import runner
    from sprfast.system import environment

    listed = {name: backends.unavailable(name) or "can run" for name in backends.NAMES}
    exports = {name: runner.unavailable(name) or "can run" for name in runner.BACKENDS}
    return environment.describe() | {"backends": listed, "backend_auto": backends.choose("auto"), "exports": exports}
