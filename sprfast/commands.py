"""What the commands do, between the library and the command line: loops over categories and files, summaries."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import RenderableType
from rich.table import Column, Table

from sprfast import console, data, figure, files, images, metrics, model_file
from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig
from sprfast.engine import Engine
from sprfast.errors import InputError
from sprfast.evaluation import Evaluation, metrics_json, write_figure
from sprfast.evaluation import evaluate as evaluate_category
from sprfast.model_file import Model
from sprfast.prediction import MAX_BATCH, Result
from sprfast.processes import is_first
from sprfast.threshold import Verdict
from sprfast.threshold import calibrate as conformal_threshold
from sprfast.threshold import manual as manual_threshold

if TYPE_CHECKING:
    from sprfast.parity import Report

ALL = "all"  # the --category that means every one


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs a model: as `Engine` takes it."""

    backend: str = "auto"
    device: str | None = None
    precision: Any = "float32"  # checked by `backends.create`

    def engine(self, model: Model) -> Engine:
        """An engine for `model`."""
        return Engine(model, self.backend, self.device, self.precision)


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


def train_one(root: Path, category: str | None, output: Path | None, job: TrainingJob) -> dict[str, Any] | None:
    """Train on one category and describe the model file; None on torchrun's processes that do not write it.

    Raises:
        typer.Exit: a signal stopped the training; its checkpoint is written.
    """
    chosen = data.load_category(root, category, job.preprocessing)
    path = output or Path(f"{chosen.name}.safetensors")
    model = _train(chosen, path, job, job.resume)
    return describe(model, path) if model else None


def train_all(root: Path, output: Path, job: TrainingJob) -> list[Evaluation]:
    """Train and evaluate every category of `root`; with `job.resume`, finished ones are only evaluated.

    The list is empty on torchrun's processes that do not write the models.
    """
    from sprfast.checkpoint import checkpoint_path

    names = data.list_categories(root)
    output.mkdir(parents=True, exist_ok=True)
    evaluations = []
    for name in names:
        category = data.load_category(root, name, job.preprocessing)
        path = files.confined(output, f"{name}.safetensors")
        model: Model | None
        if job.resume and path.exists():
            model = model_file.load(path) if is_first() else None
        else:
            model = _train(category, path, job, job.resume and checkpoint_path(path).exists())
        if model is not None:
            evaluations.append(evaluated(Engine(model, device=job.device), category))
    return evaluations


def _train(category: data.Category, path: Path, job: TrainingJob, resume: bool) -> Model | None:
    """The model; None on the processes of torchrun that do not write it."""
    from sprfast import training

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
            on_step=on_step,
        )
    if outcome.stopped_by:
        console.say(f"sprfast: stopped by {outcome.stopped_by.name} after step {outcome.step}; go on with the same command and --resume")
        raise typer.Exit(128 + outcome.stopped_by)
    return outcome.model


def evaluate(
    path: Path, root: Path, category: str | None, figure_path: Path | None, schedule: Schedule | None, runtime: Runtime
) -> list[Evaluation]:
    """Evaluate one category, or every one of `root` with the model file of its name in the folder `path`."""
    everything = category == ALL
    if everything and figure_path:
        figure_path.mkdir(parents=True, exist_ok=True)
    evaluations = []
    for name in data.list_categories(root) if everything else [category]:
        model = model_file.load(files.confined(path, f"{name}.safetensors") if everything else path)
        engine = runtime.engine(dataclasses.replace(model, schedule=schedule or model.schedule))
        evaluation = evaluated(engine, data.load_category(root, name, model.preprocessing))
        if figure_path:
            target = files.confined(figure_path, f"{name}.png") if everything else figure_path
            write_figure(evaluation, engine, target)
            console.say(f"figure: {target}")
        evaluations.append(evaluation)
    return evaluations


def evaluated(engine: Engine, category: data.Category) -> Evaluation:
    """`evaluation.evaluate` with a progress bar."""
    with console.counter(f"evaluating {category.name}") as on_image:
        return evaluate_category(engine, category, on_image)


