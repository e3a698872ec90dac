"""The command `predict --ray`: an archive of images by the workers of a Ray cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.table import Table

from sprfast.cli import console
from sprfast.cli.predict_commands import Runtime
from sprfast.deploy.ray import data as ray_data
from sprfast.errors import InputError


@dataclasses.dataclass(frozen=True)
class Archive:
    """What a run over an archive found, or a run that was stopped had found."""

    output: Path
    counts: dict[str, int]  # images by verdict, over all that the folder holds
    images: int  # asked for
    already: int  # that had an answer before
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """Counts, and where the rows are."""
        return {"complete": not self.interrupted, **dataclasses.asdict(self), "output": str(self.output)}

    def table(self) -> Table:
        """The same for a person."""
        return console.fields_table(self.to_json())


def predict(
    path: Path,
    sources: list[Path],
    output: Path | None,
    runtime: Runtime,
    address: str,
    workers: int | None,
    worker_gpus: float | None,
) -> Archive:
    """Score image files into Parquet files in `output`; those that have an answer there already are
    not scored again.

    Raises:
        InputError: there is no `output`, or a file or the folder cannot be used.
        BackendError: Ray is not installed or has no cluster at `address`, or a worker cannot run
            the model.
    """
    if output is None:
        raise InputError("--ray: name the folder for the answers with --output")
    model = ray_data.Model(str(path), runtime.backend, runtime.device, runtime.precision, runtime.setting)
    pool = ray_data.Pool(1 if workers is None else workers, gpus=worker_gpus or 0.0)
    with console.counter("predicting") as on_images:
        summary = ray_data.score(sources, output, model, pool, address=address, on_images=on_images)
    return Archive(output, **summary)
