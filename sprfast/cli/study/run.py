"""The command `study run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Category, Device, Json
from sprfast.errors import InputError
from sprfast.system import files


def run(
    data: Annotated[Path, typer.Argument(help="A data set or a category, with test images.")],
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Trained with --hold-back, of one size, with several seeds."),
    ],
    category: Category = None,
    good: Annotated[
        Path | None, typer.Option(help="Good images to fit on.  [default: those that each training held back]")
    ] = None,
    backend: BackendName = "auto",
    device: Device = None,
    seconds: Annotated[
        float, typer.Option(help="For the measurement of times, of one image a call and as much of a batch.")
    ] = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help="Only the named settings: a quarter of the passes.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write (JSON).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture of AUROC against time to write (PNG).")] = None,
    json_: Json = False,
) -> None:
    """AUROC, AUPRO, caught defects and time of draws, levels, noises and settings; and whether
    thresholds keep their rates.
    """
    from sprfast.backends import registry
    from sprfast.bench.accuracy import measure, pictures, report
    from sprfast.bench.accuracy.rows import ROWS
    from sprfast.data import datasets
    from sprfast.formats import model as model_file
    from sprfast.system import devices

    for path in filter(None, (output, figure)):
        files.check_writable(path)
    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    if good and not os.path.isdir(good):
        raise InputError(f"--good {good}: is not a folder")
    loaded = [(path, model_file.load(path)) for path in models]
    given = datasets.load_category(data, category, loaded[0][1].preprocessing)
    paths = datasets.image_files([good]) if good else None
    where = devices.resolve(device)
    chosen = registry.choose(backend, where)
    rows = ROWS[:1] if quick else ROWS
    with console.counter("study") as on_progress:
        document = measure.study(
            loaded, given, paths, backend=chosen, device=where, seconds=seconds, rows=rows, on_progress=on_progress
        )
    if output:
        report.write(document, output)
    if figure:
        pictures.study(document, figure)
    console.emit(document, json_, lambda: report.table(document))
