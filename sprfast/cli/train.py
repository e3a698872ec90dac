"""The command `train`: a model from images of good parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console, options
from sprfast.cli.data_source import FIELD, Bad, DataSource, Good, Recursive, to_calibrate_on
from sprfast.cli.evaluate import ALL, evaluated, print_evaluations
from sprfast.cli.info import describe
from sprfast.cli.options import (
    Alpha,
    BitDepth,
    Category,
    Device,
    Frames,
    Json,
    Levels,
    Orientation,
    ProcessTimeout,
    Profiles,
    Size,
    SizePolicy,
)
from sprfast.config import NetworkConfig, TrainingConfig
from sprfast.errors import InputError
from sprfast.system import files, torchrun
from sprfast.training.recipes import FEWEST_STEPS, RECIPES, recipe_of

if TYPE_CHECKING:
    from rich.table import Table

    from sprfast.data.datasets import Category as CategoryData
    from sprfast.evaluation.evaluate import Evaluation
    from sprfast.formats.model import Model

GO_ON = "go on with the same command and --resume"


def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="A data set, a category, a folder with folders good and bad in it, or good images."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Model file; a folder for --category all.  [default: CATEGORY.safetensors]"
        ),
    ] = None,
    category: Category = None,
    good: Good = None,
    bad: Bad = None,
    recursive: Recursive = False,
    size: Size = 192,
    size_policy: SizePolicy = "fit",
    bit_depth: BitDepth = 16,
    alpha: Alpha = "refuse",
    orientation: Orientation = "exif",
    frames: Frames = "refuse",
    profiles: Profiles = "convert",
    level: Levels = None,
    width: Annotated[int, typer.Option(help="Channels of the first block, a multiple of 32.")] = 64,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.  [default: 3000]")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    time_limit: Annotated[str | None, typer.Option(help="For example 20m or 1h30m, instead of --epochs.")] = None,
    recipe: Annotated[
        str, typer.Option(help="published; fast, at the times that are scored at; or repair, of painted shapes.")
    ] = "published",
    hold_back: Annotated[
        float, typer.Option(help="Share of the good images not to train on, for `calibrate` and `study`.")
    ] = 0.0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes.  [default: the recipe's]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, before it decays.  [default: the recipe's]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of convolutions and linear layers: float32, or bfloat16 by autocast.  [default: bfloat16 on CUDA, "
            "float32 on a CPU]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches, images held back and all noise.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that decode images; 0: none.")] = 1,
    checkpoint_every: Annotated[str, typer.Option(help="Time between checkpoints.")] = "5m",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    process_timeout: ProcessTimeout = "5m",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Train a model on images of good parts; under torchrun, on several processes."""
    source = DataSource.of_options(data, category, good, bad, recursive)
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: not known, choose from {', '.join(RECIPES)}")
    chosen = RECIPES[recipe] | {
        name: value
        for name, value in (("batch_size", batch_size), ("learning_rate", learning_rate))
        if value is not None
    }
    limits = {"epochs": epochs, "steps": steps, "time_limit": console.seconds(time_limit) if time_limit else None}
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names}: give one of them only")
    for name, value in given.items():
        if value <= 0:
            raise InputError(f"--{name} {value}: nothing would be trained; give at least 1")
    if given and "epochs" not in given:
        given["epochs"] = 0
    keywords = {
        "training": TrainingConfig(
            hold_back=hold_back,
            seed=seed,
            precision=precision or _usual_precision(device),  # type: ignore[arg-type]
            **chosen,
            **given,  # type: ignore[arg-type]
        ),
        "network": NetworkConfig(base_width=width),
        "preprocessing": options.preprocessing(size, size_policy, bit_depth, alpha, orientation, frames, profiles),
        "schedule": options.schedule(level),
        "device": device,
        "workers": workers,
        "checkpoint_every": console.seconds(checkpoint_every),
        "resume": resume,
        "force": force,
        "process_timeout": console.seconds(process_timeout),
    }
    if category == ALL:
        folder = output or Path(".")
        with files.output_folder(folder):
            evaluations = _train_all(source, folder, keywords)
        if evaluations:
            print_evaluations(evaluations, json_)
            if not json_:
                console.say_next(*_next_step_of_first(evaluations, folder, source))
        return
    path, model = train_source(source, output, keywords)
    if torchrun.is_first():
        console.emit(describe(model, path), json_, lambda: _summary(model, path))
        if not json_:
            console.say_next(*_next_step(model, path, source))


def _usual_precision(device: str | None) -> str:
    return "bfloat16" if _kind(device) == "cuda" else "float32"


