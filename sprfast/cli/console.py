"""What the command line prints: data to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table

from sprfast.errors import InputError
from sprfast.system import torchrun
from sprfast.system.terminal import Terminal, shown

WIDEST = 200  # characters of a table where no terminal says how many there are
log = Terminal(stderr=True)
_DESCRIPTION = TextColumn("{task.description}", markup=False)
FIRST, EVERY = 3.0, 10.0  # seconds until the first line of progress where there is no terminal, and between two
_quiet = contextvars.ContextVar("quiet", default=False)
_tasks: list[Task] = []  # that go on, the innermost last
_shown: list[Callable[[], object]] = []  # what ends the display of them
_telling = threading.Lock()
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
    end_progress()
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


def note(message: str) -> None:
    """`say` what `--quiet` leaves out."""
    if not _quiet.get():
        say(message)


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


def duration(seconds: float) -> str:
    """For a person: 3 d 4 h, 2 h 5 min, 3.2 min or 12 s."""
    minutes = round(seconds / 60)
    if minutes >= 24 * 60:
        return f"{minutes // (24 * 60)} d {minutes % (24 * 60) // 60} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def say_next(*command: str) -> None:
    """What to do next: `sprfast` with these arguments, ready to be copied."""
    note(f"next: sprfast {shlex.join(command)}")


@contextlib.contextmanager
def told(quiet: bool, verbose: int) -> Iterator[None]:
    """How much is said: with `quiet` only warnings and errors; with `verbose` 1 what the library
    logs, with 2 details too.
    """
    before = _quiet.set(quiet)
    try:
        with _logged(logging.DEBUG if verbose > 1 else logging.INFO) if verbose else contextlib.nullcontext():
            yield
    finally:
        _quiet.reset(before)


@contextlib.contextmanager
def _logged(wanted: int) -> Iterator[None]:
    """Say what the library logs, from this level on."""
    logger, handler = logging.getLogger("sprfast"), _Said()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logger.level
    logger.setLevel(wanted)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print what is logged as a line for a person."""
        say(self.format(record))


@contextlib.contextmanager
def going_on(what: str) -> Iterator[Task]:
    """Show on stderr that `what` goes on: at once on a terminal, else in a line after `FIRST`
    seconds and then every `EVERY`. Of several inside one another the innermost is shown.

    Of torchrun's processes, which share one stderr, only the first shows it.
    """
    task = Task(what)
    _tasks.append(task)
    try:
        if len(_tasks) == 1 and torchrun.is_first() and not _quiet.get():
            with _shown_live() if log.is_terminal else _shown_in_lines():
                yield task
        else:
            yield task
    finally:
        _tasks.remove(task)


def end_progress() -> None:
    """Show no progress of this command any more: it prints from here on, or runs until it is
    stopped.
    """
    for end in _shown:
        end()


@contextlib.contextmanager
def _shown_live() -> Iterator[None]:
    columns = (SpinnerColumn(), _DESCRIPTION, BarColumn(), TextColumn("{task.fields[state]}"))
    options: dict[str, Any] = {"console": log, "transient": True, "redirect_stdout": False, "refresh_per_second": 4}
    with _Live(*columns, **options) as bar, contextlib.ExitStack() as ending:
        bar.add_task("", total=1.0, state="")
        ending.callback(_shown.clear)
        _shown.append(bar.stop)
        yield


class _Live(Progress):
    """One line on a terminal, of the innermost task."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown now."""
        if _tasks and self.tasks:
            at, (task,) = _tasks[-1], self.tasks
            task.description, task.completed, task.total = shown(at.what), at.fraction or 0.0, at.total
            task.fields["state"] = at.state or duration(at.seconds)
        yield from super().get_renderables()


@contextlib.contextmanager
def _shown_in_lines() -> Iterator[None]:
    ended = threading.Event()

    def tell() -> None:
        wait = FIRST
        while not ended.wait(wait):
            with _telling:
                if _tasks and not ended.is_set():
                    say(_tasks[-1].line())
            wait = EVERY

    thread = threading.Thread(target=tell, name="sprfast-progress", daemon=True)
    thread.start()
    _shown.append(ended.set)
    try:
        yield
    finally:
        _shown.clear()
        ended.set()
        thread.join()


class Task:
    """Something that goes on, and how far it is."""

    def __init__(self, what: str) -> None:
        self.what, self.state = what, ""
        self.fraction: float | None = None  # of the work that is done; None: not known
        self._began, self._first = time.monotonic(), (0.0, 0.0)

    @property
    def total(self) -> float | None:
        """1, as long as the fraction is known."""
        return None if self.fraction is None else 1.0

    @property
    def seconds(self) -> float:
        """Since its beginning."""
        return time.monotonic() - self._began

    def count(self, done: int, total: int) -> None:
        """Say that `done` of `total` are done."""
        fraction = done / total if total else 0.0
        if self.fraction is None:
            self._first = (self.seconds, fraction)  # what took long before is not counted
        at, before = self._first
        left = (self.seconds - at) / (fraction - before) * (1 - fraction) if fraction > before else None
        self.fraction = fraction
        self.state = f"{done}/{total}" + (f"  {duration(left)} left" if left is not None else "")

    def line(self) -> str:
        """For where there is no terminal."""
        share = "" if self.fraction is None else f"{self.fraction:.0%}  "
        return f"{self.what}: {share}{self.state or duration(self.seconds)}"


@contextlib.contextmanager
def counter(description: str) -> Iterator[Callable[..., None]]:
    """`going_on` with a count; call what it yields with (done, total), and what is going on where
    that changes.
    """
    with going_on(description) as task:

        def update(done: int, total: int, what: str = description) -> None:
            task.what = what
            task.count(done, total)

        yield update


@contextlib.contextmanager
def training_bar(description: str) -> Iterator[Callable[[Any], None]]:
    """`going_on` for `training.Progress`."""
    with going_on(description) as task:

        def update(at: Any) -> None:
            left = duration(at.seconds_left)
            task.state = f"step {at.step}  loss {at.loss:.1f}  {at.images_per_second:.1f} images/s  {left} left"
            task.fraction = at.fraction

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


# A process that is forked in the midst of a line would wait for ever for the locks of stderr.
os.register_at_fork(before=_telling.acquire, after_in_parent=_telling.release, after_in_child=_telling.release)
