"""The command line: every command reads its options, calls the library and prints what it returns.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done; 1 a check did not hold or
an image ended in ERROR; 2 usage or input; 3 a missing driver, device or library; 128 + n stopped by
signal n.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sprfast._version import __version__
from sprfast.cli import console
from sprfast.cli.cli_bench import bench
from sprfast.cli.cli_predict import export, predict
from sprfast.cli.cli_study import study
from sprfast.cli.options import (
    BackendName,
    Category,
    Device,
    Json,
    ModelOrExport,
    PrecisionName,
    ProcessTimeout,
    SettingName,
)
from sprfast.errors import InputError, SprfastError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score-based anomaly detection for production lines.",
)

Size = Annotated[int, typer.Option(help="Pixels at the network's input.")]
SizePolicy = Annotated[
    str, typer.Option(help="fit: shorter side to --size; stretch: a square; refuse: square images only.")
]
BitDepth = Annotated[int, typer.Option(help="Significant bits of 16-bit images, 8 to 16.")]
Alpha = Annotated[str, typer.Option(help="Transparent images: refuse, or composite over black.")]
Orientation = Annotated[str, typer.Option(help="EXIF orientation: exif (honour it) or ignore.")]
Frames = Annotated[str, typer.Option(help="Animated and multi-page files: refuse, or first.")]
Levels = Annotated[
    list[str] | None, typer.Option("--level", help="A sigma level T:DRAWS[:WEIGHT]; repeatable.  [default: 0.001:3]")
]


def main() -> None:
    """Run the command line; an expected error is one line on stderr and an exit code."""
    try:
        app()
    except SprfastError as error:
        console.say(f"sprfast: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        console.say(f"sprfast: {error.filename or 'system'}: {error.strerror or error}")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog="Example: sprfast train mvtec --category screw --time-limit 20m -o screw.safetensors")
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
    seed: Annotated[int, typer.Option(help="Of weights, batches, images held back and all noise.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that decode images; 0: none.")] = 1,
    checkpoint_every: Annotated[str, typer.Option(help="Time between checkpoints.")] = "5m",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    process_timeout: ProcessTimeout = "5m",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Train a model on images of good parts; under torchrun, on several processes."""
    from sprfast.cli import commands
    from sprfast.config import RECIPES, NetworkConfig, TrainingConfig

    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: not known, choose from {', '.join(RECIPES)}")
    chosen = RECIPES[recipe] | {
        name: value
        for name, value in (("batch_size", batch_size), ("learning_rate", learning_rate))
        if value is not None
    }
    limits = {"epochs": epochs, "steps": steps, "time_limit": console.seconds(time_limit) if time_limit else None}
    given = {name: value for name, value in limits.items() if value is not None}
    if given and "epochs" not in given:
        given["epochs"] = 0
    training = TrainingConfig(hold_back=hold_back, seed=seed, **chosen, **given)  # type: ignore[arg-type]
    job = commands.TrainingJob(
        NetworkConfig(base_width=width),
        _preprocessing(size, size_policy, bit_depth, alpha, orientation, frames),
        _schedule(level),
        training,
        device=device,
        workers=workers,
        checkpoint_every=console.seconds(checkpoint_every),
        resume=resume,
        process_timeout=console.seconds(process_timeout),
    )
    if category == "all":
        evaluations = commands.train_all(data, output or Path("."), job)
        if evaluations:
            _print_evaluations(evaluations, json_)
    else:
        summary = commands.train_one(data, category, output, job)
        if summary:
            console.emit(summary, json_, lambda: console.fields_table(summary))


@app.command(epilog="Example: sprfast evaluate screw.safetensors mvtec --category screw --figure screw.png")
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
    from sprfast.cli import commands
    from sprfast.cli.predict_commands import Runtime

    schedule = _schedule(level) if level else None
    runtime = Runtime(backend, device, precision, setting)
    evaluations = commands.evaluate(model, data, category, figure, schedule, runtime, console.seconds(process_timeout))
    if evaluations:
        _print_evaluations(evaluations, json_)


