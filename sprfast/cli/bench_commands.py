"""What the commands of `sprfast bench` do, between the measurements and the command line."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType

from sprfast.bench.core import cases, layers, libraries, named_settings, report, report_file
from sprfast.bench.core.peers import Candidate
from sprfast.bench.line import overhead
from sprfast.bench.page import render as page
from sprfast.cli import console
from sprfast.data import datasets as data
from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.formats import model as model_file
from sprfast.system import devices, files

QUICK_SECONDS = 15.0  # a scenario


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the images come from; all None means random ones."""

    images: Path | None = None  # a folder
    data: Path | None = None  # a data set or a category, with labelled test images
    category: str | None = None


def run(
    path: Path, options: cases.Options, names: list[str] | None, sources: Sources, output: Path | None
) -> dict[str, Any]:
    """The bench report, also written to `output`, with its page beside it.

    Args:
        path: the model file.
        options: what to measure; `paths` and `labelled` are taken from `sources`.
        names: candidates to measure; None takes all, or ours alone for a recommendation.
        sources: images and labelled data.
        output: a JSON file.

    Raises:
        InputError: a name is not known, or a file cannot be used.
    """
    if output:
        if output.suffix != ".json":
            raise InputError(
                f"--output {output}: give a name that ends with .json; the page is written beside it as .html"
            )
        for each in (output, output.with_suffix(".html")):
            files.check_writable(each)
    model = model_file.load(path)
    candidates = _chosen(devices.resolve(options.device), names, options.margin is not None)
    if options.margin is not None and not any(each.ours for each in candidates):
        raise InputError("a recommendation is among sprfast's own backends: name one of them in --candidates")
    preprocessing = dataclasses.replace(model.preprocessing, size=options.size or model.preprocessing.size)
    paths = data.image_files([sources.images]) if sources.images else None
    labelled = data.load_category(sources.data, sources.category, preprocessing) if sources.data else None
    if labelled and not labelled.test:
        raise InputError(f"--data {sources.data}: category {labelled.name} has no test images")
    if labelled and paths is None:
        paths = [sample.path for sample in labelled.test]
    options = dataclasses.replace(options, paths=paths, labelled=labelled)
    with console.counter("measuring") as on_progress:
        document = cases.run(model, options, candidates=candidates, on_progress=on_progress)
    if output:
        report_file.write(document, output)
        page.write(document, output.with_suffix(".html"))
        console.say(f"report: {output} and {output.with_suffix('.html')}")
    return document


def measure_layers(path: Path, size: int | None, batch: int, seconds: float) -> dict[str, Any]:
    """The report of `layers.measure` on random images, at the model's size where `size` is None.

    Raises:
        InputError: a value is out of range, or the model file cannot be used.
        BackendError: backend cpu cannot run here.
    """
    options = cases.Options(size=size, batch=batch, seconds=seconds)
    model = model_file.load(path)
    return layers.measure(model, options.size or model.preprocessing.size, options.batch, options.seconds)


def measure_overhead(predictor: Predictor, source: Path | None, seconds: float) -> dict[str, Any]:
    """The report of `overhead.measure` on the images in a folder, on random ones where `source` is
    None.

    Raises:
        InputError: an image cannot be used, the time is not positive, or the predictor has no
            threshold.
        BackendError: the model does not pass its self-test here.
    """
    with tempfile.TemporaryDirectory(prefix="sprfast-") as folder, console.counter("measuring") as on_progress:
        if source:
            pictures = overhead.Pictures.of_files(data.image_files([source]), predictor.preprocessing)
        else:
            pictures = overhead.Pictures.random(predictor, Path(folder))
        return overhead.measure(predictor, pictures, seconds, on_progress=on_progress)


def measure_settings(path: Path, backend: str, device: str | None, seconds: float) -> dict[str, Any]:
    """The report of `named_settings.measure`.

    Raises:
        InputError: the model file holds no setting beside the published one, or the time is not
            positive.
        BackendError: the backend cannot run here.
    """
    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    model = model_file.load(path)
    if not model.scoring_modes:
        raise InputError(f"{path}: holds no setting beside the published one; `sprfast calibrate --setting` adds one")
    return named_settings.measure(model, backend, devices.resolve(device), seconds)


def show(path: Path, page_path: Path | None) -> tuple[dict[str, Any], RenderableType]:
    """A report that was written before, and its table; with `page_path`, the page is written there.

    Raises:
        InputError: the file is not a report of this version, or is damaged, or the page cannot be
            written.
    """
    document = report_file.load(path)
    try:
        table = report.table(document)
        if page_path:
            page.write(document, page_path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path}: is damaged, or not a report that `sprfast bench` wrote ({type(error).__name__}: {error})"
        ) from error
    if page_path:
        console.say(f"page: {page_path}")
    return document, table


def _chosen(device: torch.device, names: list[str] | None, only_ours: bool) -> tuple[Candidate, ...]:
    candidates = libraries.chosen(device, names)
    return tuple(each for each in candidates if each.ours) if names is None and only_ours else candidates
