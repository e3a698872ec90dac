"""The command `train`: a model from images of good parts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console, options
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
    Size,
    SizePolicy,
)
from sprfast.config import NetworkConfig, TrainingConfig
from sprfast.errors import InputError
from sprfast.system import files, torchrun
from sprfast.training.recipes import RECIPES

if TYPE_CHECKING:
    from sprfast.data.datasets import Category as CategoryData
    from sprfast.evaluation.evaluate import Evaluation
    from sprfast.formats.model import Model

GO_ON = "go on with the same command and --resume"


def train(
    data: Annotated[Path, typer.Argument(help="A data set, a category, or a folder of good images.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Model file; a folder for --category all.  [default: CATEGORY.safetensors]"
        ),
    ] = None,
    category: Category = None,
    size: Size = 192,
    size_policy: SizePolicy = "fit",
    bit_depth: BitDepth = 16,
    alpha: Alpha = "refuse",
    orientation: Orientation = "exif",
    frames: Frames = "refuse",
    level: Levels = None,
    width: Annotated[int, typer.Option(help="Channels of the first block, a multiple of 32.")] = 64,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.  [default: 3000]")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    time_limit: Annotated[str | None, typer.Option(help="For example 20m or 1h30m, instead of --epochs.")] = None,
    recipe: Annotated[
        str, typer.Option(help="published, or fast, which learns at the times that are scored at.")
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
        "preprocessing": options.preprocessing(size, size_policy, bit_depth, alpha, orientation, frames),
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
            evaluations = _train_all(data, folder, keywords)
        if evaluations:
            print_evaluations(evaluations, json_)
    else:
        summary = train_category(data, category, output, keywords)
        if summary:
            console.emit(summary, json_)


def _usual_precision(device: str | None) -> str:
    from sprfast.system import devices

    return "bfloat16" if devices.resolve(device).type == "cuda" else "float32"


def train_category(
    root: Path, name: str | None, output: Path | None, keywords: dict[str, Any], advice: str = GO_ON
) -> dict[str, Any] | None:
    """Train on one category with the keyword arguments of `sprfast.train`, and describe the model
    file; None on all but the first of torchrun's processes.

    Args:
        advice: what to do after a signal, for the sentence about it.

    Raises:
        typer.Exit: a signal stopped the training; its checkpoint is written.
    """
    from sprfast.data import datasets

    category = datasets.load_category(root, name, keywords["preprocessing"])
    path = output or Path(f"{category.name}.safetensors")
    model = _train(category, path, keywords, advice)
    return describe(model, path) if torchrun.is_first() else None


def _train_all(root: Path, output: Path, keywords: dict[str, Any]) -> list[Evaluation]:
    """Train and evaluate every category of `root`; resuming, finished ones are only evaluated.

    The list is empty on all but the first of torchrun's processes.
    """
    from sprfast.data import datasets
    from sprfast.engine.engine import Engine
    from sprfast.formats import model as model_file
    from sprfast.system.process_group import ProcessGroup
    from sprfast.training.checkpoint import checkpoint_path

    group = ProcessGroup(keywords["process_timeout"])
    names = datasets.list_categories(root)
    categories = [datasets.load_category(root, name, keywords["preprocessing"]) for name in names]
    paths = [files.confined(output, f"{name}.safetensors") for name in names]
    if not (keywords["resume"] or keywords["force"]):
        for path in paths:
            files.require_free(path)
    evaluations = []
    for category, path in zip(categories, paths, strict=True):
        if keywords["resume"] and path.exists():
            model = model_file.load(path)
        else:
            model = _train(category, path, keywords | {"resume": keywords["resume"] and checkpoint_path(path).exists()})
        evaluation = evaluated(group, Engine(model, device=keywords["device"]), category)
        if evaluation:
            evaluations.append(evaluation)
    return evaluations


def _train(category: CategoryData, path: Path, keywords: dict[str, Any], advice: str = GO_ON) -> Model:
    from sprfast.data import images
    from sprfast.method.anomaly_map import skipped
    from sprfast.training import train as training

    with contextlib.suppress(InputError):  # of a picture that cannot be read: training names them all
        shape = images.load_image(category.train[0], keywords["preprocessing"]).pixels.shape
        if torchrun.is_first() and (warning := skipped(*shape[1:])):
            console.say(f"sprfast: {warning}")
    with console.training_bar(f"training {category.name}") as on_step:
        outcome = training.train(list(category.train), path, **keywords, on_step=on_step)
    if outcome.stopped_by:
        console.say(f"sprfast: stopped by {outcome.stopped_by.name} after step {outcome.step}; {advice}")
        raise typer.Exit(128 + outcome.stopped_by)
    assert outcome.model is not None  # as no signal stopped it
    return outcome.model
