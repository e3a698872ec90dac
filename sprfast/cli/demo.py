"""The command `demo`: the main job on photographs that ship with scikit-image.

Every step is a function of the seed, so a second run on the same machine prints the same scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console
from sprfast.cli.calibrate import calibrate_file
from sprfast.cli.calibration_request import Request
from sprfast.cli.data_source import DataSource
from sprfast.cli.evaluate import table
from sprfast.cli.options import Json, Runtime
from sprfast.cli.predict import predict_files
from sprfast.cli.train import train_source
from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig
from sprfast.system import files

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sprfast.evaluation.evaluate import Evaluation

SIZE = 64  # pixels at the network's input
WIDTH = 32  # channels of the first block: half of the published network, a quarter of its work
STEPS = 600
LEARNING_RATE = 1e-3  # ten times the published one: a training of minutes instead of 3000 epochs
BATCH_SIZE = 8
FALSE_REJECT_RATE = 0.05
BENCH_SECONDS = 8.0  # a scenario
CANDIDATES = ["published", "channels_last", "eager", "cpu"]  # no other library, so that the demo stays short


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for data, model, figure and report.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Of data, weights and noise.")] = 0,
    json_: Json = False,
) -> None:
    """The whole path on photographs that ship with scikit-image: train, calibrate, evaluate,
    bench.
    """
    with files.output_folder(output):
        document, evaluation = _run(output, seed)
    console.emit(document, json_, lambda: _tables(document, evaluation))


def _tables(document: dict[str, Any], evaluation: Evaluation) -> RenderableType:
    from rich.console import Group

    from sprfast.bench.core import report

    assert evaluation.rejected_good is not None  # the demo's model is calibrated
    rejected, good = evaluation.rejected_good
    given = document["threshold"]
    asked = f"a false-reject rate of {given['false_reject_rate']:.0%}"
    threshold = {
        "threshold": f"{given['value']:.6g}",
        "calibrated on": f"{given['samples']} held-back good images for {asked}",
        "measured": f"{rejected} of {good} good test images rejected ({rejected / good:.1%})",
    }
    return Group(
        table([evaluation]),
        console.fields_table(threshold, "Threshold"),
        report.table(document["bench"]),
        console.fields_table(document["paths"], "Files"),
    )


def _run(folder: Path, seed: int) -> tuple[dict[str, Any], Evaluation]:
    """Write data, model, figure, predictions and bench report under `folder`, and return what was
    measured and where the files are.

    Raises:
        BackendError: scikit-image, whose photographs are used, is not installed.
        InputError: `folder` cannot be written.
    """
    from sprfast.bench.core.cases import BenchOptions
    from sprfast.cli.bench.run import Sources, measure
    from sprfast.data import scenes
    from sprfast.engine.engine import Engine
    from sprfast.evaluation.evaluate import evaluate, write_figure
    from sprfast.formats import model as model_file
    from sprfast.training.checkpoint import checkpoint_path

    model_path = folder / f"{scenes.CATEGORY}.safetensors"
    figure_path, report_path, predictions = folder / "figure.png", folder / "bench.json", folder / "predictions"
    console.note(f"writing photographs with drawn defects to {folder / 'data'}")
    scenes.write_scenes(folder / "data", size=SIZE, seed=seed)
    checkpoint_path(model_path).unlink(missing_ok=True)  # of a demo that was stopped: this one starts afresh
    keywords = {
        "network": NetworkConfig(base_width=WIDTH),
        "preprocessing": Preprocessing(size=SIZE),
        "schedule": Schedule(),
        "force": True,  # the model of the demo before
        "training": TrainingConfig(
            epochs=0, steps=STEPS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, seed=seed
        ),
    }
    source = DataSource(str(folder / "data"), scenes.CATEGORY)
    train_source(source, model_path, keywords, advice="the demo starts afresh next time")
    held_back = folder / "data" / scenes.CATEGORY / "calibrate" / "good"
    request = Request(held_back, FALSE_REJECT_RATE)
    threshold = calibrate_file(model_path, request, Runtime())["threshold"]
    engine = Engine(model_file.load(model_path))
    category = source.load(engine.model.preprocessing)
    with console.counter(f"evaluating {category.name}") as on_image:
        evaluation = evaluate(engine, category, on_image)
    write_figure(evaluation, engine, figure_path)
    defective = [sample.path.parent for sample in category.test if sample.label]
    stopped = predict_files(model_path, sorted(set(defective)), predictions, Runtime())[2]
    if stopped:
        raise typer.Exit(stopped)
    sources = Sources(data=folder / "data", category=scenes.CATEGORY)
    bench = measure(model_path, BenchOptions(seconds=BENCH_SECONDS), CANDIDATES, sources, report_path)
    paths = {
        "model": model_path,
        "figure": figure_path,
        "predictions": predictions / "results.jsonl",
        "bench report": report_path,
        "bench page": report_path.with_suffix(".html"),
    }
    return {
        "evaluation": evaluation.to_json(),
        "threshold": threshold,
        "bench": bench,
        "paths": {name: str(path) for name, path in paths.items()},
    }, evaluation
