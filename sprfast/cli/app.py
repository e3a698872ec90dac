"""The command line: every command reads its options, calls the library and prints what it returns.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done; 1 a check did not hold or
an image ended in ERROR; 2 usage or input; 3 a missing driver, device or library; 128 + n stopped by
signal n.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sprfast._version import __version__
from sprfast.cli import console
from sprfast.cli.bench.group import bench
from sprfast.cli.calibrate import calibrate
from sprfast.cli.demo import demo
from sprfast.cli.doctor import doctor
from sprfast.cli.evaluate import evaluate
from sprfast.cli.export import export
from sprfast.cli.import_checkpoint import import_checkpoint
from sprfast.cli.info import info
from sprfast.cli.kernels import kernels
from sprfast.cli.parity import parity
from sprfast.cli.predict import predict
from sprfast.cli.soak import soak
from sprfast.cli.study.group import study
from sprfast.cli.train import train
from sprfast.errors import SprfastError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score-based anomaly detection for production lines.",
)


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


for command, example in (
    (train, "train mvtec --category screw --time-limit 20m -o screw.safetensors"),
    (evaluate, "evaluate screw.safetensors mvtec --category screw --figure screw.png"),
    (import_checkpoint, "import screw.pth -o screw.safetensors"),
    (info, "info screw.safetensors"),
    (calibrate, "calibrate screw.safetensors held-back-good --false-reject-rate 0.01"),
    (parity, "parity screw.safetensors --images line --backend onnxruntime"),
    (predict, "predict screw.safetensors line/*.png -o results"),
    (export, "export screw.safetensors --to onnx -o screw.onnx"),
    (soak, "soak screw.safetensors --frames 1000000 --images held-back-good -o soak.json"),
    (kernels, "kernels --arch sm_80,sm_90"),
    (demo, "demo -o demo-output"),
    (doctor, "doctor --json"),
):
    app.command(example.split()[0], epilog=f"Example: sprfast {example}")(command)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")
