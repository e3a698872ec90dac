"""The command `soak`: a line under load and faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, ModelOrExport, PrecisionName, Runtime
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.bench.line.soak import SoakOptions


def soak(
    model: ModelOrExport,
    frames: Annotated[int, typer.Option(help="Frames to send through.")] = 100_000,
    faults: Annotated[float, typer.Option(help="Share of them that something befalls.")] = 0.01,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images of one size to show.  [default: made-up ones]")
    ] = None,
    producers: Annotated[int, typer.Option(help="Threads that submit, each with a camera.")] = 4,
    warm_up: Annotated[
        int | None, typer.Option(help="Frames before growth counts.  [default: 50000, at most half]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of made-up images and faults.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write (JSON).")] = None,
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    json_: Json = False,
) -> None:
    """A line under load and faults: every answer is checked, and memory, threads and descriptors
    watched; exit 1 if a check fails.
    """
    from sprfast.bench.line.soak import SoakOptions, report

    options = SoakOptions(frames, faults, producers, warm_up, seed)
    document = _run(model, Runtime(backend, device, precision), options, images, output)
    console.emit(document, json_, lambda: report.table(document))
    for failure in report.failures(document):
        console.say(f"sprfast: {failure}")
    raise typer.Exit(report.exit_code(document))


def _run(
    path: Path, runtime: Runtime, options: SoakOptions, images: Path | None, output: Path | None
) -> dict[str, Any]:
    """The report of `soak.run` on a model or an export, also written to `output`.

    Raises:
        InputError: an image or an option cannot be used, or the report cannot be written.
        SprfastError: the model does not pass its self-test here.
    """
    from sprfast.bench.line import soak
    from sprfast.bench.line.soak import samples
    from sprfast.data import datasets

    if output:
        files.check_writable(output)
    heap = samples.one_heap()  # before a model is opened, and threads with it
    sources = datasets.image_files([images]) if images else None
    predictor, equal = runtime.open(path), runtime.open(path)
    with console.counter("soaking") as on_progress:
        report = soak.run(predictor, equal, options, sources, heap=heap, on_start=_tell, on_progress=on_progress)
    if output:
        files.write_bytes(output, json.dumps(report, indent=1, allow_nan=False).encode())
        console.note(f"report: {output}")
    return report


def _tell(frames: int) -> None:
    console.note(f"soaking: {frames} frames; SIGTERM or Ctrl-C ends it early, with a report")
