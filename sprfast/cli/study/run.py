"""The command `study run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.data_source import Bad, Good, Recursive
from sprfast.cli.options import BackendName, Category, Device, Json
from sprfast.cli.study.given import labelled, say_next, tell_of_others
from sprfast.errors import InputError
from sprfast.system import files


def run(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[DATA] MODEL...",
            help="A data set or a category, with test images; models of one size, with several seeds, trained with "
            "--hold-back.",
        ),
    ],
    category: Category = None,
    good: Good = None,
    bad: Bad = None,
    recursive: Recursive = False,
    fit: Annotated[
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
    from sprfast.evaluation import calibration, unseen
    from sprfast.formats import model as model_file
    from sprfast.system import devices

    for path in filter(None, (output, figure)):
        files.check_writable(path)
    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    if fit and not os.path.isdir(fit):
        raise InputError(f"--fit {fit}: is not a folder")
    source, models = labelled(paths, category, good, bad, recursive)
    loaded = [(path, model_file.load(path)) for path in models]
    provenances = [model.provenance for _, model in loaded]
    given = source.load(loaded[0][1].preprocessing)
    tell_of_others(given, provenances)
    to_fit_on = datasets.image_files([fit], recursive) if fit else None
    if unseen.lacks_good(given):
        untrained = unseen.good(given, *provenances)
        to_fit_on, untrained = (to_fit_on, untrained) if fit else calibration.halves(untrained)
        given = unseen.with_good(given, untrained)
    where = devices.resolve(device)
    chosen = registry.choose(backend, where)
    rows = ROWS[:1] if quick else ROWS
    with console.counter("study") as on_progress:
        document = measure.study(
            loaded, given, to_fit_on, backend=chosen, device=where, seconds=seconds, rows=rows, on_progress=on_progress
        )
    if output:
        report.write(document, output)
    if figure:
        pictures.study(document, figure)
    console.emit(document, json_, lambda: report.table(document))
    if not json_:
        say_next(models, provenances, "--setting", "SETTING")
