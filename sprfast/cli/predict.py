"""The command `predict`: images scored here, or with `--ray` by the workers of a Ray cluster."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from sprfast.cli import console
from sprfast.cli.data_source import Recursive
from sprfast.cli.options import BackendName, Device, Json, ModelOrExport, PrecisionName, Runtime, SettingName
from sprfast.config import PUBLISHED
from sprfast.errors import InputError, OutOfMemoryError, SprfastError
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.engine.predictor import Predictor, Result
    from sprfast.evaluation.results_page import ResultsPage
    from sprfast.formats.results import Results

TABLE_ROWS = 1000  # of a table for a person; JSON has them all


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
    recursive: Recursive = False,
    report: Annotated[Path | None, typer.Option(help="Write a page of all results here (HTML, opens offline).")] = None,
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the rows that --output has; with --ray it always does.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option("--log", help="Log of verdicts to go on with, which `log verify` checks.")
    ] = None,
    json_: Json = False,
) -> None:
    """Score images: PASS, REJECT or ERROR; exit 1 if any image ended in ERROR."""
    runtime = Runtime(backend, device, precision, setting)
    if ray is not None:
        if log is not None:
            raise InputError("--log: is not for --ray, whose workers answer in any order")
        for name, given in (("report", report), ("recursive", recursive)):
            if given:
                raise InputError(f"--{name}: is for images that are scored here, without --ray")
        document = _predict_archive(model, paths, output, runtime, ray, workers, worker_gpus)
        stopped = 0 if document["complete"] else 130
        console.emit(document, json_)
    else:
        if workers is not None or worker_gpus is not None:
            raise InputError("--workers and --worker-gpus are for --ray")
        document, results, stopped = predict_files(
            model, paths, output, runtime, report, recursive=recursive, resume=resume, log=log
        )
        console.emit(document, json_, lambda: _table(document, results), results)
        if not json_ and document["complete"] and _has_verdicts(document):
            folder = paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else "INCOMING"
            chosen = [] if setting == PUBLISHED else ["--setting", setting]
            console.say_next("station", str(model), *chosen, "--folder", str(folder))
        if not document["complete"] and output:
            console.say("sprfast: stopped by a signal; go on with the same command and --resume")
    if not document["complete"]:
        raise typer.Exit(stopped)
    raise typer.Exit(1 if document["counts"]["ERROR"] else 0)


def predict_files(
    model: Path,
    sources: list[Path],
    output: Path | None,
    runtime: Runtime,
    report: Path | None = None,
    *,
    recursive: bool = False,
    resume: bool = False,
    log: Path | None = None,
) -> tuple[dict[str, Any], Results, int]:
    """Score image files: what is said of them all, the rows, and the exit code of a signal that
    ended it, else 0.

    With `output`, results.jsonl has a row and the folder an overlay as soon as an image is scored;
    with `log`, that log of verdicts has a record. With `report` there is a page of them all.
    """
    from sprfast.data import images
    from sprfast.engine.predictor import MAX_BATCH
    from sprfast.formats import verdict_log
    from sprfast.formats.results import NAME, Results
    from sprfast.system.signals import stop_signals

    if resume and output is None:
        raise InputError("--resume: name the folder of the run that stopped with --output")
    if resume and report:
        raise InputError("--report: the maps of the rows before are gone; score all images anew, without --resume")
    engine = runtime.open(model)
    arguments = list(_images(sources, recursive))
    if output:
        files.refuse_source(output, (*sources, *(image for image, _ in arguments)))
        output.mkdir(parents=True, exist_ok=True)
    path = files.confined(output, NAME) if output else None
    with contextlib.ExitStack() as opened:
        page = opened.enter_context(_page(report, engine, model, runtime.setting, arguments)) if report else None
        results = opened.enter_context(Results(_computed_by(engine, runtime.setting), path, resume=resume))
        logged = opened.enter_context(verdict_log.VerdictLog(log)) if log else None
        if logged:
            logged.add(verdict_log.model(engine.model_sha256, engine.threshold))
        todo = [each for each in arguments if not results.take(images.display_name(each[0]))]
        done = len(arguments) - len(todo)
        with stop_signals() as stop, console.counter("predicting") as on_image:
            for first in range(0, len(todo), MAX_BATCH):
                if stop.signal:
                    break
                chunk = todo[first : first + MAX_BATCH]
                for (source, _), result in zip(chunk, _results(engine, chunk), strict=True):
                    row = result.to_json()
                    if output and math.isfinite(result.pred_score):
                        row |= _overlay(output, results.overlays, source, result)
                    if logged:
                        name, said = images.display_name(source), (result.threshold, result.reason)
                        logged.add(
                            verdict_log.answer(
                                name, result.verdict.value, result.pred_score, *said, engine.model_sha256
                            )
                        )
                    results.add(images.display_name(source), row)
                    if page:
                        page.add(source, result)
                results.sync()
                if logged:
                    logged.sync()
                on_image(done := done + len(chunk), len(arguments))
        complete = done == len(arguments)
        if page:
            page.write("Predictions", complete=complete)
            console.note(f"report: {report}")
    return {"complete": complete, "backend": engine.backend, "counts": results.counts}, results, stop.exit_code


def _page(
    report: Path, engine: Predictor, model: Path, setting: str, arguments: list[tuple[Path, str | None]]
) -> ResultsPage:
    from sprfast.evaluation.results_page import ResultsPage

    files.refuse_source(report, (model, *(image for image, _ in arguments)))
    return ResultsPage(report, engine, model, setting, len(arguments))


def _computed_by(engine: Predictor, setting: str) -> dict[str, Any]:
    """What every row says of how it was computed, and what a run must have to go on after it."""
    return {
        "model_sha256": engine.model_sha256,
        "setting": setting,
        "backend": engine.backend,
        "precision": engine.precision,
        "threshold": engine.threshold.value if engine.threshold else None,
    }


def _images(sources: list[Path], recursive: bool) -> Iterator[tuple[Path, str | None]]:
    """The images of all arguments; an argument among others that cannot be used, with the reason.

    Raises:
        InputError: the only argument cannot be used.
    """
    from sprfast.data import datasets

    for source in sources:
        try:
            found = datasets.image_files([source], recursive)
        except InputError as error:
            if len(sources) == 1:
                raise
            yield source, str(error)
        else:
            yield from ((image, None) for image in found)


def _results(engine: Predictor, chunk: list[tuple[Path, str | None]]) -> list[Result]:
    """A result for each of `_images`."""
    paths = [image for image, reason in chunk if reason is None]
    try:
        scored = iter(engine.predict(paths))
    except OutOfMemoryError as error:  # there was no memory for any of them
        scored = iter([engine.error(str(error))] * len(paths))
    return [next(scored) if reason is None else engine.error(reason) for _, reason in chunk]


def _has_verdicts(document: dict[str, Any]) -> bool:
    """Whether the model has a threshold, without which a station does not start, and an image was
    held against it.
    """
    return bool(document["counts"]["PASS"] or document["counts"]["REJECT"])


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _table(document: dict[str, Any], results: Results) -> Table:
    """One line an image, up to `TABLE_ROWS`."""
    from sprfast.method.threshold import relative

    counts = ", ".join(f"{count} {name}" for name, count in document["counts"].items())
    caption = f"{counts}; backend {document['backend']}"
    if sum(document["counts"].values()) > TABLE_ROWS:
        caption += f"; the first {TABLE_ROWS} images"
    table = Table(Column("image", overflow="fold"), "pred_score", "÷ threshold", "verdict", "reason", caption=caption)
    for row in itertools.islice(results, TABLE_ROWS):
        score = "-" if row["pred_score"] is None else f"{row['pred_score']:.6g}"
        ratio = relative(row["pred_score"], row["threshold"])
        shown = "-" if ratio is None else f"{ratio:.3f}"
        table.add_row(row["path"], score, shown, row["verdict"], row.get("reason") or row.get("note", ""))
    return table


def _overlay(output: Path, names: set[str], source: Path, result: Result) -> dict[str, str]:
    """Write the overlay, and say its name; or why there is none, which costs the row nothing."""
    name = _overlay_name(names, source)
    try:
        result.save(files.confined(output, os.fsdecode(name.encode())))  # UTF-8 whatever the locale
    except (SprfastError, MemoryError, OSError) as error:
        return {"note": f"no overlay: {_reason(error)}"}
    names.add(name.casefold())
    return {"overlay": name}


def _overlay_name(names: set[str], source: Path) -> str:
    """The image's own name; where two share one, with its folder's name before it, then
    numbered.
    """
    from sprfast.data import images

    stem = images.display_name(source.stem)[:60]
    longer = f"{images.display_name(source.absolute().parent.name)[:60]}-{stem}"
    numbered = (f"{longer}-{number}" for number in itertools.count(len(names)))
    tried = (f"{name}.png" for name in itertools.chain((stem, longer), numbered))
    return next(name for name in tried if name.casefold() not in names)


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
    files.refuse_source(output, sources)
    model = ray_data.Model(str(path), runtime.backend, runtime.device, runtime.precision, runtime.setting)
    pool = ray_data.Pool(1 if workers is None else workers, gpus=worker_gpus or 0.0)
    with console.counter("predicting") as on_images:
        summary = ray_data.score(sources, output, model, pool, address=address, on_images=on_images)
    return {"complete": not summary["interrupted"], "output": str(output), **summary}
