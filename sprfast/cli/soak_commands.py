"""What the command `soak` does, between the run and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sprfast.bench.line import soak
from sprfast.bench.line.soak import samples
from sprfast.cli import console
from sprfast.cli.predict_commands import Runtime
from sprfast.data import datasets as data
from sprfast.system import files


def run(
    path: Path, runtime: Runtime, options: soak.SoakOptions, images: Path | None, output: Path | None
) -> dict[str, Any]:
    """The report of `soak.run` on a model or an export, also written to `output`.

    Raises:
        InputError: an image or an option cannot be used, or the report cannot be written.
        SprfastError: the model does not pass its self-test here.
    """
    if output:
        files.check_writable(output)
    heap = samples.one_heap()  # before a model is opened, and threads with it
    sources = data.image_files([images]) if images else None
    predictor, equal = runtime.open(path), runtime.open(path)
    with console.counter("soaking") as on_progress:
        report = soak.run(predictor, equal, options, sources, heap=heap, on_start=_tell, on_progress=on_progress)
    if output:
        files.write_bytes(output, json.dumps(report, indent=1, allow_nan=False).encode())
        console.say(f"report: {output}")
    return report


def _tell(frames: int) -> None:
    console.say(f"soaking: {frames} frames; SIGTERM or Ctrl-C ends it early, with a report")