def evaluations_json(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Every category and, where there are several, their mean."""
    rows = {"categories": [evaluation.to_json() for evaluation in evaluations]}
    if len(evaluations) > 1:
        return rows | {"mean": metrics_json(metrics.mean([evaluation.metrics for evaluation in evaluations]))}
    return rows


def evaluations_table(evaluations: list[Evaluation]) -> RenderableType:
    """A table for each category with its kinds of defect; for several, one table with the mean row."""
    if len(evaluations) == 1:
        only = evaluations[0]
        rows = {f"{kind} against good": row for kind, row in only.kinds.items()} | {"all": only.metrics}
        return console.metrics_table(rows, f"{only.category}: {only.images} images, in percent")
    rows = {evaluation.category: evaluation.metrics for evaluation in evaluations}
    return console.metrics_table(rows | {"mean": metrics.mean(list(rows.values()))}, f"{len(rows)} categories, in percent")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` found, image by image."""

    backend: str  # in use
    rows: list[dict[str, Any]]
    interrupted: bool

    @property
    def counts(self) -> dict[str, int]:
        """Images by verdict."""
        return {verdict.value: sum(row["verdict"] == verdict.value for row in self.rows) for verdict in Verdict}

    def to_json(self) -> dict[str, Any]:
        """The rows, their counts, and what computed them."""
        return {"complete": not self.interrupted, "backend": self.backend, "counts": self.counts, "results": self.rows}

    def table(self) -> Table:
        """One line an image."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items()) + f"; backend {self.backend}"
        table = Table(Column("image", overflow="fold"), "pred_score", "verdict", "reason", caption=counts)
        for row in self.rows:
            score = "-" if row["pred_score"] is None else f"{row['pred_score']:.6g}"
            table.add_row(row["path"], score, row["verdict"], row.get("reason", ""))
        return table


def predict(path: Path, sources: list[Path], output: Path | None, runtime: Runtime) -> Prediction:
    """Score image files; with `output`, write results.jsonl and an overlay for each scored image."""
    model = model_file.load(path)
    engine = runtime.engine(model)
    paths = data.image_files(sources)
    if output:
        output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    interrupted = False
    with console.counter("predicting") as on_image:
        try:
            for first in range(0, len(paths), MAX_BATCH):
                chunk = paths[first : first + MAX_BATCH]
                for source, result in zip(chunk, engine.predict(chunk), strict=True):
                    row = _prediction_row(source, result)
                    if output and result.anomaly_map is not None:
                        row["overlay"] = _write_overlay(output, names, source, result, model.preprocessing)
                    rows.append(row)
                on_image(len(rows), len(paths))
        except KeyboardInterrupt:
            interrupted = True
    if output:
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(output / "results.jsonl", lines.encode())
    return Prediction(engine.backend, rows, interrupted)


def _prediction_row(source: Path, result: Result) -> dict[str, Any]:
    row = {
        "path": images.display_name(source),
        "pred_score": None if result.pred_score != result.pred_score else result.pred_score,
        "verdict": result.verdict.value,
        "threshold": result.threshold,
        "milliseconds": round(result.milliseconds, 3),
    }
    return row | ({"reason": result.reason} if result.reason else {})


def _write_overlay(output: Path, names: set[str], source: Path, result: Result, preprocessing: Preprocessing) -> str:
    """Write the overlay under the image's own name; where two share one, with its folder's name before it, then numbered."""
    stem = images.display_name(source.stem)[:60]
    name = stem
    if name.casefold() in names:
        stem = name = f"{images.display_name(source.absolute().parent.name)[:60]}-{stem}"
    while name.casefold() in names:
        name = f"{stem}-{len(names)}"
    names.add(name.casefold())
    assert result.anomaly_map is not None  # the caller checks
    target = files.confined(output, f"{name}.png")
    figure.save_png(target, figure.overlay(images.read_rgb(source, preprocessing), result.anomaly_map, result.threshold))
    return target.name


def calibrate(path: Path, good: Path | None, false_reject_rate: float, threshold: float | None, runtime: Runtime) -> dict[str, Any]:
    """Store a threshold in the model file: from good images, or the one given."""
    model = model_file.load(path)
    used: dict[str, Any] = {}
    if good is None:
        assert threshold is not None  # the command line asks for one of the two
        chosen = manual_threshold(threshold)
    else:
        engine = runtime.engine(model)
        used["backend"] = engine.backend
        chosen = conformal_threshold(good_scores(engine, data.image_files([good])), false_reject_rate)
    model_file.save(path, dataclasses.replace(model, threshold=chosen))
    return {"model": str(path), "threshold": chosen.to_json(), **used}


def good_scores(engine: Engine, paths: list[Path]) -> list[float]:
    """The score of each good image.

    Raises:
        InputError: one of them cannot be scored.
    """
    scores: list[float] = []
    with console.counter("calibrating") as on_image:
        for first in range(0, len(paths), MAX_BATCH):
            chunk = paths[first : first + MAX_BATCH]
            for path, result in zip(chunk, engine.predict(chunk), strict=True):
                if result.anomaly_map is None:
                    raise InputError(f"{images.display_name(path)}: cannot be scored ({result.reason})")
                scores.append(result.pred_score)
            on_image(len(scores), len(paths))
    return scores


def parity(model: Path | None, folder: Path | None, golden: Path | None, runtime: Runtime) -> Report:
    """A parity report: against golden outputs, or against the definition on the images of a folder."""
    from sprfast import parity as checks

    if golden is not None and model is None and folder is None:
        if runtime.precision != "float32":
            raise InputError(f"--precision {runtime.precision}: the golden outputs are float32; check 16-bit storage with MODEL --images")
        return checks.check_golden(golden, runtime.backend, runtime.device)
    if golden is None and model is not None and folder is not None:
        return checks.check_images(model_file.load(model), data.image_files([folder]), runtime.backend, runtime.device, runtime.precision)
    raise InputError("parity: give either --golden DIR, or MODEL and --images DIR")


def parity_table(report: Report) -> Table:
    """One line a number, with its limit."""
    title = f"parity of {report.backend} ({report.precision}) on {report.device}: {'passed' if report.passed else 'FAILED'}"
    table = Table("case", "quantity", "value", "limit", "", title=title)
    for row in report.rows:
        value = (row.reason or "-") if row.value is None else f"{row.value:.3g}"
        table.add_row(row.case, row.quantity, value, "-" if row.limit is None else f"{row.limit:.3g}", "ok" if row.passed else "FAILED")
    return table


def describe(model: Model, path: Path) -> dict[str, Any]:
    """Everything a model file holds but the weights."""
    return {
        "model": str(path),
        "sha256": model.sha256,
        "parameters": sum(weight.numel() for weight in model.weights.values()),
        "network": model.network.to_json(),
        "schedule": model.schedule.to_json(),
        "noise_seed": model.noise_seed,
        "preprocessing": model.preprocessing.to_json(),
        "threshold": model.threshold.to_json() if model.threshold else None,
        "provenance": model.provenance,
        "certificates": list(model.certificates),
    }


def doctor() -> dict[str, Any]:
    """Versions and devices, for each backend whether it can run, and what "auto" is."""
    from sprfast import backends, environment

    reasons = {name: backends.unavailable(name) for name in backends.NAMES}
    listed = {name: reason or "can run" for name, reason in reasons.items()}
    return environment.describe() | {"backends": listed, "backend_auto": backends.choose("auto")}
