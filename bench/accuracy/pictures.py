"""Studies as pictures: accuracy against time of scoring, and against time of training."""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sprfast.bench.accuracy.report import recipe, subject
from sprfast.bench.page.plots import FAINT, INK, OURS, PEER
from sprfast.config import PUBLISHED
from sprfast.data.lettering import lettered
from sprfast.system import files
from sprfast.training.recipes import RECIPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIELD = ", field"  # ends the name of a row that differs from another by its field alone
_DRAWN = ("image_AUROC", "pixel_AUROC")  # metrics, a panel each
_RECIPES = {"published": OURS, "fast": "#c2410c", "repair": "#15803d"}
_KINDS = {OURS: PUBLISHED, INK: "score divided by the error field", PEER: "others"}  # of points, by colour
_SIDE_BY_SIDE = "With the same passes: side by side."
_POINT, _NUMBER = 2.5, (4.6, 7.1)  # points from the middle of a marker to its edge; of a digit's width and height
# from a point to the middle of its number, in points, nearest first
_OFFSETS = sorted(
    itertools.product((0, -8, 8, -15, 15), (7, -8, 15, -16, 23, -24, 31, -32, 39, -40)), key=lambda at: math.hypot(*at)
)


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
    title, font = lettered(f"{subject(report)}, {models}")
    text(0.055, 0.94, title, fontsize=11, **font)
    text(0.775, 0.12, _SIDE_BY_SIDE, va="bottom", fontsize=7.5)
    shown = {_colour(row) for row in rows if any(row["metrics"][key] for key in _DRAWN)}
    for line, (colour, kind) in enumerate((colour, kind) for colour, kind in _KINDS.items() if colour in shown):
        drawn.text(0.775, 0.21 - 0.025 * line, f"●  {kind}", color=colour, va="bottom", fontsize=7.5)
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
        for name in RECIPES:
            points = [each for each in report["points"] if each["recipe"] == name and each["metrics"][key]]
            if points:
                minutes = [each["minutes"] for each in points]
                values = [100 * each["metrics"][key]["mean"] for each in points]
                errors = [_whisker(each["metrics"][key]) for each in points]
                axes.errorbar(
                    minutes, values, errors, fmt="o-", markersize=4, linewidth=1.2, color=_RECIPES[name], label=name
                )
        _finish(axes, key, "minutes of training")
        axes.set_xlim(left=0.0)
        if axes.containers:
            axes.legend(frameon=False)
    title, font = lettered(f"{subject(report)}, {report['device']}")
    drawn.suptitle(title, fontsize=11, **font)
    drawn.tight_layout()
    _write(drawn, path)


def overview(reports: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write the picture as a PNG: image and pixel AUROC of the named settings against their time,
    with whiskers of one standard error. Each category and size has its column, each recipe its
    colour.

    Args:
        reports: of `measure.study`.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    subjects = list(dict.fromkeys(map(subject, reports)))
    names = list(dict.fromkeys(name for report in reports for name in report["settings"]))
    markers = dict(zip(names, itertools.cycle("osD^vP*"), strict=False))
    drawn = Figure(figsize=(1.5 + 3.2 * len(subjects), 6.8), dpi=110, facecolor="white", layout="constrained")
    panels = drawn.subplots(2, len(subjects), squeeze=False)
    for line, key in zip(panels, _DRAWN, strict=True):
        for axes, of in zip(line, subjects, strict=True):
            for report in (each for each in reports if subject(each) == of):
                for row in _settings_as_rows(report):
                    if row["metrics"][key]:
                        axes.errorbar(
                            row["ms"],
                            100 * row["metrics"][key]["mean"],
                            _whisker(row["metrics"][key]),
                            fmt=markers[row["name"]],
                            markersize=5,
                            color=_RECIPES.get(recipe(report) or "", PEER),
                            elinewidth=0.8,
                        )
            _finish(axes, key, "ms an image, one image a call")
            title, font = lettered(of)
            axes.set_title(f"{title}\n{key}, %", fontsize=9, loc="left", **font)
    trained = dict.fromkeys(recipe(report) or "other" for report in reports)
    drawn.legend(
        handles=[
            *(Line2D([], [], color=_RECIPES.get(each, PEER), lw=4, label=f"trained by {each}") for each in trained),
            *(Line2D([], [], color=INK, marker=markers[name], lw=0, label=name) for name in names),
        ],
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
    _write(drawn, path)


def _settings_as_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    times = report["times"]["settings"]
    return [
        {
            "name": name,
            "field": "divided" in setting,
            "ms": times[name]["ms"]["median"],
            "metrics": setting["metrics"],
        }
        for name, setting in report["settings"].items()
    ]


def _pareto(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Points with whiskers of one standard error, numbered as in the list.

    Rows without this metric are left out, and for a metric of maps those that have the same maps as
    another row, without its field.
    """
    names = [row["name"] for row in rows]
    points = [
        (number, row)
        for number, row in enumerate(rows, 1)
        if row["metrics"][key] is not None
        and not (key == "pixel_AUROC" and row["name"].endswith(_FIELD) and row["name"].removesuffix(_FIELD) in names)
    ]
    if not points:
        return
    times = sorted({row["ms"] for _, row in points})
    gap = min((after - before for before, after in itertools.pairwise(times)), default=times[0])
    front: list[tuple[float, float]] = []
    numbers: list[tuple[int, float, float, str]] = []
    for time in times:
        alike = sorted((100 * row["metrics"][key]["mean"], number, row) for number, row in points if row["ms"] == time)
        # of the same number of passes: side by side, the better the further right
        for place, (mean, number, row) in enumerate(alike):
            x = time + 0.8 * gap * ((place + 0.5) / len(alike) - 0.5)
            colour = _colour(row)
            axes.errorbar(x, mean, _whisker(row["metrics"][key]), fmt="o", markersize=4, color=colour, elinewidth=0.8)
            numbers.append((number, x, mean, colour))
        if not front or alike[-1][0] > front[-1][1]:
            front.append((time, alike[-1][0]))
    end = (times[-1] + 0.4 * gap, front[-1][1])
    axes.step(*zip(*front, end, strict=True), where="post", color=OURS, linewidth=1, zorder=1)
    _number(axes, numbers)


def _colour(row: Mapping[str, Any]) -> str:
    """Of a row's points: a key of `_KINDS`."""
    if row["name"] == PUBLISHED:
        return OURS
    return INK if row["field"] else PEER


def _number(axes: Axes, points: Sequence[tuple[int, float, float, str]]) -> None:
    """Write its number, in its colour, beside each point: at the nearest place that is free."""
    from matplotlib.patheffects import withStroke

    axes.autoscale_view()
    to_points = 72 / axes.figure.dpi
    centres = [to_points * axes.transData.transform((x, y)) for _, x, y, _ in points]
    taken = [(x, y, _POINT, _POINT) for x, y in centres]  # middles, and halves of widths and heights
    for (number, x, y, colour), centre in zip(points, centres, strict=True):
        half = (_NUMBER[0] * len(str(number)) / 2, _NUMBER[1] / 2)
        free = (at for at in _OFFSETS if not any(_overlap((*(centre + at), *half), each) for each in taken))
        offset = next(free, _OFFSETS[0])
        taken.append((*(centre + offset), *half))
        axes.annotate(
            str(number),
            (x, y),
            offset,
            textcoords="offset points",
            fontsize=7,
            color=colour,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],  # whiskers and lines stay behind it
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return abs(one[0] - other[0]) < one[2] + other[2] and abs(one[1] - other[1]) < one[3] + other[3]


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
