"""The command `study curve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.data_source import Bad, Good, Recursive
from sprfast.cli.options import BackendName, Category, Device, Json
from sprfast.cli.study.given import labelled, say_next, tell_of_others
from sprfast.system import files


def curve(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[DATA] MODEL...",
            help="A data set or a category, with test images; models of one size, trained with --time-limit, by either "
            "recipe.",
        ),
    ],
    category: Category = None,
    good: Good = None,
    bad: Bad = None,
    recursive: Recursive = False,
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
    from sprfast.evaluation import unseen
    from sprfast.formats import model as model_file
    from sprfast.system import devices

    for path in filter(None, (output, figure)):
        files.check_writable(path)
    source, models = labelled(paths, category, good, bad, recursive)
    loaded = [(path, model_file.load(path)) for path in models]
    provenances = [model.provenance for _, model in loaded]
    given = source.load(loaded[0][1].preprocessing)
    tell_of_others(given, provenances)
    if unseen.lacks_good(given):
        given = unseen.with_good(given, unseen.good(given, *provenances))
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
    if not json_:
        say_next(models, provenances)
