"""The command `report`: a page of what a line has logged."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.errors import CheckFailedError, InputError
from sprfast.system import files


def report(
    shift: Annotated[Path, typer.Option("--shift", metavar="FILE", help="The log of verdicts to make a page of.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page (HTML), which needs no network.")],
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Answers from this time on, such as 2026-11-30T06:00 (local)."),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Answers before this time.")] = None,
) -> None:
    """Make a page of a shift: rejects over time, drift of the scores, promised and seen rate; exit
    1 where the log is not as it was written.
    """
    from sprfast.evaluation import shift as pages

    files.refuse_source(output, [shift])
    files.check_writable(output)
    with console.counter("reading"):
        found = pages.read(shift, _time("--from", since), _time("--to", until))
    files.write_bytes(output, pages.render(found, shift.name).encode(errors="replace"))
    console.note(f"page: {output}")
    if found.verification.problem:
        raise CheckFailedError(found.verification.problem)


def _time(option: str, text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except ValueError as error:
        raise InputError(f"{option} {text!r}: is no time; write for example 2026-11-30T06:00") from error
