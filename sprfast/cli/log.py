"""The group `log` with its command: what a log of verdicts says of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.command import add
from sprfast.cli.options import Json
from sprfast.errors import CheckFailedError

log = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Logs of verdicts, as `predict --log` and a line write them."
)


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="The log; files that it has filled before are found beside it.")
    ],
    first: Annotated[
        int, typer.Option(min=1, help="Number of the first record, where files before it were put away.")
    ] = 1,
    head: Annotated[
        str | None, typer.Option(help="Hash that an earlier `verify` printed: that record must still be there.")
    ] = None,
    json_: Json = False,
) -> None:
    """Check that no line of a log was changed, deleted, reordered or cut; exit 1 with the first one
    that was.
    """
    from sprfast.formats import log_verification

    with console.counter("verifying"):
        found = log_verification.verify(path, first=first, head=head)
    console.emit(dataclasses.asdict(found), json_)
    if found.problem:
        raise CheckFailedError(found.problem)


add(log, "verify", verify, "log verify verdicts.jsonl")
