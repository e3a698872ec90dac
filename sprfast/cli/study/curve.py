"""The command `study curve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Category, Device, Json
from sprfast.system import files


def curve(
    data: Annotated[Path, typer.Argument(help="A data set or a category, with test images.")],
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Trained with --time-limit, of one size, by either recipe.")
    ],
    category: Category = None,
    backend: BackendName = "auto",
    device: Device = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write (JSON).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture of AUROC against minutes to write (PNG).")] = None,
    json_: Json = False,
) -> None:
    """AUROC, AUPRO and caught defects against minutes of training, for each recipe, scored by the
    published setting.
    """
    from sprfast.backends import registry
    from sprfast.bench.accuracy import curve as measuring
    from sprfast.bench.accuracy import pictures, report
    from sprfast.data import datasets
    from sprfast.formats import model as model_file
    from sprfast.system import devices

    for path in filter(None, (output, figure)):
        files.check_writable(path)
    loaded = [(path, model_file.load(path)) for path in models]
    given = datasets.load_category(data, category, loaded[0][1].preprocessing)
    where = devices.resolve(device)
    with console.counter("study curve") as on_progress:
        document = measuring.measure(
            loaded, given, backend=registry.choose(backend, where), device=where, on_progress=on_progress
        )
    if output:
        report.write(document, output)
    if figure:
        pictures.curve(document, figure)
    console.emit(document, json_, lambda: measuring.table(document))
