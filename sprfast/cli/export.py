"""The command `export`: a file that runs without PyTorch, or a repository for a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sprfast.cli import console
from sprfast.cli.info import describe_export, export_table
from sprfast.cli.options import Json, PrecisionName, SettingName
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.deploy.export import Request
    from sprfast.deploy.triton_server.repository import Serving

REPOSITORY = "triton-repository"  # what `--to` calls it


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file; for triton-repository also an export of one.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write; for triton-repository a folder that does not exist yet."),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="onnx (onnxruntime and others), tensorrt (ONNX for its builder), plan (our CPU kernels), or "
            "triton-repository "
            "(for NVIDIA's Triton Inference Server; of an ONNX export also the model NAME-onnx for its onnxruntime "
            "backend)."
        ),
    ],
    size: Annotated[
        str | None, typer.Option(help="Pixels at the network's input, N or HEIGHTxWIDTH.  [default: the model's]")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a call that the graph is fixed to.  [default: any]")] = None,
    precision: PrecisionName = "float32",
    quantize: Annotated[
        str | None, typer.Option(help="int8 or float8: quantize the convolutions but the first; needs --images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Good images, not trained on, to compare scores on and to find scales.")
    ] = None,
    setting: SettingName = "published",
    backend: Annotated[
        str | None, typer.Option(help="triton-repository: what computes there.  [default: auto]")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="triton-repository: cpu, cuda (each GPU) or cuda:N.  [default: cuda where the server has one]"
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="triton-repository: images that are scored together.  [default: 16]")
    ] = None,
    queue: Annotated[int | None, typer.Option(help="triton-repository: requests that may wait.  [default: 64]")] = None,
    queue_timeout: Annotated[
        str | None, typer.Option(help="triton-repository: how long one may wait.  [default: 30s]")
    ] = None,
    instances: Annotated[int | None, typer.Option(help="triton-repository: processes a device.  [default: 1]")] = None,
    json_: Json = False,
) -> None:
    """A file that runs without PyTorch, with a certificate that it scores like the model; exit 1,
    and no file, where it does not.
    """
    form = {"size": size, "batch": batch, "quantize": quantize, "images": images}
    queueing = {"max_batch": max_batch, "queue": queue, "queue_timeout": queue_timeout}
    served = {"backend": backend, "device": device, "instances": instances, **queueing}
    if to == REPOSITORY:
        _refuse(to, form)
        summary = _write_repository(model, output, _serving(precision, setting, served))
        console.emit(summary, json_)
    else:
        _refuse(to, served)
        summary = _export(model, output, _request(to, size, batch, precision, quantize), images, setting)
        console.emit(summary, json_, lambda: export_table(summary))


def _request(to: str, size: str | None, batch: int | None, precision: str, quantize: str | None) -> Request:
    """What the options ask for.

    Raises:
        InputError: one of them is not allowed.
    """
    from sprfast.deploy.export import Request, Target

    if to not in get_args(Target):
        raise InputError(f"--to {to}: not known, choose from {', '.join(get_args(Target))}, {REPOSITORY}")
    return Request(to, _size(size), batch, precision, quantize)  # type: ignore[arg-type]  # it checks them


def _export(model: Path, output: Path, asked: Request, images: Path | None, setting: str) -> dict[str, Any]:
    """Export a model with one of its settings, and describe the file."""
    from sprfast.data import datasets
    from sprfast.deploy import export as exporting
    from sprfast.formats import model as model_file

    paths = datasets.image_files([images]) if images else []
    files.refuse_source(output, [model, *paths])
    return describe_export(output, exporting.export(model_file.load(model).using(setting), output, asked, paths))


def _refuse(to: str, options: Mapping[str, Any]) -> None:
    """Raise InputError where an option is given that exports of another kind have."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: --to {to} has no such option")


def _serving(precision: str, setting: str, options: Mapping[str, Any]) -> Serving:
    """What the options ask of a server; None: its default.

    Raises:
        InputError: one of them is not allowed.
    """
    from sprfast.deploy.triton_server.repository import Serving

    given = {name: value for name, value in options.items() if value is not None}
    if "queue_timeout" in given:
        given["queue_timeout"] = console.seconds(given["queue_timeout"])
    return Serving(precision=precision, setting=setting, **given)  # type: ignore[arg-type]  # it checks them


def _write_repository(model: Path, output: Path, how: Serving) -> dict[str, Any]:
    """Write a repository for Triton Inference Server, and say what is in it."""
    from sprfast.deploy.triton_server import repository as triton_repository

    return {"repository": str(output), "models": triton_repository.write(output, model, how), **dataclasses.asdict(how)}


def _size(text: str | None) -> tuple[int, int] | None:
    """N or HEIGHTxWIDTH."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and (width or height).isdecimal()):
        raise InputError(f"--size {text!r}: write N or HEIGHTxWIDTH in pixels, for example 192 or 192x256")
    return int(height), int(width or height)
