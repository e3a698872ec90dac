"""Plots of a bench report as inline SVG.

Every plot has the same width. Its ids begin with its own name, so that several fit into one page,
and the same values give the same text.
"""

from __future__ import annotations

import dataclasses
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sprfast.bench.core import timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEER = "#0b5fa5", "#9aa0a6"  # dark and light: they differ in grey too
_INK, _FAINT = "#1f2328", "#e4e7eb"
_WIDTH = 10.0  # inches, as all lengths below; 1 inch is 96 CSS pixels
_ROW = 0.34  # of a candidate in a chart of bars
_CURVES = 3.3  # height of a chart of curves
_LEFT, _BOTTOM, _TOP, _EDGE = 0.85, 0.55, 0.12, 0.25  # margins
_CHARACTER = 0.092  # no character of a label is wider on average
_LABEL = 0.19  # distance of labels above each other
_LONGEST = 28  # characters of a name
_WIDE = 8.0  # ratio of the largest to the smallest time from which an axis is logarithmic
_SHADES = {True: (OURS, "#2f8fd0", "#062f57"), False: ("#6e7781", "#b35900", "#1a7f5a", "#a0468f", "#b8a200")}
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # a name may have a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be searched and copied
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _FAINT,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclasses.dataclass(frozen=True)
class Series:
    """What is drawn of one candidate."""

    name: str
    ours: bool
    values: Sequence[tuple[float, ...]]  # what these are says each plot


def throughput(bars: Sequence[Series]) -> str:
    """Bars of images a second; `values` holds one (median, min, max)."""

    def draw(axes: Axes) -> None:
        for row, bar in enumerate(bars):
            median, low, high = bar.values[0]
            axes.barh(row, median, 0.62, color=OURS if bar.ours else PEER)
            axes.plot((low, high), (row, row), color=_INK, marker="|", markersize=7, linewidth=1)
        _label_ends(axes, [max(bar.values[0]) for bar in bars], [number(bar.values[0][0]) for bar in bars])
        axes.set_xlabel("Offline, images/s (median; whiskers: slowest and fastest query)")
        _rows(axes, bars)

    return _bars("throughput", "Offline throughput of each candidate", bars, draw)


def latency(dots: Sequence[Series]) -> str:
    """Dots for percentiles; `values` holds one (p50, p90, p99) in milliseconds."""

    def draw(axes: Axes) -> None:
        for row, each in enumerate(dots):
            colour = OURS if each.ours else PEER
            axes.plot(each.values[0], [row] * 3, color=colour, linewidth=1.5, zorder=2)
            for value, marker, size, inside in zip(
                each.values[0], "o|s", (6, 9, 6), (colour, colour, "white"), strict=True
            ):
                axes.plot(
                    value,
                    row,
                    marker,
                    color=colour,
                    markersize=size,
                    markeredgewidth=1.5,
                    markerfacecolor=inside,
                    zorder=3,
                )
            _label(axes, each.values[0][2], row, " / ".join(number(value) for value in each.values[0]), 9)
        _limits(axes, [value for each in dots for value in each.values[0]], spare=0.27)
        axes.set_xlabel("SingleStream latency, ms (circle p50, bar p90, open square p99)")
        _rows(axes, dots)

    return _bars("latency", "Percentiles of the SingleStream latency of each candidate", dots, draw)


def distribution(samples: Sequence[Series]) -> str:
    """Empirical distribution functions; `values` holds (milliseconds,) of each query."""

    def draw(axes: Axes) -> None:
        styles = _styles(samples)
        for each in sorted(samples, key=lambda each: timing.percentile([value for (value,) in each.values], 50)):
            axes.ecdf(np.ravel(each.values), label=_short(each.name), **styles[each.name])
        _limits(axes, [value for each in samples for (value,) in each.values], spare=0.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("SingleStream latency, ms")
        axes.set_ylabel("share of queries within")
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, handlelength=2.6, title="fastest median first"
        )

    return _curves("distribution", "Distribution of the SingleStream latency of each candidate", samples, draw)


