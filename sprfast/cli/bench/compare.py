"""The command `bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import Json


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="A report that `bench` wrote.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="A later one of the same work.")],
    regression: Annotated[float, typer.Option(help="Share of a speed that may be lost.")] = 0.1,
    json_: Json = False,
) -> None:
    """Speed of one report relative to another, with 95 % intervals; exit 1 on a regression."""
    from sprfast.bench.core import compare as comparing
    from sprfast.bench.core import report_file

    comparison = comparing.compare(report_file.load(old), report_file.load(new), regression=regression)
    console.emit(comparison.to_json(), json_, comparison.table)
    raise typer.Exit(1 if comparison.regressions else 0)
