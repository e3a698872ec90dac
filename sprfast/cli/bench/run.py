"""The command `bench run`: a model beside its peers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console
from sprfast.cli.options import Category, Device, Json, ModelPath
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.bench.core.cases import BenchOptions

QUICK_SECONDS = 15.0  # a scenario


def run(
    model: ModelPath,
    size: Annotated[int | None, typer.Option(help="Pixels at the network's input.  [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(help="Images of an Offline query.")] = 16,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each scenario, over all candidates.  [default: 60]")
    ] = None,
    period: Annotated[
        str | None, typer.Option(help="Of Line, for example 100ms.  [default: 1.25 x the slowest candidate's p90]")
    ] = None,
    latency_bound: Annotated[
        str | None, typer.Option(help="Of Server's p99.  [default: 4 x the slowest candidate's p90]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="15 seconds for each scenario instead of 60.")] = False,
    candidates: Annotated[str | None, typer.Option(help="Names with commas, as in the report.  [default: all]")] = None,
    timed: Annotated[
        str, typer.Option(help="network; maps: from tensor to map; file: from image file to verdict.")
    ] = "maps",
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to send through.  [default: random ones]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled test images: sent through, and AUROC for each number of draws.")
    ] = None,
    category: Category = None,
    exports: Annotated[
        list[Path] | None,
        typer.Option("--export", metavar="FILE", help="An export of MODEL, measured too; repeatable."),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also what each candidate holds, each in a process of its own, on a CPU.")
    ] = False,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Find backend, batch and draws that hold --period.")
    ] = False,
    margin: Annotated[float, typer.Option(help="Share of the period that a recommended setting leaves free.")] = 0.2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Report to write (.json), its page beside it (.html).")
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """MLPerf's scenarios and a line's, beside peers in the same run, with parity and audits;
    MLPerf-style, not an MLPerf result.
    """
    from sprfast.bench.core import cases, report

    if quick and seconds is not None:
        raise InputError("bench: give either --quick or --seconds")
    names = candidates.split(",") if candidates else None
    options = cases.BenchOptions(
        size=size,
        batch=batch,
        seconds=seconds if seconds is not None else QUICK_SECONDS if quick else cases.BenchOptions.seconds,
        period=console.seconds(period) if period else None,
        bound=console.seconds(latency_bound) if latency_bound else None,
        device=device,
        timed=timed,
        memory=memory,
        required=names or (),
        margin=margin if recommend else None,
    )
    document = measure(model, options, names, Sources(images, data, category), output, exports or ())
    console.emit(document, json_, lambda: report.table(document))
    if not document["complete"]:
        raise typer.Exit(130)
    raise typer.Exit(1 if report.failures(document) else 0)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the images come from; all None means random ones."""

    images: Path | None = None  # a folder
    data: Path | None = None  # a data set or a category, with labelled test images
    category: str | None = None


def measure(
    path: Path,
    options: BenchOptions,
    names: list[str] | None,
    sources: Sources,
    output: Path | None,
    exported: Sequence[Path] = (),
) -> dict[str, Any]:
    """The bench report, also written to `output`, with its page beside it.

    Args:
        path: the model file.
        options: what to measure; `paths` and `labelled` are taken from `sources`.
        names: candidates to measure; None takes all, or ours alone for a recommendation.
        sources: images and labelled data.
        output: a JSON file.
        exported: exports of the model, candidates too.

    Raises:
        InputError: a name is not known, or a file cannot be used.
    """
    from sprfast.bench.core import cases, exports, libraries, report_file
    from sprfast.bench.page import render as page
    from sprfast.data import datasets
    from sprfast.formats import model as model_file
    from sprfast.system import devices

    if output:
        if output.suffix != ".json":
            raise InputError(
                f"--output {output}: give a name that ends with .json; the page is written beside it as .html"
            )
        for each in (output, output.with_suffix(".html")):
            files.check_writable(each)
    model = model_file.load(path)
    device = devices.resolve(options.device)
    candidates = libraries.chosen(device, names)
    if names is None and options.margin is not None:
        candidates = tuple(each for each in candidates if each.ours)
    if options.margin is not None and not any(each.ours for each in candidates):
        raise InputError("a recommendation is among sprfast's own backends: name one of them in --candidates")
    preprocessing = dataclasses.replace(model.preprocessing, size=options.size or model.preprocessing.size)
    paths = datasets.image_files([sources.images]) if sources.images else None
    labelled = datasets.load_category(sources.data, sources.category, preprocessing) if sources.data else None
    if labelled and not labelled.test:
        raise InputError(f"--data {sources.data}: category {labelled.name} has no test images")
    if labelled and paths is None:
        paths = [sample.path for sample in labelled.test]
    options = dataclasses.replace(options, paths=paths, labelled=labelled)
    with exports.opened(model, exported, device) as runners, console.counter("measuring") as on_progress:
        document = cases.run(model, options, candidates=candidates, runners=runners, on_progress=on_progress)
    if output:
        report_file.write(document, output)
        page.write(document, output.with_suffix(".html"))
        console.note(f"report: {output} and {output.with_suffix('.html')}")
    return document