def waterfall(steps: Sequence[Series]) -> str:
    """Bars from each step's predecessor to itself; `values` holds one (milliseconds an image,)."""

    def draw(axes: Axes) -> None:
        times = [step.values[0][0] for step in steps]
        previous, texts = [times[0], *times[:-1]], []
        for row, (step, time, before) in enumerate(zip(steps, times, previous, strict=True)):
            axes.barh(row, time, 0.62, color=OURS if step.ours else PEER)
            if before > time:
                axes.barh(row, before - time, 0.62, left=time, color="white", edgecolor=PEER, linestyle=(0, (3, 2)))
            gained = f", × {number(before / time, 3)}" if row else ""
            total = f", × {number(times[0] / time, 3)} in all" if row > 1 else ""
            texts.append(f"{number(time)} ms{gained}{total}")
        _label_ends(axes, list(map(max, times, previous)), texts)
        axes.set_xlabel("SingleStream median, ms an image (dashed: what the step saves)")
        _rows(axes, steps)

    return _bars("waterfall", "Time of an image, step by step", steps, draw)


def batch_sweep(lines: Sequence[Series]) -> str:
    """Images a second against images a call; `values` holds (batch, median, min, max), batches
    ascending.
    """

    def draw(axes: Axes) -> None:
        for each, style in zip(lines, _styles(lines).values(), strict=True):
            batch, median, low, high = np.array(each.values).T
            axes.errorbar(
                batch, median, [median - low, high - median], marker="o", markersize=5, capsize=3, elinewidth=1, **style
            )
        axes.set_xscale("log", base=2)
        _ticks(axes, [int(value[0]) for each in lines for value in each.values])
        axes.set_ylim(0, 1.08 * max(value[3] for each in lines for value in each.values))
        axes.set_xlabel("images a call")
        axes.set_ylabel("images/s (median, min–max)")
        _end_labels(axes, lines)

    return _curves("batch", "Throughput against the number of images a call", lines, draw)


def draws_sweep(lines: Sequence[Series]) -> str:
    """Milliseconds an image against draws; `values` holds (draws, milliseconds), draws
    ascending.
    """

    def draw(axes: Axes) -> None:
        for each, style in zip(lines, _styles(lines).values(), strict=True):
            axes.plot(*np.array(each.values).T, marker="o", markersize=5, **style)
        _ticks(axes, [int(draws) for each in lines for draws, _ in each.values])
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.08 * max(value for each in lines for _, value in each.values))
        axes.set_xlabel("draws at each noise level")
        axes.set_ylabel("ms an image, one image a call")
        _end_labels(axes, lines)

    return _curves("draws", "Time of an image against the number of draws", lines, draw)


def trade_off(lines: Sequence[Series]) -> str:
    """Accuracy against time; a series a metric, `values` holds (milliseconds an image, percent,
    draws), draws ascending.
    """

    def draw(axes: Axes) -> None:
        for each, style, marker in zip(lines, _styles(lines).values(), "os", strict=False):
            milliseconds, metric, _ = np.array(each.values).T
            axes.plot(milliseconds, metric, marker=marker, markersize=6, **style)
        for x, draws in sorted({(x, draws) for each in lines for x, _, draws in each.values}):
            axes.axvline(x, color=PEER, linewidth=0.8, zorder=1)
            axes.annotate(
                f"{draws:.0f}", (x, 1.0), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points"
            )
        axes.grid(visible=False, axis="x")
        axes.margins(0.08, 0.2)
        axes.ticklabel_format(useOffset=False)
        axes.set_xlabel("ms an image, one image a call (number at a line: draws)")
        axes.set_ylabel("AUROC, %")
        _end_labels(axes, lines)

    return _curves("trade-off", "AUROC against the time of an image", lines, draw)


