"""The command `bench overhead`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, ModelOrExport, PrecisionName, Runtime


def overhead(
    model: ModelOrExport,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to send through.  [default: random ones]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for each of four measurements.")] = 20.0,
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    json_: Json = False,
) -> None:
    """What `Line` costs over the engine alone; exit 1 beyond a loss of 5 % or an added millisecond,
    or if a score differs.
    """
    from sprfast.bench.line import overhead as measuring
    from sprfast.data import datasets

    predictor = Runtime(backend, device, precision).open(model)
    with tempfile.TemporaryDirectory(prefix="sprfast-") as folder, console.counter("measuring") as on_progress:
        if images:
            pictures = measuring.Pictures.of_files(datasets.image_files([images]), predictor.preprocessing)
        else:
            pictures = measuring.Pictures.random(predictor, Path(folder))
        document = measuring.measure(predictor, pictures, seconds, on_progress=on_progress)
    console.emit(document, json_, lambda: measuring.table(document))
    raise typer.Exit(0 if measuring.passed(document) else 1)
