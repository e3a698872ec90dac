"""Studies as pictures: accuracy against time of scoring, and against time of training."""

from __future__ import annotations

import functools
import io
import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sprfast.bench.accuracy.report import subject
from sprfast.bench.page.plots import FAINT, INK, OURS, PEER
from sprfast.config import PUBLISHED
from sprfast.system import files
from sprfast.training.recipes import RECIPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN = ("image_AUROC", "pixel_AUROC")  # metrics, a panel each
_RECIPES = {"published": OURS, "fast": "#c2410c"}
_LEGEND = "blue: published; black: score divided by the error field; grey: others. With the same passes: side by side."


def study(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the picture as a PNG: image and pixel AUROC of every way of scoring against its time,
    the best of each time joined.

    Of a quick study, which has no way of scoring but the published one, the named settings are
    drawn.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = report["rows"] if len(report["rows"]) > 1 else _settings_as_rows(report)
    drawn = Figure(figsize=(13.0, 5.6), dpi=130, facecolor="white")
    for index, key in enumerate(_DRAWN):
        axes = drawn.add_axes((0.055 + 0.375 * index, 0.12, 0.325, 0.76))
        _pareto(axes, rows, key)
        _finish(axes, key, "ms an image, one image a call")
    text = functools.partial(drawn.text, color=INK, parse_math=False)
    names = "\n".join(f"{number:2}  {row['name']}" for number, row in enumerate(rows, 1))
    text(0.775, 0.9, names, va="top", fontsize=7.5, family="monospace")
    models = f"{len(report['models'])} models, {report['backend']} on {report['device']}"
    text(0.055, 0.94, f"{subject(report)}, {models}", fontsize=11)
    text(0.775, 0.12, textwrap.fill(_LEGEND, 44), va="bottom", fontsize=7.5)
    _write(drawn, path)


def curve(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the picture as a PNG: image and pixel AUROC of each recipe against minutes, with
    whiskers of one standard error.

    Args:
        report: of `curve.measure`.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10.0, 4.0), dpi=110, facecolor="white")
    for axes, key in zip(drawn.subplots(1, 2), _DRAWN, strict=True):
        for recipe in RECIPES:
            points = [each for each in report["points"] if each["recipe"] == recipe and each["metrics"][key]]
            if points:
                minutes = [each["minutes"] for each in points]
                values = [100 * each["metrics"][key]["mean"] for each in points]
                errors = [_whisker(each["metrics"][key]) for each in points]
                axes.errorbar(
                    minutes, values, errors, fmt="o-", markersize=4, linewidth=1.2, color=_RECIPES[recipe], label=recipe
                )
        _finish(axes, key, "minutes of training")
        axes.set_xlim(left=0.0)
        if axes.containers:
            axes.legend(frameon=False)
    drawn.suptitle(f"{subject(report)}, {report['device']}", fontsize=11, parse_math=False)
    drawn.tight_layout()
    _write(drawn, path)


def _settings_as_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    times = report["times"]["settings"]
    return [
        {"name": name, "field": False, "ms": times[name]["ms"]["median"], "metrics": setting["metrics"]}
        for name, setting in report["settings"].items()
    ]


def _pareto(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Points with whiskers of one standard error, numbered as in the list.

    Rows without this metric are left out, and for a metric of maps those with a field, which have
    the same maps as without.
    """
    points = [
        (number, row)
        for number, row in enumerate(rows, 1)
        if row["metrics"][key] is not None and not (key == "pixel_AUROC" and row["field"])
    ]
    if not points:
        return
    times = sorted({row["ms"] for _, row in points})
    gap = min((after - before for before, after in itertools.pairwise(times)), default=times[0])
    front: list[tuple[float, float]] = []
    for time in times:
        alike = sorted((100 * row["metrics"][key]["mean"], number, row) for number, row in points if row["ms"] == time)
        # of the same number of passes: side by side, the better the further right
        for place, (mean, number, row) in enumerate(alike):
            x = time + 0.8 * gap * ((place + 0.5) / len(alike) - 0.5)
            colour = OURS if row["name"] == PUBLISHED else INK if row["field"] else PEER
            axes.errorbar(x, mean, _whisker(row["metrics"][key]), fmt="o", markersize=4, color=colour, elinewidth=0.8)
            offset = (0, 5 if place % 2 else -11)  # in turns above and below, where they are close to each other
            axes.annotate(
                str(number), (x, mean), offset, textcoords="offset points", fontsize=7, color=colour, ha="center"
            )
        if not front or alike[-1][0] > front[-1][1]:
            front.append((time, alike[-1][0]))
    end = (times[-1] + 0.4 * gap, front[-1][1])
    axes.step(*zip(*front, end, strict=True), where="post", color=OURS, linewidth=1, zorder=1)


def _whisker(figure: Mapping[str, Any]) -> float:
    """One standard error in percent; 0 of a single value."""
    return 100 * (figure["standard_error"] or 0.0)


def _finish(axes: Axes, key: str, against: str) -> None:
    axes.set_xlabel(against)
    axes.set_title(f"{key}, %", fontsize=10, loc="left")
    axes.grid(color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)


def _write(drawn: Figure, path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())