def number(value: float, digits: int = 4) -> str:
    """A whole number as it is, any other with at least so many significant digits; never with an
    exponent.
    """
    if isinstance(value, int):
        return f"{value:,}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def shortest(value: float, digits: int = 4) -> str:
    """The text of `number` without zeros at the end."""
    text = number(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _bars(name: str, title: str, rows: Sequence[Series], draw: Callable[[Axes], None]) -> str:
    """A chart of one row a candidate, with room for the names at the left."""
    left = 0.2 + _CHARACTER * max(len(_short(row.name)) for row in rows)
    return _svg(name, title, _ROW * len(rows) + _TOP + _BOTTOM, (left, _EDGE), draw)


def _curves(name: str, title: str, lines: Sequence[Series], draw: Callable[[Axes], None]) -> str:
    """A chart of curves, with room for the names at the right."""
    right = 0.7 + _CHARACTER * max(15, *(len(_short(line.name)) for line in lines))
    height = max(_CURVES, _LABEL * (len(lines) + 2) + _TOP + _BOTTOM)
    return _svg(name, title, height, (_LEFT, right), draw)


def _svg(name: str, title: str, height: float, margins: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    left, right = margins
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height))
        inner = (left / _WIDTH, _BOTTOM / height, (_WIDTH - left - right) / _WIDTH, (height - _TOP - _BOTTOM) / height)
        draw(figure.add_axes(inner))
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(buffer.getvalue(), name, title)


def _inline(document: bytes, name: str, title: str) -> str:
    """The SVG element of a document, as wide as its surroundings, with `name` before every id."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(document)
    for parent in list(root.iter()):
        for style in parent.findall(f"{{{_SVG}}}style"):  # it would hold for the whole page
            parent.remove(style)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, f"#{name}-{value.removeprefix('#')}")
            else:
                element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")


def _rows(axes: Axes, rows: Sequence[Series]) -> None:
    """Names at the left, ours in bold, the first at the top."""
    axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.ours else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _label(axes: Axes, x: float, row: int, text: str, points: float) -> None:
    axes.annotate(text, (x, row), (points, 0), textcoords="offset points", va="center_baseline")


def _label_ends(axes: Axes, ends: Sequence[float], texts: Sequence[str]) -> None:
    """A text at the end of each bar, on an axis from zero with room for it."""
    width = axes.bbox.width / axes.figure.dpi
    room = [_EDGE + _CHARACTER * len(text) for text in texts]
    axes.set_xlim(0, max(end / (1 - each / width) for end, each in zip(ends, room, strict=True)))
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        _label(axes, end, row, text, 7)


def _limits(axes: Axes, values: Sequence[float], spare: float) -> None:
    """An axis of times, with a share `spare` free at the right; logarithmic if the times differ
    widely.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if high <= _WIDE * low:
        axes.set_xlim(0, high / (1 - spare))
        return
    axes.set_xscale("log")
    left = low / 1.3
    axes.set_xlim(left, left * (1.1 * high / left) ** (1 / (1 - spare)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shortest(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(sorted(set(values)), [str(value) for value in sorted(set(values))])
    axes.minorticks_off()


def _styles(lines: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """Colour and dash of each candidate; ours are thicker."""
    styles: dict[str, dict[str, Any]] = {}
    counts = {True: 0, False: 0}
    for line in lines:
        index, shades = counts[line.ours], _SHADES[line.ours]
        counts[line.ours] += 1
        styles[line.name] = {
            "color": shades[index % len(shades)],
            "linestyle": _DASHES[index % len(_DASHES)],
            "linewidth": 2.2 if line.ours else 1.4,
        }
    return styles


def _end_labels(axes: Axes, lines: Sequence[Series]) -> None:
    """The name of each line at the right of its end, by its second value, moved where two would
    overlap.
    """
    inches = axes.bbox.height / axes.figure.dpi
    low, high = axes.get_ylim()
    ordered, styles = sorted(lines, key=lambda line: line.values[-1][1]), _styles(lines)
    for line, height in zip(
        ordered, _apart([line.values[-1][1] for line in ordered], _LABEL * (high - low) / inches, high), strict=True
    ):
        axes.annotate(
            _short(line.name),
            (1.0, height),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center_baseline",
            color=styles[line.name]["color"],
            fontweight="bold" if line.ours else "normal",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], step: float, most: float) -> list[float]:
    """Ascending heights moved up so that they are `step` apart, and down again where that is above
    `most`.
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + step) if moved else height)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], most - (len(moved) - 1 - index) * step)
    return moved


def _short(name: str) -> str:
    """A name that fits beside a plot."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
