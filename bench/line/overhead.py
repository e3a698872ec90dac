"""What `Line` costs over its predictor alone: both answer the same pictures, in turns and in the
same run, with the same scores.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from sprfast.bench.core import scenarios, timing
from sprfast.bench.core.scenarios import OFFLINE, SINGLE_STREAM, Scenario
from sprfast.bench.line.soak.pictures import as_files, scores, tolerance
from sprfast.config import Preprocessing, require
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import MAX_BATCH, Predictor, Result
from sprfast.line import Line
from sprfast.system import environment

SCHEMA_VERSION = 1
LOSS_LIMIT = 0.05  # share of the images per second that a line may lose
DELAY_LIMIT = 1.0  # ms that a line may add to the median of a single frame
IMAGES = 2 * MAX_BATCH  # of an Offline query
PATIENCE = 600.0  # seconds that a frame may wait for room in the line
BARE, LINE = "engine", "line"
CPU = torch.device("cpu")  # where results are, whatever computes them

Answering = Callable[[Sequence[int]], None]  # takes the indices of a query's pictures


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The same pictures in memory and as files."""

    arrays: tuple[npt.NDArray[np.uint8], ...]  # (H, W, 3) RGB
    paths: tuple[Path, ...]
    description: str

    @classmethod
    def random(cls, predictor: Predictor, folder: Path) -> Pictures:
        """Pictures of the size of the network's input, the same in every run, written to `folder`
        as PNG.
        """
        height, width = predictor.input_size
        arrays = np.random.default_rng(0).integers(0, 256, (IMAGES, height, width, 3), np.uint8)
        return cls(tuple(arrays), as_files(arrays, folder), f"uniform random, {height}x{width}, PNG")

    @classmethod
    def of_files(cls, paths: Sequence[Path], preprocessing: Preprocessing) -> Pictures:
        """The first of the files; where there are fewer they repeat.

        Raises:
            InputError: a file cannot be decoded.
        """
        chosen = tuple(itertools.islice(itertools.cycle(paths), IMAGES))
        decoded = {path: images.read_rgb(path, preprocessing) for path in dict.fromkeys(chosen)}
        description = f"{len(decoded)} files, {images.display_name(chosen[0])} the first"
        return cls(tuple(decoded[path] for path in chosen), chosen, description)


@dataclasses.dataclass(kw_only=True)
class Scores:
    """Compares every score with that of the predictor for the picture alone."""

    compared: int = 0
    different: int = 0
    tolerance: float  # relative
    largest_relative: float | None = 0.0  # difference; None: a score was not finite

    def check(self, expected: Sequence[float], results: Sequence[Result]) -> None:
        """Take the results of a query."""
        for score, result in zip(expected, results, strict=True):
            difference = abs(result.pred_score - score) / abs(score) if result.pred_score != score else 0.0
            self.compared += 1
            self.different += not difference <= self.tolerance  # NaN is different
            if self.largest_relative is not None:
                self.largest_relative = max(self.largest_relative, difference) if math.isfinite(difference) else None