@app.command("import", epilog="Example: sprfast import screw.pth -o screw.safetensors")
def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="AUTHORS.pth", help="A checkpoint of the published code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")],
    size: Size = 192,
    size_policy: SizePolicy = "fit",
    bit_depth: BitDepth = 16,
    alpha: Alpha = "refuse",
    orientation: Orientation = "exif",
    frames: Frames = "refuse",
    level: Levels = None,
    json_: Json = False,
) -> None:
    """Turn a published checkpoint into a model file; nothing in it is executed."""
    from sprfast.cli import commands
    from sprfast.formats import model as model_file

    preprocessing = _preprocessing(size, size_policy, bit_depth, alpha, orientation, frames)
    model = model_file.import_checkpoint(checkpoint, preprocessing=preprocessing, schedule=_schedule(level))
    model_file.save(output, model)
    summary = commands.describe(model, output)
    console.emit(summary, json_, lambda: console.fields_table(summary))


@app.command(epilog="Example: sprfast info screw.safetensors")
def info(model: ModelOrExport, json_: Json = False) -> None:
    """What a model file or an export holds, after checking every hash in it."""
    from sprfast.cli import commands

    summary = commands.info(model)
    console.emit(summary, json_, lambda: commands.info_table(summary))


@app.command(epilog="Example: sprfast calibrate screw.safetensors held-back-good --false-reject-rate 0.01")
def calibrate(
    model: ModelOrExport,
    good: Annotated[
        Path | None, typer.Argument(metavar="GOOD_DIR", help="Good images that were not trained on.")
    ] = None,
    false_reject_rate: Annotated[float, typer.Option(help="Share of good parts that may be rejected.")] = 0.001,
    false_pixel_rate: Annotated[
        float | None, typer.Option(help="Share of a good part's pixels that may be marked.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Set the threshold by hand instead.")] = None,
    setting: Annotated[
        str, typer.Option(help="published; single or field, which are fitted; or a new one with --level.")
    ] = "published",
    fit: Annotated[
        Path | None, typer.Option(help="Good images to fit the setting on.  [default: every other one of GOOD_DIR]")
    ] = None,
    level: Levels = None,
    noise: Annotated[str, typer.Option(help="Of a new setting: gaussian, signs or none.")] = "gaussian",
    field: Annotated[
        bool, typer.Option("--field", help="Of a new setting: divide the score by the error field.")
    ] = False,
    balance: Annotated[
        bool, typer.Option("--balance", help="Of a new setting: weigh its levels alike over good images.")
    ] = False,
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Set the threshold of a model or an export from held-back good images by the conformal
    quantile, or by hand.
    """
    from sprfast.cli import calibrate_commands
    from sprfast.cli.predict_commands import Runtime

    if noise == "antithetic":  # which a stored schedule may still have
        raise InputError("--noise antithetic: is gone, since it gained nothing; choose from gaussian, signs, none")
    if noise != "gaussian" and not level:
        raise InputError(f"--noise {noise}: is for a new --setting, give its --level too")
    schedule = _schedule(level, noise) if level else None
    request = calibrate_commands.Request(
        good, false_reject_rate, false_pixel_rate, threshold, setting, fit, schedule, field, balance
    )
    summary = calibrate_commands.calibrate(model, request, Runtime(backend, device, precision))
    console.emit(summary, json_, lambda: console.fields_table(summary))


@app.command(epilog="Example: sprfast parity screw.safetensors --images line --backend onnxruntime")
def parity(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="A model file, with --images.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to send through backend and definition.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Folder with golden.json: compare with the published code's outputs.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="An export of MODEL that is to be compared, instead of a backend.")
    ] = None,
    setting: SettingName = "published",
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Compare a backend with the definition, or with outputs of the published code; exit 1 beyond
    tolerance.
    """
    from sprfast.cli import commands
    from sprfast.cli.predict_commands import Runtime

    report = commands.parity(model, images, golden, export, Runtime(backend, device, precision, setting))
    console.emit(report.to_json(), json_, lambda: commands.parity_table(report))
    raise typer.Exit(0 if report.passed else 1)


app.command(epilog="Example: sprfast predict screw.safetensors line/*.png -o results")(predict)
app.command(epilog="Example: sprfast export screw.safetensors --to onnx -o screw.onnx")(export)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


@app.command(epilog="Example: sprfast soak screw.safetensors --frames 1000000 --images held-back-good -o soak.json")
def soak(
    model: ModelOrExport,
    frames: Annotated[int, typer.Option(help="Frames to send through.")] = 100_000,
    faults: Annotated[float, typer.Option(help="Share of them that something befalls.")] = 0.01,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images of one size to show.  [default: made-up ones]")
    ] = None,
    producers: Annotated[int, typer.Option(help="Threads that submit, each with a camera.")] = 4,
    warm_up: Annotated[
        int | None, typer.Option(help="Frames before growth counts.  [default: 50000, at most half]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of made-up images and faults.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write (JSON).")] = None,
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    json_: Json = False,
) -> None:
    """A line under load and faults: every answer is checked, and memory, threads and descriptors
    watched; exit 1 if a check fails.
    """
    from sprfast.bench.line.soak import SoakOptions, report
    from sprfast.cli import soak_commands
    from sprfast.cli.predict_commands import Runtime

    options = SoakOptions(frames, faults, producers, warm_up, seed)
    document = soak_commands.run(model, Runtime(backend, device, precision), options, images, output)
    console.emit(document, json_, lambda: report.table(document))
    for failure in report.failures(document):
        console.say(f"sprfast: {failure}")
    raise typer.Exit(report.exit_code(document))