def _kind(device: str | None) -> str:
    from sprfast.system import devices

    return devices.resolve(device).type


def train_source(
    source: DataSource, output: Path | None, keywords: dict[str, Any], advice: str = GO_ON
) -> tuple[Path, Model]:
    """Train on one category with the keyword arguments of `sprfast.train`: the model file, and what
    is in it.

    Args:
        advice: what to do after a signal, for the sentence about it.

    Raises:
        typer.Exit: a signal stopped the training; its checkpoint is written.
    """
    category = source.load(keywords["preprocessing"])
    path = output or Path(f"{category.name}.safetensors")
    return path, _train(source, category, path, keywords, advice)


def _summary(model: Model, path: Path) -> Table:
    """What a person wants to know of a training; `info` has the rest."""
    known = model.provenance
    took = f"{known['steps']} steps in {console.duration(known['seconds'])}, {known['peak_memory_mib']:.0f} MiB"
    rows = {
        "model": path,
        "category": known["category"],
        "trained on": f"{known['images']} images, {len(known['held_back'])} held back",
        "training": took,
        "threshold": "none yet",
    }
    return console.fields_table(rows)


def _next_step(model: Model, path: Path, source: DataSource) -> list[str]:
    given = ["calibrate", str(path), *to_calibrate_on(model.provenance)]
    if not model.provenance.get("held_back"):
        return given
    from sprfast.data import datasets

    bad = [source.bad] if source.bad else []
    if source.data:
        bad = [str(folder) for folder in datasets.bad_folders(source.folder)]
    deeper = ["--recursive"] if bad and source.recursive else []
    return [*given, *(part for each in bad for part in ("--bad", each)), *deeper]


def _next_step_of_first(evaluations: list[Evaluation], folder: Path, source: DataSource) -> list[str]:
    """Of the first category; the others have theirs alike."""
    from sprfast.formats import model as model_file

    name = evaluations[0].category
    path = files.confined(folder, f"{name}.safetensors")
    return _next_step(model_file.load(path), path, source.of(name))


def _train_all(source: DataSource, output: Path, keywords: dict[str, Any]) -> list[Evaluation]:
    """Train and evaluate every category of `source`; resuming, finished ones are only evaluated.

    The list is empty on all but the first of torchrun's processes.
    """
    from sprfast.data import datasets
    from sprfast.engine.engine import Engine
    from sprfast.formats import model as model_file
    from sprfast.system.process_group import ProcessGroup
    from sprfast.training.checkpoint import checkpoint_path

    group = ProcessGroup(keywords["process_timeout"])
    names = datasets.list_categories(source.data)
    categories = [source.of(name).load(keywords["preprocessing"]) for name in names]
    paths = [files.confined(output, f"{name}.safetensors") for name in names]
    if not (keywords["resume"] or keywords["force"]):
        for path in paths:
            files.require_free(path)
    evaluations = []
    for category, path in zip(categories, paths, strict=True):
        if keywords["resume"] and path.exists():
            model = model_file.load(path)
        else:
            resume = keywords["resume"] and checkpoint_path(path).exists()
            model = _train(source.of(category.name), category, path, keywords | {"resume": resume})
        evaluation = evaluated(group, Engine(model, device=keywords["device"]), category)
        if evaluation:
            evaluations.append(evaluation)
    return evaluations


def _train(
    source: DataSource, category: CategoryData, path: Path, keywords: dict[str, Any], advice: str = GO_ON
) -> Model:
    from sprfast.training import train as training

    config = keywords["training"]
    whole = recipe_of(config) == "published" and config.epochs == TrainingConfig().epochs
    if whole and torchrun.is_first() and _kind(keywords.get("device")) == "cpu":
        console.say(f"sprfast: {config.epochs} epochs, made for a GPU; on a CPU try --recipe fast --time-limit 20m")
    with console.training_bar(f"training {category.name}") as on_step:
        origin = {"category": category.name, FIELD: source.absolute().to_json()}
        outcome = training.train(list(category.train), path, **keywords, origin=origin, on_step=on_step)
    if outcome.stopped_by:
        console.say(f"sprfast: stopped by {outcome.stopped_by.name} after step {outcome.step}; {advice}")
        raise typer.Exit(128 + outcome.stopped_by)
    assert outcome.model is not None  # as no signal stopped it
    fewest = FEWEST_STEPS[recipe_of(config)]
    if torchrun.is_first() and outcome.step < fewest:
        console.say(
            f"sprfast: {outcome.step} steps: `study curve` has measured no model of fewer than {fewest} "
            f"(docs/results/accuracy.md); check this one with `evaluate`, or train longer"
        )
    return outcome.model