def measure(
    predictor: Predictor,
    pictures: Pictures,
    seconds: float,
    *,
    line_of: Callable[..., Line] = Line,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Offline and SingleStream by the predictor and by a line around it, from arrays and from
    files.

    Args:
        predictor: with a threshold.
        pictures: `IMAGES` of them.
        seconds: for each scenario of each kind of input; a few rounds are measured whatever they
            cost.
        line_of: makes the line, with `Line`'s arguments.
        on_progress: called with scenarios done, their number, and what is going on.

    Returns:
        The report, plain JSON values. In each of `arrays` and `files`: `offline` and
        `single_stream` with the figures of both (see `scenarios`), `loss` as the share of images
        per second that the line loses, by rounds, and `added_ms` by percentile. `limits` has what
        the line must keep, `scores` what was compared.

    Raises:
        InputError: the time is not positive, a picture cannot be scored, or the predictor has no
            threshold.
        BackendError: the model does not pass its self-test here.
    """
    require(0 < seconds < math.inf, "seconds", seconds, "a positive number")
    forms: dict[str, tuple[Sequence[Any], ChannelOrder | None]] = {
        "arrays": (pictures.arrays, "rgb"),
        "files": (pictures.paths, None),
    }
    steps, compared = itertools.count(), Scores(tolerance=tolerance(predictor))
    report: dict[str, Any] = {}
    with line_of(predictor, timeout=PATIENCE) as line:
        for form, (given, order) in forms.items():
            answers = _answers(predictor, line, given, order, form, compared)
            report[form] = {}
            for scenario in (OFFLINE, SINGLE_STREAM):
                if on_progress:
                    on_progress(next(steps), 4, f"{scenario.name} from {form}")
                report[form][scenario.key] = _compared(scenario, answers, seconds)
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(CPU),
        "model_sha256": predictor.model_sha256,
        "backend": predictor.backend,
        "precision": predictor.precision,
        "input": {"images": len(pictures.arrays), "description": pictures.description},
        **report,
        "scores": dataclasses.asdict(compared) | {"passed": compared.different == 0},
        "limits": [limit for form in forms for limit in _limits(form, report[form])],
    }


def passed(report: dict[str, Any]) -> bool:
    """Whether every limit is kept and every score the predictor's."""
    return all(limit["passed"] for limit in report["limits"]) and bool(report["scores"]["passed"])


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal; fits 80 columns."""
    speeds = Table(title=f"Line and its engine, backend {report['backend']}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    speeds.add_column("input", no_wrap=True)
    offline_headings = ("Offline\nengine", "images/s\nline", "line/engine\n(min-max)")
    for heading in (*offline_headings, "p50 ms\nengine", "\nline", "p90 ms\nengine", "\nline"):
        speeds.add_column(heading, justify="right", no_wrap=True)
    for form in ("arrays", "files"):
        offline, single = report[form]["offline"], report[form]["single_stream"]
        ratio = offline["ratio"]
        speeds.add_row(
            form,
            *(f"{offline[name]['images_per_s']:.4g}" for name in (BARE, LINE)),
            f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
            *(f"{single[name][key]:.4g}" for key in ("p50_ms", "p90_ms") for name in (BARE, LINE)),
        )
    verdicts = Table("", "", "limit", "", box=None, show_header=False, padding=(0, 2, 0, 0))
    for each in report["limits"]:
        value, limit = f"{each['value']:.3g} {each['unit']}", f"limit {each['limit']:g} {each['unit']}"
        verdicts.add_row(each["name"], value, limit, "PASS" if each["passed"] else "FAIL")
    scores, machine = report["scores"], report["environment"]
    largest = "not finite" if scores["largest_relative"] is None else f"{scores['largest_relative']:.1e}"
    said = f"{scores['different']} of {scores['compared']} differ, limit {scores['tolerance']:g}"
    verdicts.add_row("scores: largest difference", largest, said, "PASS" if scores["passed"] else "FAIL")
    notes = (
        f"{report['input']['description']}; {report['input']['images']} of them in an Offline query; {scenarios.NOTE}",
        f"{machine['cpu']}, {machine['torch_threads']} threads, load {machine['load_average']} at the end",
    )
    return Group(speeds, verdicts, *notes)


def _answers(
    predictor: Predictor, line: Line, given: Sequence[Any], order: ChannelOrder | None, form: str, compared: Scores
) -> dict[str, Answering]:
    """By name, what answers a query and compares its scores."""
    expected, numbers = scores(predictor, given, order), itertools.count()

    def bare(indices: Sequence[int]) -> None:
        results = predictor.predict([given[index] for index in indices], order)
        compared.check([expected[index] for index in indices], results)

    def through(indices: Sequence[int]) -> None:
        futures = [line.submit(given[index], (form, next(numbers)), channel_order=order) for index in indices]
        compared.check([expected[index] for index in indices], [future.result().result for future in futures])

    return {BARE: bare, LINE: through}


def _compared(scenario: Scenario, answers: dict[str, Answering], seconds: float) -> dict[str, Any]:
    """Figures of both, and of the line relative to the predictor."""
    measured: list[timing.Round] = list(scenario.rounds(answers, IMAGES, CPU, seconds))
    figures = {name: scenario.figures([times[name] for times in measured], IMAGES) for name in answers}
    if scenario is OFFLINE:
        return figures | {"ratio": timing.ratio(measured, BARE, LINE)}
    added = {key: figures[LINE][f"{key}_ms"] - figures[BARE][f"{key}_ms"] for key in ("p50", "p90")}
    return figures | {"added_ms": added}


def _limits(form: str, measured: dict[str, Any]) -> list[dict[str, Any]]:
    loss = 100 * (1 - measured["offline"]["ratio"]["median"])
    added = measured["single_stream"]["added_ms"]["p50"]
    return [
        {"name": f"{form}: {name}", "value": value, "limit": limit, "unit": unit, "passed": value <= limit}
        for name, value, limit, unit in (
            ("images/s lost, Offline", loss, 100 * LOSS_LIMIT, "%"),
            ("added to a frame's median", added, DELAY_LIMIT, "ms"),
        )
    ]