@app.command(epilog="Example: sprfast kernels --arch sm_80,sm_90")
def kernels(
    arch: Annotated[str, typer.Option(help="Architectures, with commas.")] = "sm_80,sm_86,sm_89,sm_90,sm_100",
    precision: Annotated[str, typer.Option(help="Precisions, with commas.")] = "float32,bfloat16,float16",
    size: Annotated[int, typer.Option(help="Pixels at the network's input.")] = 192,
    json_: Json = False,
) -> None:
    """Compile every kernel for GPUs that need not be here: registers, spills, shared memory, width
    of accesses; exit 1 on a problem.
    """
    from sprfast.cli import kernels as kernel_report

    report = kernel_report.compile_all(arch.split(","), precision.split(","), size)
    console.emit(report.to_json(), json_, report.table)
    raise typer.Exit(1 if report.problems else 0)


@app.command(epilog="Example: sprfast demo -o demo-output")
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
    from sprfast.cli import demo as scenario

    outcome = scenario.run(output, seed)
    console.emit(outcome.to_json(), json_, outcome.render)


@app.command(epilog="Example: sprfast doctor --json")
def doctor(json_: Json = False) -> None:
    """Versions, devices, and which backend can run or why not."""
    from sprfast.cli import commands

    summary = commands.doctor()
    console.emit(summary, json_, lambda: console.fields_table(summary))


def _print_evaluations(evaluations: list[Any], as_json: bool) -> None:
    from sprfast.cli import commands

    console.emit(commands.evaluations_json(evaluations), as_json, lambda: commands.evaluations_table(evaluations))


def _preprocessing(size: int, size_policy: str, bit_depth: int, alpha: str, orientation: str, frames: str) -> Any:
    from sprfast.config import Preprocessing

    defaults = dataclasses.asdict(Preprocessing())
    given = {
        "size": size,
        "size_policy": size_policy,
        "bit_depth": bit_depth,
        "alpha": alpha,
        "orientation": orientation,
        "frames": frames,
    }
    return Preprocessing.from_json(defaults | given)


def _schedule(levels: list[str] | None, noise: str = "gaussian") -> Any:
    """Sigma levels written as T:DRAWS or T:DRAWS:WEIGHT."""
    from sprfast.config import Level, Schedule

    if not levels:
        return Schedule()
    parsed = []
    for text in levels:
        parts = text.split(":")
        try:
            t, draws, weight = float(parts[0]), int(parts[1]), float(parts[2]) if len(parts) > 2 else 1.0
        except (ValueError, IndexError) as error:
            raise InputError(f"--level {text!r}: write T:DRAWS or T:DRAWS:WEIGHT, for example 0.001:3") from error
        parsed.append(Level(t, draws, weight))
    return Schedule.from_json({"levels": [level.to_json() for level in parsed], "noise": noise})
