"""The command `study show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console
from sprfast.cli.options import Json
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT", help="Reports of `sprfast study` and `sprfast study curve`.")
    ],
    figure: Annotated[
        Path | None, typer.Option(help="Picture of the named settings' AUROC against time to write (PNG).")
    ] = None,
    json_: Json = False,
) -> None:
    """One report again, or the named settings of several; and every curve."""
    from rich.console import Group

    from sprfast.bench.accuracy import curve, pictures, report

    if figure:
        files.check_writable(figure)
    documents = [_whole(path) for path in reports]
    studies = [each for each in documents if not report.is_curve(each)]
    shown: list[RenderableType] = [curve.table(each) for each in documents if report.is_curve(each)]
    if studies:
        shown.insert(0, report.table(studies[0]) if len(studies) == 1 else report.overview(studies))
    if figure:
        if not studies:
            raise InputError(f"--figure {figure}: needs a report of `sprfast study run`")
        pictures.overview(studies, figure)
    console.emit({"reports": documents}, json_, lambda: Group(*shown))


def _whole(path: Path) -> dict[str, Any]:
    """The report in a file, of which its tables can be made."""
    from rich.errors import NotRenderableError

    from sprfast.bench.accuracy import curve, report

    document = report.load(path)
    try:
        if report.is_curve(document):
            curve.table(document)
        else:
            report.table(document)
            report.overview([document])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, NotRenderableError) as error:
        raise InputError(f"{path}: is a damaged report of `sprfast study` ({type(error).__name__}: {error})") from error
    return document
