"""The command `study`: models and images in, a report out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.errors import NotRenderableError

from sprfast.backends import registry as backends
from sprfast.bench.accuracy import curve, measure, pictures, report
from sprfast.bench.accuracy.rows import ROWS
from sprfast.cli import console
from sprfast.data import datasets as data
from sprfast.errors import InputError
from sprfast.formats import model as model_file
from sprfast.system import devices, files


def run(
    root: Path,
    category: str | None,
    models: Sequence[Path],
    good: Path | None,
    backend: str,
    device: str | None,
    seconds: float,
    quick: bool,
    output: Path | None,
    picture: Path | None,
) -> dict[str, Any]:
    """The report, also written to `output`, and drawn to `picture`.

    Raises:
        InputError: a file cannot be used.
        BackendError: the backend cannot run here.
    """
    _check_writable(output, picture)
    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    if good and not os.path.isdir(good):
        raise InputError(f"--good {good}: is not a folder")
    loaded = [(path, model_file.load(path)) for path in models]
    given = data.load_category(root, category, loaded[0][1].preprocessing)
    paths = data.image_files([good]) if good else None
    where = devices.resolve(device)
    chosen = backends.choose(backend, where)
    rows = ROWS[:1] if quick else ROWS
    with console.counter("study") as on_progress:
        document = measure.study(
            loaded, given, paths, backend=chosen, device=where, seconds=seconds, rows=rows, on_progress=on_progress
        )
    if output:
        report.write(document, output)
    if picture:
        pictures.study(document, picture)
    return document


def run_curve(
    root: Path,
    category: str | None,
    models: Sequence[Path],
    backend: str,
    device: str | None,
    output: Path | None,
    picture: Path | None,
) -> dict[str, Any]:
    """Accuracy against minutes of training, also written to `output`, and drawn to `picture`.

    Raises:
        InputError: a file cannot be used.
        BackendError: the backend cannot run here.
    """
    _check_writable(output, picture)
    loaded = [(path, model_file.load(path)) for path in models]
    given = data.load_category(root, category, loaded[0][1].preprocessing)
    where = devices.resolve(device)
    with console.counter("study curve") as on_progress:
        document = curve.measure(
            loaded, given, backend=backends.choose(backend, where), device=where, on_progress=on_progress
        )
    if output:
        report.write(document, output)
    if picture:
        pictures.curve(document, picture)
    return document


def show(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], RenderableType]:
    """Reports that were written before, and an overview of the studies, of a single one all its
    tables; then each curve's table.

    Raises:
        InputError: a file is not such a report, or is damaged.
    """
    reports = [_whole(path) for path in paths]
    studies = [each for each in reports if not report.is_curve(each)]
    shown: list[RenderableType] = [curve.table(each) for each in reports if report.is_curve(each)]
    if studies:
        shown.insert(0, report.table(studies[0]) if len(studies) == 1 else report.overview(studies))
    return reports, Group(*shown)


def _check_writable(*paths: Path | None) -> None:
    for path in paths:
        if path:
            files.check_writable(path)


def _whole(path: Path) -> dict[str, Any]:
    """The report in a file, of which its tables can be made."""
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
