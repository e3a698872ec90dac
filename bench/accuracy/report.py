"""A study as tables for a terminal, and as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from sprfast.bench.accuracy.measure import SCHEMA_VERSION
from sprfast.config import PUBLISHED
from sprfast.errors import InputError
from sprfast.evaluation import metrics
from sprfast.system import files
from sprfast.system.terminal import shown
from sprfast.training.recipes import trained_by

HEADINGS = tuple(key.replace("_AUROC", "\nAUROC") for key in metrics.KEYS)  # of the columns of `percents`
# as `promises` has them
_WAYS = {"iid": "random halves", "in_time": "first half to second", "across": "held back to test"}
# of reports
_KEYS = {"study": {"rows", "settings", "times", "category"}, "curve": {"points", "category", "preprocessing"}}


def write(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON.

    Raises:
        InputError: the file cannot be written; an old file stays as it was.
    """
    files.write_bytes(path, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report in a file that `write` made, of a study or of a curve.

    Raises:
        InputError: the file is missing, or is no such report of this version.
    """
    try:
        report: dict[str, Any] = json.loads(Path(path).read_bytes(), parse_constant=_refuse)
        version = report["schema_version"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is not a report of `sprfast study` ({type(error).__name__}: {error})") from error
    if version != SCHEMA_VERSION or not any(keys <= report.keys() for keys in _KEYS.values()):
        raise InputError(f"{path}: is not a report of `sprfast study` with schema_version {SCHEMA_VERSION}")
    return report


def is_curve(report: Mapping[str, Any]) -> bool:
    """Whether `curve.measure` made it, and not `measure.study`."""
    return _KEYS["curve"] <= report.keys()


def recipe(report: Mapping[str, Any]) -> str | None:
    """The recipe of a study's models; None: of none, or of several."""
    recipes = {trained_by(model["provenance"]) for model in report["models"]}
    return recipes.pop() if len(recipes) == 1 else None


def subject(report: Mapping[str, Any]) -> str:
    """Category and size of the images."""
    size = report["preprocessing"]["size"]
    return f"{report['category']}, {size}x{size}"


def table(report: Mapping[str, Any]) -> RenderableType:
    """Every way of scoring, the named settings, what their thresholds kept, and the backends; fits
    110 columns.
    """
    return Group(_rows(report), _settings(report), _notes(report), _promises(report), _backends(report))


def overview(reports: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each named setting of each report: for a README; fits 110 columns. `speed` is
    images/s over the published setting's.
    """
    table = grid("category", "size", "recipe", "steps", "setting", "ms", "speed", *HEADINGS, tight=True)
    for report in reports:
        trained = str(report["preprocessing"]["size"]), recipe(report) or "-", _steps(report)
        for name, setting in report["settings"].items():
            _, ms, _, speedup = _costs(report, name)
            table.add_row(report["category"], *trained, name, ms, speedup, *percents(setting["metrics"]))
    return table


def _rows(report: Mapping[str, Any]) -> Table:
    given = report["images"]
    images = f"{given['test']} test images ({given['defective']} defective)"
    title = f"{report['category']}, {len(report['models'])} models, {images}"
    table = grid("", "passes", "ms", *HEADINGS, title=title, tight=True)
    for row in report["rows"]:
        name = Text(shown(row["name"]), style="bold" if row["name"] == PUBLISHED else "")
        table.add_row(name, str(row["passes"]), f"{row['ms']:.1f}", *percents(row["metrics"]))
    return table


def _settings(report: Mapping[str, Any]) -> Table:
    table = grid("setting", "passes", "ms", "images/s", "x published", *HEADINGS, title="named settings", tight=True)
    for name, setting in report["settings"].items():
        table.add_row(name, *_costs(report, name), *percents(setting["metrics"]))
    return table


def _costs(report: Mapping[str, Any], name: str) -> tuple[str, str, str, str]:
    """Passes, ms, images/s and the speed over the published setting's of a named setting."""
    passes, times = report["settings"][name]["passes"]["mean"], report["times"]["settings"][name]
    ms, images_per_s, speedup = (times[key]["median"] for key in ("ms", "images_per_s", "speedup"))
    return f"{passes:.2f}", f"{ms:.1f}", f"{images_per_s:.1f}", f"{speedup:.2f}"


def _notes(report: Mapping[str, Any]) -> str:
    """What mean brightness would do as the score, and dividing maps by the error field."""
    lines, brightness = [], report.get("brightness_AUROC")  # reports of earlier versions have none
    if brightness is not None:
        lines.append(
            f"the mean brightness of an image as its score would have an image_AUROC of {100 * brightness:.1f} %"
        )
    for name, setting in report["settings"].items():
        divided = setting.get("divided")
        if divided and divided[0]["maps"] is not None:
            maps, alone = (100 * sum(each[key] for each in divided) / len(divided) for key in ("maps", "field_alone"))
            lines.append(
                f"{name}: maps divided by the field would have a pixel_AUROC of {maps:.1f} %, "
                f"and the field alone as every image's map has {alone:.1f} %"
            )
    return "\n".join(lines) + "\n"


def _promises(report: Mapping[str, Any]) -> Table:
    title = (
        "rejected good images and marked good pixels, in percent (images that the threshold is from; * : out of "
        "the 95 % interval)"
    )
    table = grid("threshold of", "promised", *_WAYS.values(), title=title)
    for name, setting in report["settings"].items():
        for kind in ("images", "maps"):
            for of_models in setting[kind]:
                promised = f"{100 * of_models[0]['promised']:g} %"
                table.add_row(f"{name}, {kind}", promised, *(_kept(of_models, way) for way in _WAYS))
    return table


def _kept(of_models: Sequence[Mapping[str, Any]], way: str) -> str:
    """A measured rate, averaged over the models; a star where it lies outside of the interval for
    one of them.
    """
    if way not in of_models[0]:
        return "-"
    found = [each[way] for each in of_models]
    samples = found[0]["calibrated_on"]
    if any("refused" in each for each in found):
        return f"refused ({samples})"
    rate = 100 * sum(each["rate"] for each in found) / len(found)
    low, high = (100 * value for value in found[0]["interval"])
    return f"{rate:.2f}{'' if all(each['within'] for each in found) else ' *'} in {low:.1f}-{high:.1f} ({samples})"


def _backends(report: Mapping[str, Any]) -> Table:
    title = (
        "published setting by every backend, first model; largest difference of the two from eager's in "
        "percentage points"
    )
    table = grid("backend", "image_AUROC", "pixel_AUROC", title=title)
    table.add_column("from eager", overflow="fold")
    for each in report["backends"]:
        if "reason" in each:
            table.add_row(each["backend"], "-", "-", each["reason"])
            continue
        apart = [abs(value) for value in each["from_eager"].values() if value is not None]
        values = [f"{100 * each[key]:.4f}" if each[key] is not None else "-" for key in ("image_AUROC", "pixel_AUROC")]
        table.add_row(each["backend"], *values, f"{100 * max(apart, default=0.0):.2g}")
    return table


def _steps(report: Mapping[str, Any]) -> str:
    """Mean steps of training; a dash for models that were not trained here."""
    steps = [model["provenance"].get("steps") for model in report["models"]]
    return "-" if None in steps else f"{sum(steps) / len(steps):.0f}"


def percents(figures: Mapping[str, Any]) -> list[str]:
    """Each metric in percent, such as 97.2±0.3: a mean and its standard error."""
    return [_percent(figures[key]) for key in metrics.KEYS]


def _percent(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    error = figure["standard_error"]
    return f"{100 * figure['mean']:.1f}" + ("" if error is None else f"±{100 * error:.1f}")


def grid(*headings: str, title: str | None = None, tight: bool = False) -> Table:
    """Names may fold, figures not; `tight`: one blank between columns instead of three."""
    return Table(
        Column(headings[0], overflow="fold"),
        *(Column(heading, justify="right", no_wrap=True) for heading in headings[1:]),
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        padding=(0, 0 if tight else 1),
    )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
