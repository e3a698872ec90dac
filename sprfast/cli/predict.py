"""The command `predict`: images scored here, or with `--ray` by the workers of a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, ModelOrExport, PrecisionName, Runtime, SettingName
from sprfast.config import Preprocessing
from sprfast.data import datasets, figure, images
from sprfast.engine.predictor import MAX_BATCH, Result
from sprfast.errors import InputError
from sprfast.method.threshold import Verdict
from sprfast.system import files


def predict(
    model: ModelOrExport,
    paths: Annotated[
        list[Path],
        typer.Argument(help="Images, or folders of images; with --ray also Parquet files with a column `path`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for results.jsonl and the overlays; with --ray for Parquet files."),
    ] = None,
    setting: SettingName = "published",
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Score on a Ray cluster, `local` for this machine; goes on where a run stopped."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --ray: workers, each with a CPU thread.  [default: 1]")
    ] = None,
    worker_gpus: Annotated[float | None, typer.Option(help="With --ray: GPUs of each worker.  [default: 0]")] = None,
    json_: Json = False,
) -> None:
    """Score images: PASS, REJECT or ERROR; exit 1 if any image ended in ERROR."""
    runtime = Runtime(backend, device, precision, setting)
    run: Prediction | Archive
    if ray is not None:
        run = _predict_archive(model, paths, output, runtime, ray, workers, worker_gpus)
    else:
        if workers is not None or worker_gpus is not None:
            raise InputError("--workers and --worker-gpus are for --ray")
        run = predict_files(model, paths, output, runtime)
    console.emit(run.to_json(), json_, run.table)
    if run.interrupted:
        raise typer.Exit(130)
    raise typer.Exit(1 if run.counts["ERROR"] else 0)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` found, image by image."""

    backend: str  # in use
    rows: list[dict[str, Any]]
    interrupted: bool

    @property
    def counts(self) -> dict[str, int]:
        """Images by verdict."""
        return {verdict.value: sum(row["verdict"] == verdict.value for row in self.rows) for verdict in Verdict}

    def to_json(self) -> dict[str, Any]:
        """The rows, their counts, and what computed them."""
        return {"complete": not self.interrupted, "backend": self.backend, "counts": self.counts, "results": self.rows}

    def table(self) -> Table:
        """One line an image."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items()) + f"; backend {self.backend}"
        table = Table(Column("image", overflow="fold"), "pred_score", "verdict", "reason", caption=counts)
        for row in self.rows:
            score = "-" if row["pred_score"] is None else f"{row['pred_score']:.6g}"
            table.add_row(row["path"], score, row["verdict"], row.get("reason", ""))
        return table


def predict_files(path: Path, sources: list[Path], output: Path | None, runtime: Runtime) -> Prediction:
    """Score image files; with `output`, write results.jsonl and an overlay for each scored
    image.
    """
    engine = runtime.open(path)
    paths = datasets.image_files(sources)
    if output:
        output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    interrupted = False
    with console.counter("predicting") as on_image:
        try:
            for first in range(0, len(paths), MAX_BATCH):
                chunk = paths[first : first + MAX_BATCH]
                for source, result in zip(chunk, engine.predict(chunk), strict=True):
                    row = {"path": images.display_name(source), **result.to_json()}
                    if output and math.isfinite(result.pred_score):
                        row["overlay"] = _write_overlay(output, names, source, result, engine.preprocessing)
                    rows.append(row)
                on_image(len(rows), len(paths))
        except KeyboardInterrupt:
            interrupted = True
    if output:
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(output / "results.jsonl", lines.encode())
    return Prediction(engine.backend, rows, interrupted)


def _write_overlay(output: Path, names: set[str], source: Path, result: Result, preprocessing: Preprocessing) -> str:
    """Write the overlay under the image's own name; where two share one, with its folder's name
    before it, then numbered.
    """
    stem = images.display_name(source.stem)[:60]
    name = stem
    if name.casefold() in names:
        stem = name = f"{images.display_name(source.absolute().parent.name)[:60]}-{stem}"
    while name.casefold() in names:
        name = f"{stem}-{len(names)}"
    names.add(name.casefold())
    assert result.anomaly_map is not None  # as its score is finite
    target = files.confined(output, os.fsdecode(f"{name}.png".encode()))  # UTF-8 whatever the locale
    figure.save_png(
        target, figure.overlay(images.read_rgb(source, preprocessing), result.anomaly_map, result.map_threshold)
    )
    return f"{name}.png"


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


def _predict_archive(
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
    from sprfast.deploy.ray import data as ray_data

    if output is None:
        raise InputError("--ray: name the folder for the answers with --output")
    model = ray_data.Model(str(path), runtime.backend, runtime.device, runtime.precision, runtime.setting)
    pool = ray_data.Pool(1 if workers is None else workers, gpus=worker_gpus or 0.0)
    with console.counter("predicting") as on_images:
        summary = ray_data.score(sources, output, model, pool, address=address, on_images=on_images)
    return Archive(output, **summary)
