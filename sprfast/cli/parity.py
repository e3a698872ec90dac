"""The command `parity`: a backend or an export beside the definition."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, PrecisionName, Runtime, SettingName
from sprfast.config import PUBLISHED
from sprfast.errors import InputError, ModelFileError

if TYPE_CHECKING:
    from sprfast.evaluation.parity import Report


def parity(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="A model file, with --images.")] = None,
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
    report = _report(model, images, golden, export, Runtime(backend, device, precision, setting))
    console.emit(report.to_json(), json_, lambda: _table(report))
    raise typer.Exit(0 if report.passed else 1)


def _report(
    model: Path | None, folder: Path | None, golden: Path | None, exported: Path | None, runtime: Runtime
) -> Report:
    """A parity report: against golden outputs, or against the definition on the images of a
    folder.
    """
    from sprfast.data import datasets
    from sprfast.evaluation import parity as checks
    from sprfast.formats import model as model_file

    if golden is not None and model is None and folder is None and exported is None:
        return checks.check_golden(golden, runtime.backend, runtime.device, runtime.precision)
    if golden is None and model is not None and folder is not None:
        paths = datasets.image_files([folder])
        if exported is not None:
            from sprfast.deploy import export
            from sprfast.engine.runner import Runner

            runner = dataclasses.replace(runtime, setting=PUBLISHED).open(exported)
            if not isinstance(runner, Runner):
                raise ModelFileError(f"{exported}: is a model file, not an export; run `sprfast export` on it first")
            return export.check(model_file.load(model), runner, paths)
        return checks.check_images(
            model_file.load(model).using(runtime.setting), paths, runtime.backend, runtime.device, runtime.precision
        )
    raise InputError(
        "parity: give either --golden DIR, or MODEL and --images DIR, and with these --export FILE for an export of it"
    )


def _table(report: Report) -> Table:
    """One line a number, with its limit."""
    title = (
        f"parity of {report.backend} ({report.precision}) on {report.device}: {'passed' if report.passed else 'FAILED'}"
    )
    table = Table("case", "quantity", "value", "limit", "", title=title)
    for row in report.rows:
        value = (row.reason or "-") if row.value is None else f"{row.value:.3g}"
        table.add_row(
            row.case,
            row.quantity,
            value,
            "-" if row.limit is None else f"{row.limit:.3g}",
            "ok" if row.passed else "FAILED",
        )
    return table
