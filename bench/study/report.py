"""A study as tables for a terminal, as a file, and as a picture of accuracy against time."""

from __future__ import annotations

import io
import itertools
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sprfast import files, metrics
from sprfast.bench.study.measure import SCHEMA_VERSION
from sprfast.errors import InputError
from sprfast.setting import PUBLISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS = tuple(key.replace("_AUROC", "\nAUROC") for key in metrics.KEYS)  # as headings
_WAYS = {"iid": "random halves", "in_time": "first half to second", "across": "held back to test"}  # as `promises` has them
_DRAWN = ("image_AUROC", "pixel_AUROC")
_OURS, _OTHER, _INK, _FAINT = "#0b5fa5", "#9aa0a6", "#1f2328", "#e4e7eb"


def write(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON.

    Raises:
        InputError: the file cannot be written; an old file stays as it was.
    """
    files.write_bytes(path, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report in a file that `write` made.

    Raises:
        InputError: the file is missing, or is no such report of this version.
    """
    try:
        report = json.loads(Path(path).read_bytes(), parse_constant=_refuse)
        version = report["schema_version"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is not a report of `sprfast study` ({type(error).__name__}: {error})") from error
    if version != SCHEMA_VERSION or not {"rows", "settings", "times", "category"} <= report.keys():
        raise InputError(f"{path}: is not a report of `sprfast study` with schema_version {SCHEMA_VERSION}")
    found: dict[str, Any] = report
    return found


def table(report: Mapping[str, Any]) -> RenderableType:
    """Every way of scoring, the named settings, what their thresholds kept, and the backends; fits 110 columns."""
    return Group(_rows(report), _settings(report), _notes(report), _promises(report), _backends(report))


def overview(reports: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each named setting of each report: for a README; fits 110 columns."""
    table = grid("category", "size", "min", "setting", "passes", "ms", "x\npublished", *_METRICS, tight=True)
    for report in reports:
        for name, setting in report["settings"].items():
            times = report["times"]["settings"][name]
            cells = [percent(setting["metrics"][key]) for key in metrics.KEYS]
            size, minutes = str(report["preprocessing"]["size"]), _minutes(report)
            passes, speedup = f"{setting['passes']['mean']:.2f}", f"{times['speedup']['median']:.2f}"
            table.add_row(Text(report["category"]), size, minutes, name, passes, f"{times['ms']['median']:.1f}", speedup, *cells)
    return table


def figure(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the picture as a PNG: image and pixel AUROC of every way of scoring against its time, the best of each time joined.

    Of a quick study, which has no way of scoring but the published one, the named settings are drawn.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = report["rows"] if len(report["rows"]) > 1 else _settings_as_rows(report)
    drawn = Figure(figsize=(13.0, 5.6), dpi=130, facecolor="white")
    for index, key in enumerate(_DRAWN):
        axes = drawn.add_axes((0.055 + 0.375 * index, 0.12, 0.325, 0.76))
        _pareto(axes, rows, key)
    names = "\n".join(f"{index + 1:2}  {row['name']}" for index, row in enumerate(rows))
    drawn.text(0.775, 0.9, names, va="top", fontsize=7.5, color=_INK, family="monospace", parse_math=False)
    size = report["preprocessing"]["size"]
    title = f"{report['category']}, {size}x{size}, {len(report['models'])} models, {report['backend']} on {report['device']}"
    drawn.text(0.055, 0.94, title, fontsize=11, color=_INK, parse_math=False)
    legend = "blue: published; black: score divided by the error field; grey: others. With the same passes: side by side."
    drawn.text(0.775, 0.12, "\n".join(textwrap.wrap(legend, 44)), va="bottom", fontsize=7.5, color=_INK, parse_math=False)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())


def _settings_as_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    times = report["times"]["settings"]
    return [
        {"name": name, "field": False, "ms": times[name]["ms"]["median"], "metrics": setting["metrics"]}
        for name, setting in report["settings"].items()
    ]


def _pareto(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Points with whiskers of one standard error, numbered as in the list.

    Rows without this metric are left out, and for a metric of maps those with a field, which have the same maps as without.
    """
    of_maps = key == "pixel_AUROC"
    points = [(index + 1, row) for index, row in enumerate(rows) if row["metrics"][key] is not None and not (of_maps and row["field"])]
    best, front = -1.0, []
    times = sorted({row["ms"] for _, row in points})
    gap = min((after - before for before, after in itertools.pairwise(times)), default=times[0] if times else 0.0)
    for time in times:
        alike = sorted((row["metrics"][key]["mean"], number) for number, row in points if row["ms"] == time)
        for place, (mean, number) in enumerate(alike):  # of the same number of passes: side by side, the better the further right
            row = rows[number - 1]
            x = time + 0.8 * gap * ((place + 0.5) / len(alike) - 0.5)
            colour = _OURS if row["name"] == PUBLISHED else _INK if row["field"] else _OTHER
            error = 100 * (row["metrics"][key]["standard_error"] or 0.0)
            axes.errorbar(x, 100 * mean, error, fmt="o", markersize=4, color=colour, elinewidth=0.8)
            offset = (0, 5 if place % 2 else -11)  # in turns above and below, where they are close to each other
            axes.annotate(str(number), (x, 100 * mean), offset, textcoords="offset points", fontsize=7, color=colour, ha="center")
        if alike[-1][0] > best:
            best = alike[-1][0]
            front.append((time, 100 * best))
    if front:
        axes.step(*zip(*front, (times[-1] + 0.4 * gap, 100 * best), strict=True), where="post", color=_OURS, linewidth=1, zorder=1)
    axes.set_xlabel("ms an image, one image a call")
    axes.set_title(f"{key}, %", fontsize=10, loc="left")
    axes.grid(color=_FAINT)
    axes.spines[["top", "right"]].set_visible(False)


def _rows(report: Mapping[str, Any]) -> Table:
    given = report["images"]
    title = f"{report['category']}, {len(report['models'])} models, {given['test']} test images ({given['defective']} defective)"
    table = grid("", "passes", "ms", *_METRICS, title=title, tight=True)
    for row in report["rows"]:
        name = Text(row["name"], style="bold" if row["name"] == PUBLISHED else "")
        table.add_row(name, str(row["passes"]), f"{row['ms']:.1f}", *(percent(row["metrics"][key]) for key in metrics.KEYS))
    return table


def _settings(report: Mapping[str, Any]) -> Table:
    table = grid("setting", "passes", "ms", "images/s", "x published", *_METRICS, title="named settings", tight=True)
    for name, setting in report["settings"].items():
        times = report["times"]["settings"][name]
        cells = [percent(setting["metrics"][key]) for key in metrics.KEYS]
        speed = f"{times['images_per_s']['median']:.1f}"
        ratio = f"{times['speedup']['median']:.2f}"
        table.add_row(name, f"{setting['passes']['mean']:.2f}", f"{times['ms']['median']:.1f}", speed, ratio, *cells)
    return table


def _notes(report: Mapping[str, Any]) -> Text:
    """What the cascade asks again, and what dividing maps by the field would do."""
    lines = []
    for name, setting in report["settings"].items():
        if "agreement" in setting:
            agreement, again = (_shares(setting[key]) for key in ("agreement", "asked_again"))
            lines.append(f"{name}: {again} are asked again; the verdict is the published one's on {agreement}")
        if "divided" in setting and setting["divided"][0]["maps"] is not None:
            mean = {key: 100 * sum(each[key] for each in setting["divided"]) / len(setting["divided"]) for key in setting["divided"][0]}
            lines.append(
                f"{name}: maps divided by the field would have a pixel_AUROC of {mean['maps']:.1f} %, "
                f"and the field alone as every image's map has {mean['field_alone']:.1f} %"
            )
    return Text("\n".join(lines) + "\n")


def _shares(of_models: Sequence[Mapping[str, float | None]]) -> str:
    """In percent, averaged over the models, of each kind of image that there is."""
    known = {key: [value for each in of_models if (value := each[key]) is not None] for key in of_models[0]}
    means = {key: 100 * sum(values) / len(values) for key, values in known.items() if values}
    return ", ".join(f"{value:.1f} % of {key}" for key, value in means.items())


def _promises(report: Mapping[str, Any]) -> Table:
    title = "rejected good images and marked good pixels, in percent (images that the threshold is from; * : out of the 95 % interval)"
    table = grid("threshold of", "promised", *_WAYS.values(), title=title)
    for name, setting in report["settings"].items():
        for kind in ("images", "maps"):
            for of_models in setting[kind]:
                promised = f"{100 * of_models[0]['promised']:g} %"
                table.add_row(Text(f"{name}, {kind}"), promised, *(_kept([each.get(way) for each in of_models]) for way in _WAYS))
    return table


def _kept(of_models: Sequence[Mapping[str, Any] | None]) -> str:
    """A measured rate, averaged over the models; a star where it lies outside of the interval for one of them."""
    found = [each for each in of_models if each is not None]
    if not found:
        return "-"
    samples = found[0]["calibrated_on"]
    if any("refused" in each for each in found):
        return f"refused ({samples})"
    rate = 100 * sum(each["rate"] for each in found) / len(found)
    low, high = (100 * value for value in found[0]["interval"])
    return f"{rate:.2f}{'' if all(each['within'] for each in found) else ' *'} in {low:.1f}-{high:.1f} ({samples})"


def _backends(report: Mapping[str, Any]) -> Table:
    title = "published setting by every backend, first model; largest difference of the two from eager's in percentage points"
    table = grid("backend", "image_AUROC", "pixel_AUROC", title=title)
    table.add_column("from eager", overflow="fold")
    for each in report["backends"]:
        if "reason" in each:
            table.add_row(each["backend"], "-", "-", Text(each["reason"]))
            continue
        apart = [abs(value) for value in each["from_eager"].values() if value is not None]
        values = [f"{100 * each[key]:.4f}" if each[key] is not None else "-" for key in _DRAWN]
        table.add_row(each["backend"], *values, f"{100 * max(apart, default=0.0):.2g}")
    return table


def _minutes(report: Mapping[str, Any]) -> str:
    """Of training, on average; a dash for models that were not trained here."""
    seconds = [model["provenance"].get("seconds") for model in report["models"]]
    return "-" if None in seconds else f"{sum(seconds) / len(seconds) / 60:.1f}"


def percent(figure: Mapping[str, Any] | None) -> str:
    """Such as 97.2±0.3: a mean and its standard error, in percent."""
    if figure is None:
        return "-"
    error = figure["standard_error"]
    return f"{100 * figure['mean']:.1f}" + ("" if error is None else f"±{100 * error:.1f}")


def grid(*headings: str, title: str | None = None, tight: bool = False) -> Table:
    """Names may go over several lines, figures not; `tight`: with one blank between columns instead of three."""
    shown = Text(title, "table.title") if title else None
    padding = (0, 0 if tight else 1)
    table = Table(box=box.SIMPLE_HEAD, title=shown, title_justify="left", pad_edge=False, padding=padding)
    for index, heading in enumerate(headings):
        if index == 0:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
