"""The command `predict`: images scored here, or with `--ray` by the workers of a Ray cluster."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, ModelOrExport, PrecisionName, Runtime, SettingName
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.config import Preprocessing
    from sprfast.engine.predictor import Result


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
    if ray is not None:
        document = _predict_archive(model, paths, output, runtime, ray, workers, worker_gpus)
        console.emit(document, json_)
    else:
        if workers is not None or worker_gpus is not None:
            raise InputError("--workers and --worker-gpus are for --ray")
        document = predict_files(model, paths, output, runtime)
        console.emit(document, json_, lambda: _table(document))
    if not document["complete"]:
        raise typer.Exit(130)
    raise typer.Exit(1 if document["counts"]["ERROR"] else 0)


def predict_files(path: Path, sources: list[Path], output: Path | None, runtime: Runtime) -> dict[str, Any]:
    """Score image files: a row for each, images by verdict, and the backend in use.

    With `output`, results.jsonl and an overlay for each scored image are written there.
    """
    from sprfast.data import datasets, images
    from sprfast.engine.predictor import MAX_BATCH
    from sprfast.method.threshold import Verdict

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
    counts = {verdict.value: sum(row["verdict"] == verdict.value for row in rows) for verdict in Verdict}
    return {"complete": not interrupted, "backend": engine.backend, "counts": counts, "results": rows}


def _table(document: dict[str, Any]) -> Table:
    """One line an image."""
    counts = ", ".join(f"{count} {name}" for name, count in document["counts"].items())
    caption = f"{counts}; backend {document['backend']}"
    table = Table(Column("image", overflow="fold"), "pred_score", "verdict", "reason", caption=caption)
    for row in document["results"]:
        score = "-" if row["pred_score"] is None else f"{row['pred_score']:.6g}"
        table.add_row(row["path"], score, row["verdict"], row.get("reason", ""))
    return table


def _write_overlay(output: Path, names: set[str], source: Path, result: Result, preprocessing: Preprocessing) -> str:
    """Write the overlay under the image's own name; where two share one, with its folder's name
    before it, then numbered.
    """
    from sprfast.data import figure, images

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


def _predict_archive(
    path: Path,
    sources: list[Path],
    output: Path | None,
    runtime: Runtime,
    address: str,
    workers: int | None,
    worker_gpus: float | None,
) -> dict[str, Any]:
    """Score image files into Parquet files in `output`; those that have an answer there already are
    not scored again. `counts` has the images by verdict, over all that the folder holds.

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
    return {"complete": not summary["interrupted"], "output": str(output), **summary}
