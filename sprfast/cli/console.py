"""What the command line prints: data to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from sprfast.errors import InputError
from sprfast.system import torchrun
from sprfast.system.terminal import Terminal, shown

WIDEST = 200  # characters of a table where no terminal says how many there are
log = Terminal(stderr=True)
_DESCRIPTION = TextColumn("{task.description}", markup=False)
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def emit(
    document: Any,
    as_json: bool,
    render: Callable[[], RenderableType] | None = None,
    results: Iterable[Any] | None = None,
) -> None:
    """Print `document` as JSON, or what `render` makes for a person: by default a line a field.

    In a file or a pipe a table is up to `WIDEST` wide. `results` become a field of the JSON, one by
    one, since there may be millions.

    Raises:
        InputError: stdout cannot be written.
        BrokenPipeError: its reader is gone.
    """
    try:
        if as_json:
            sys.stdout.writelines(_json(document, results))
        else:
            _print(render() if render else fields_table(document))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise InputError(f"standard output: cannot be written ({error.strerror})") from error


def _json(document: Any, results: Iterable[Any] | None) -> Iterator[str]:
    text = json.dumps(document, indent=1, allow_nan=False)
    if results is None:
        yield text + "\n"
        return
    yield text.removesuffix("\n}") + ',\n "results": ['
    for number, row in enumerate(results):
        yield (",\n  " if number else "\n  ") + json.dumps(row, allow_nan=False)
    yield "\n ]\n}\n"


def discard_output() -> None:
    """Let go what is left of the answer: Python would write it, and fail again, as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(rendered: RenderableType) -> None:
    console = Terminal()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        wanted = console.measure(rendered, options=console.options.update(max_width=WIDEST)).maximum
        console.width = max(console.width, wanted)
    console.print(rendered)


def say(message: str) -> None:
    """One line for a person, to stderr."""
    log.print(message, soft_wrap=True)


def seconds(text: str) -> float:
    """A duration such as 20m, 1h30m, 90s or 500ms in seconds.

    Raises:
        InputError: it is not a positive duration.
    """
    total, rest = 0.0, text.strip().lower()
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        letters = len(rest[digits:]) - len(rest[digits:].lstrip("mshd"))
        number, unit, rest = rest[:digits], rest[digits : digits + letters], rest[digits + letters :]
        if number.count(".") > 1 or not number.strip(".") or unit not in _UNITS:
            total = 0.0
            break
        total += float(number) * _UNITS[unit]
    if total <= 0:
        raise InputError(f"{text!r} is not a duration; write for example 20m, 1h30m, 90s or 500ms")
    return total


@contextlib.contextmanager
def counter(description: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; call what it yields with (done, total), and what is going on where
    that changes.

    Of torchrun's processes, which share one stderr, only the first shows it.
    """
    columns = (_DESCRIPTION, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=log, transient=True, disable=not (log.is_terminal and torchrun.is_first())
    ) as progress:
        task = progress.add_task(shown(description), total=None)

        def update(done: int, total: int, what: str = description) -> None:
            progress.update(task, completed=done, total=total, description=shown(what))

        yield update


@contextlib.contextmanager
def training_bar(description: str) -> Iterator[Callable[[Any], None]]:
    """A progress bar on stderr for `training.Progress`; a line a minute where stderr is no
    terminal.

    As `counter`, only in the first of torchrun's processes.
    """
    if not torchrun.is_first():
        yield lambda _: None
        return
    columns = (_DESCRIPTION, BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[state]}"))
    reported = -math.inf
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        task = progress.add_task(shown(description), total=1.0, state="")

        def update(at: Any) -> None:
            nonlocal reported
            left = f"{at.seconds_left / 60:.1f} min" if at.seconds_left >= 60 else f"{at.seconds_left:.0f} s"
            state = f"step {at.step}  loss {at.loss:.1f}  {at.images_per_second:.1f} images/s  {left} left"
            progress.update(task, completed=at.fraction, state=state)
            if not log.is_terminal and time.monotonic() - reported >= 60:
                reported = time.monotonic()
                say(f"{description}: {at.fraction:4.0%}  {state}")

        yield update


def fields_table(fields: dict[str, Any], title: str | None = None) -> Table:
    """Two columns: name and value; nested objects one line a field."""
    table = Table("", Column(overflow="fold"), title=title, show_header=False, box=None)
    for name, value in _flat(fields):
        table.add_row(name, "-" if value is None else str(value))
    return table


def _flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
