"""The command `bench show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import Json
from sprfast.errors import InputError


def show(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report that `bench` wrote.")],
    page: Annotated[Path | None, typer.Option(help="Write its page here (HTML).")] = None,
    json_: Json = False,
) -> None:
    """Print a report again, or make its page."""
    from rich.errors import NotRenderableError

    from sprfast.bench.core import report as tables
    from sprfast.bench.core import report_file
    from sprfast.bench.page import render

    document = report_file.load(report)
    try:
        table = tables.table(document)
        if page:
            render.write(document, page)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, NotRenderableError) as error:
        raise InputError(
            f"{report}: is damaged, or not a report that `sprfast bench` wrote ({type(error).__name__}: {error})"
        ) from error
    if page:
        console.note(f"page: {page}")
    console.emit(document, json_, lambda: table)
