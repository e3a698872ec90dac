"""The command line: every command reads its options, calls the library and prints what it returns.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done; 1 a check did not hold or
an image ended in ERROR; 2 usage or input; 3 a missing driver, device or library; 128 + n stopped by
signal n.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from sprfast._version import __version__
from sprfast.cli import console
from sprfast.cli.bench.group import bench
from sprfast.cli.calibrate import calibrate
from sprfast.cli.command import CONTEXT, add
from sprfast.cli.demo import demo
from sprfast.cli.doctor import doctor
from sprfast.cli.evaluate import evaluate
from sprfast.cli.export import export
from sprfast.cli.import_checkpoint import import_checkpoint
from sprfast.cli.info import info
from sprfast.cli.kernels import kernels
from sprfast.cli.log import log
from sprfast.cli.parity import parity
from sprfast.cli.predict import predict
from sprfast.cli.report import report
from sprfast.cli.soak import soak
from sprfast.cli.station import station
from sprfast.cli.study.group import study
from sprfast.cli.train import train
from sprfast.errors import SprfastError, SprfastWarning
from sprfast.system import libraries

_show_any_warning = warnings.showwarning

app = typer.Typer(
    context_settings=CONTEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score-based anomaly detection for production lines.",
)


def main() -> None:
    """Run the command line; an expected error is one line on stderr and an exit code."""
    _open_streams()
    stdout = sys.stdout
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(prog_name="sprfast")
    except SprfastError as error:
        console.say(f"sprfast: {error}")
        sys.exit(error.exit_code)
    except ImportError as error:
        if (refusal := libraries.refusal(error)) is None:
            raise
        console.say(f"sprfast: {refusal}")
        sys.exit(refusal.exit_code)
    except OSError as error:
        console.say(f"sprfast: {error.filename or 'system'}: {error.strerror or error}")
        sys.exit(2)
    except SystemExit:
        if sys.stdout is stdout:
            raise
        console.discard_output()  # typer has put a stream of its own there, since the reader is gone
        sys.exit(141)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **options: Any
) -> None:
    """Ours in a line; others as Python prints them, with the place in the code."""
    if issubclass(category, SprfastWarning):
        console.say(f"sprfast: {message}")
    else:
        _show_any_warning(message, category, filename, lineno, *rest, **options)


def _open_streams() -> None:
    """See to it that whatever is said can be written, and in no file that is opened later.

    Of a standard stream that was closed the next file would get the number, and with it what
    libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        console.say("sprfast: standard output is closed; send it to /dev/null where nobody is to read it")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    (report, "report --shift verdicts.jsonl -o shift.html"),
    (export, "export screw.safetensors --to onnx -o screw.onnx"),
    (station, "station screw.safetensors --camera 0 --deadline 200ms"),
    (soak, "soak screw.safetensors --frames 1000000 --images held-back-good -o soak.json"),
    (kernels, "kernels --arch sm_80,sm_90"),
    (demo, "demo -o demo-output"),
    (doctor, "doctor --json"),
):
    add(app, example.split()[0], command, example)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")
app.add_typer(log, name="log")
