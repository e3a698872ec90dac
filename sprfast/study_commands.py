"""The command `study`: models and images in, a report out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from sprfast import backends, console, data, devices, files, model_file
from sprfast.bench.study import measure, report
from sprfast.errors import InputError


def run(
    root: Path,
    category: str | None,
    models: Sequence[Path],
    good: Path | None,
    backend: str,
    device: str | None,
    seconds: float,
    output: Path | None,
    picture: Path | None,
) -> dict[str, Any]:
    """The report, also written to `output`, and drawn to `picture`.

    Raises:
        InputError: a file cannot be used.
        BackendError: the backend cannot run here.
    """
    for path in (output, picture):
        if path:
            files.check_writable(path)
    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    loaded = [(path, model_file.load(path)) for path in models]
    given = data.load_category(root, category, loaded[0][1].preprocessing)
    paths = data.image_files([good]) if good else None
    where = devices.resolve(device)
    chosen = backends.choose(backend, where)
    with console.counter("study") as on_progress:
        document = measure.study(loaded, given, paths, backend=chosen, device=where, seconds=seconds, on_progress=on_progress)
    if output:
        report.write(document, output)
    if picture:
        report.figure(document, picture)
    return document


def show(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], RenderableType]:
    """Reports that were written before, and their overview; of a single one all its tables.

    Raises:
        InputError: a file is not such a report, or is damaged.
    """
    reports = [report.load(path) for path in paths]
    try:
        return reports, report.table(reports[0]) if len(reports) == 1 else report.overview(reports)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"a report of `sprfast study` is damaged ({type(error).__name__}: {error})") from error
