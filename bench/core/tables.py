"""Tables of figures in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Column, Table


def empty(headings: Sequence[str], title: str | None = None, *, first: Column | None = None) -> Table:
    """No rows yet: a column of names (default: candidates), and figures below `headings`."""
    figures = (Column(heading, justify="right", no_wrap=True) for heading in headings)
    names = first or Column("candidate", no_wrap=True)
    return Table(names, *figures, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def cell(value: float | None, spec: str) -> str:
    """A figure, or a dash for what is not known."""
    return "-" if value is None else format(value, spec)
