"""Tables of figures in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Column, Table

PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "int8")  # all that a candidate runs in


def empty(headings: Sequence[str], title: str | None = None, *, first: Column | None = None) -> Table:
    """No rows yet: a column of names (default: candidates), and figures below `headings`."""
    figures = (Column(heading, justify="right", no_wrap=True) for heading in headings)
    names = first or Column("candidate", no_wrap=True)
    return Table(names, *figures, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def cell(value: float | None, spec: str) -> str:
    """A figure, or a dash for what is not known."""
    return "-" if value is None else format(value, spec)


def by_precision(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each precision of a report with its candidates, in the order of `PRECISIONS`."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        found.setdefault(entry["precision"], {})[name] = entry
    yield from sorted(found.items(), key=lambda group: PRECISIONS.index(group[0]))
