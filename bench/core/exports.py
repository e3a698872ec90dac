"""The exports of one model side by side: what each costs in time, in error of scores and, on
labelled images, in AUROC.

`python -m sprfast.bench.core.exports MODEL EXPORT... --data DATA --category NAME` prints it, the
model itself by backend auto as the first row. All take turns in one process, with the threads that
torch has. Exit 1 where one does not score like the definition.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from sprfast.bench.core import timing
from sprfast.bench.core.sweeps import plural
from sprfast.bench.core.work import random_images
from sprfast.config import Precision
from sprfast.data import datasets as data
from sprfast.data.datasets import Category
from sprfast.data.images import load_image
from sprfast.deploy import export
from sprfast.engine.engine import Engine
from sprfast.engine.runner import BACKENDS, Runner
from sprfast.errors import CheckFailedError, InputError, SprfastError
from sprfast.evaluation import evaluate as evaluation
from sprfast.evaluation import parity
from sprfast.evaluation.evaluate import Evaluation
from sprfast.evaluation.parity import Row
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.formats.export_metadata import TOLERANCE, Map, Quantization
from sprfast.formats.model import Model
from sprfast.system import environment

SCHEMA_VERSION = 1
SECONDS = 10.0  # of calls, over all rows
ROUNDS = 5  # at least
IMAGES = 8  # whose maps are compared with the definition's, at most
CPU = torch.device("cpu")
METRICS = ("image_AUROC", "pixel_AUROC")
OWN = "the model itself"  # name of the first row
_ERRORS = ("error_map_relative_rms", "score_relative_error", "flips")


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
    """One row: a way to score images with this model."""

    predictor: Engine | Runner
    call: Callable[[], object]  # the maps of the image that is timed
    check: Callable[[Sequence[Path]], tuple[Row, ...]]  # images against the definition, as `parity.image_rows`
    described: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or with --json the report; the exit code."""
    given = _parser().parse_args(argv)
    try:
        if not 0 < given.seconds < math.inf:
            raise InputError(f"--seconds: {given.seconds:g} is not allowed, expected a positive number")
        model = model_file.load(given.model)
        category = data.load_category(given.data, given.category, model.preprocessing) if given.data else None
        if category and not category.test:
            raise InputError(f"--data {given.data}: category {category.name} has no test images")
        paths = (
            data.image_files([given.images])
            if given.images
            else [sample.path for sample in category.test]
            if category
            else []
        )
        with contextlib.ExitStack() as opened:
            exports = {str(path): _opened(model, path, given.backend, opened) for path in given.exports}
            report = measure(model, exports, paths, category, given.seconds)
        if given.json:
            print(json.dumps(report, indent=1, allow_nan=False))
        else:
            Console(highlight=False).print(table(report))
        if wrong := [row["name"] for row in report["rows"] if not row["passed"]]:
            raise CheckFailedError(
                f"{', '.join(wrong)}: does not score like the definition, see what `sprfast parity --export` says"
            )
    except SprfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(
    model: Model, exports: Mapping[str, Runner], paths: Sequence[Path], category: Category | None, seconds: float
) -> dict[str, Any]:
    """Time, error and accuracy of the model and of its exports.

    Args:
        model: the first row.
        exports: of this model, by the names of their rows.
        paths: image files; up to `IMAGES` of them, spread over all, are compared with the
            definition, and the first one is timed. Without any a random image is timed and nothing
            compared.
        category: its test images are scored for the AUROC; None: none are.
        seconds: for the calls that are timed; `ROUNDS` are made whatever they cost.

    Returns:
        The report, plain JSON values. Of a row, `ms` is of a call from the network's input to both
        maps on the host, one image a call, `ratio` how many times as fast it is as the model,
        within a turn; `error_map_relative_rms` and `score_relative_error` are the largest of all
        images, `flips` the verdicts that differ from the definition's; a metric's `_change` is from
        the model's, and `verdict_changes` counts labelled images whose verdict is not the model's.
        What is not known is null.

    Raises:
        InputError: an image cannot be used, or an export takes images of another size.
        BackendError: a backend failed.
    """
    x = _image(model, exports, paths)
    entries = {OWN: _of_model(model, x)} | {name: _of_export(model, runner, x) for name, runner in exports.items()}
    rounds = _timed({name: entry.call for name, entry in entries.items()}, seconds)
    chosen = paths[:: -(-len(paths) // IMAGES)] if paths else []
    evaluations = {
        name: evaluation.evaluate(entry.predictor, category) if category else None for name, entry in entries.items()
    }
    rows = []
    for name, entry in entries.items():
        calls = [1e3 * times[name] for times in rounds]
        speed = {"p50": timing.percentile(calls, 50), "p90": timing.percentile(calls, 90)}
        row = {"name": name, **entry.described, "ms": speed, "ratio": timing.ratio(rounds, OWN, name)}
        errors = _errors(entry.check(chosen) if chosen else ())
        rows.append(row | errors | _accuracy(evaluations[name], evaluations[OWN]))
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe() | {"onnxruntime": environment.version("onnxruntime")},
        "model": {"sha256": model.sha256, "network": model.network.to_json()},
        "input": {"images": 1, "draws": model.schedule.draws, "height": x.shape[2], "width": x.shape[3]},
        "calls": len(rounds),
        "compared": len(chosen),
        "scored": len(category.test) if category else 0,
        "rows": rows,
    }


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal; fits 80 columns where names are short."""
    given, machine, rows = report["input"], report["environment"], report["rows"]
    parts: list[RenderableType] = [_speeds(report)]
    if report["compared"]:
        parts.append(_comparisons(report))
    if report["scored"]:
        parts.append(_accuracies(report))
    parts.append(
        f"{machine['cpu']}, {plural(machine['torch_threads'], 'thread')}, load {machine['load_average']} at the end"
    )
    size, draws = f"{given['height']}x{given['width']}", plural(given["draws"], "draw")
    parts.append(
        f"ms: one image, {size}, {draws}, from the network's input to the maps; {plural(report['calls'], 'call')} "
        f"each, in turns"
    )
    if report["compared"]:
        parts.append(
            f"errors and flips: the largest and the number among {plural(report['compared'], 'image')}, against the "
            f"definition"
        )
    else:
        parts.append("errors and flips are not known: give --images, or --data")
    parts += dict.fromkeys(f"flips: {row['flips_reason']}" for row in rows if row["flips_reason"])
    if report["scored"]:
        parts.append(
            f"changes: from the model's on {plural(report['scored'], 'labelled image')}, AUROC in percentage points"
        )
    return Group(*parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sprfast.bench.core.exports", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a model file")
    parser.add_argument("exports", type=Path, nargs="+", metavar="EXPORT", help="what `sprfast export` made of it")
    parser.add_argument("--data", type=Path, help="labelled test images: the AUROC of every row")
    parser.add_argument("--category", help="of --data")
    parser.add_argument(
        "--images", type=Path, help="a folder of images to compare maps on; those of --data where it is not given"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of calls that are timed, over all rows")
    parser.add_argument(
        "--backend", default="auto", choices=("auto", *BACKENDS[1:]), help="for ONNX files; a plan runs on cpu"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


def _opened(model: Model, path: Path, backend: str, opened: contextlib.ExitStack) -> Runner:
    """A runner, closed with `opened`, for an export of this model.

    Raises:
        ModelFileError: it is not an export, or damaged.
        InputError: it was made from another model.
        BackendError: the backend cannot run it here.
    """
    stored = export_file.read(path)
    for what, of_export, of_model in (
        ("weights", stored.metadata.model_sha256, model.sha256),
        ("sigma levels", stored.metadata.schedule, model.schedule),
        ("noise", stored.metadata.noise_seed, model.noise_seed),
    ):
        if of_export != of_model:
            raise InputError(
                f"{path}: was made from another model, its {what} differ; export the model that is given again"
            )
    runner = Runner(stored, "auto" if stored.folded else backend, threads=torch.get_num_threads())
    opened.callback(runner.close)
    return runner


def _image(model: Model, exports: Mapping[str, Runner], paths: Sequence[Path]) -> Map:
    """What is timed, (1, 3, H, W), of a size that all exports take."""
    if paths:
        x, name = load_image(paths[0], model.preprocessing).pixels[None], str(paths[0])
    else:
        sizes = [runner.metadata.size for runner in exports.values() if runner.metadata.size]
        height, width = sizes[0] if sizes else (model.preprocessing.size,) * 2
        x, name = (
            random_images(1, max(height, width)).pixels[:, :, :height, :width].contiguous().numpy(),
            "a random image",
        )
    for export_name, runner in exports.items():
        runner.metadata.require_size(x.shape[2:], f"{export_name}: {name}")
    return x


def _of_model(model: Model, x: Map) -> _Entry:
    engine, image = Engine(model), torch.from_numpy(x)

    def check(paths: Sequence[Path]) -> tuple[Row, ...]:
        return parity.image_rows(model, paths, engine.maps, TOLERANCE["float32"])

    return _Entry(engine, lambda: engine.maps(image), check, _described(engine, "float32", None))


def _of_export(model: Model, runner: Runner, x: Map) -> _Entry:
    described = _described(runner, runner.metadata.precision, runner.metadata.quantization)
    return _Entry(runner, lambda: runner.maps(x), lambda paths: export.check(model, runner, paths).rows, described)


def _described(predictor: Engine | Runner, precision: Precision, quantization: Quantization | None) -> dict[str, Any]:
    return {
        "backend": predictor.backend,
        "device": str(predictor.device),
        "precision": precision,
        "quantization": quantization,
    }


def _timed(calls: Mapping[str, Callable[[], object]], seconds: float) -> list[timing.Round]:
    def again(index: int, call: Callable[[], object]) -> object:
        return call()

    timed = {name: functools.partial(again, call=call) for name, call in calls.items()}
    return list(timing.rounds(timed, CPU, seconds, ROUNDS, settle=calls))


def _errors(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of `parity.image_rows`, null where there are none, and whether they are what they
    must be.
    """
    if not rows:
        return {**dict.fromkeys(_ERRORS), "flips_reason": None, "passed": True}
    of_map, of_score, _, flips = (row.to_json() for row in rows)
    values = dict(zip(_ERRORS, (of_map["value"], of_score["value"], flips["value"]), strict=True))
    return {**values, "flips_reason": flips["reason"], "passed": all(row.passed for row in rows)}


def _accuracy(found: Evaluation | None, first: Evaluation | None) -> dict[str, float | None]:
    """Metrics on labelled images, their change from the first row's, and how many verdicts are not
    its; null where not defined.
    """
    values: dict[str, float | None] = {}
    for name in METRICS:
        value, before = (None if each is None else each.metrics[name].value for each in (found, first))
        values |= {name: value, f"{name}_change": None if value is None or before is None else value - before}
    if found is None or first is None or found.rejected_good is None or first.rejected_good is None:
        return values | {"verdict_changes": None}
    pairs = zip(found.results, first.results, strict=True)
    return values | {"verdict_changes": sum(ours.verdict is not theirs.verdict for ours, theirs in pairs)}


def _speeds(report: Mapping[str, Any]) -> Table:
    result = _empty("time", ("backend", "stored as", "p50 ms", "p90 ms", "x model"))
    for row in report["rows"]:
        stored = "/".join(filter(None, (row["quantization"], row["precision"])))
        figures = ((row["ms"]["p50"], ".4g"), (row["ms"]["p90"], ".4g"), (row["ratio"]["median"], ".2f"))
        result.add_row(row["name"], row["backend"], stored, *map(_cell, figures))
    return result


def _comparisons(report: Mapping[str, Any]) -> Table:
    result = _empty("against the definition", ("map error", "score error", "flips"))
    for row in report["rows"]:
        result.add_row(row["name"], *map(_cell, zip((row[key] for key in _ERRORS), (".1e", ".1e", ".0f"), strict=True)))
    return result


def _accuracies(report: Mapping[str, Any]) -> Table:
    headings = [part for name in METRICS for part in (f"{name}\n%", "change")]
    result = _empty("on labelled images", (*headings, "verdicts\nchanged"))
    for row in report["rows"]:
        figures = [pair for name in METRICS for pair in ((row[name], ".2%"), (row[f"{name}_change"], "+.2%"))]
        result.add_row(row["name"], *map(_cell, [*figures, (row["verdict_changes"], "d")]))
    return result


def _cell(figure: tuple[float | None, str]) -> str:
    value, spec = figure
    return "-" if value is None else format(value, spec).rstrip("%")


def _empty(title: str, headings: Sequence[str]) -> Table:
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("export", overflow="fold")
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
