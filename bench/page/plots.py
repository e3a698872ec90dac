"""Plots of a bench report as inline SVG.

Every plot has the same width. Its ids begin with its own name, so that several fit into one page,
and the same values give the same text.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sprfast.bench.core import timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Draw = Callable[[Axes, Sequence["Series"]], None]

OURS, PEER = "#0b5fa5", "#9aa0a6"  # dark and light: they differ in grey too
INK, FAINT = "#1f2328", "#e4e7eb"
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
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = dict.fromkeys(_INKED, INK) | {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # a name may have a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be searched and copied
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclasses.dataclass(frozen=True)
class Series:
    """What is drawn of one candidate."""

    name: str
    ours: bool
    values: Sequence[tuple[float, ...]]  # what these are says each plot; of curves, the first of each ascends


def _plot(name: str, title: str, *, rows: bool = False) -> Callable[[Draw], Callable[[Sequence[Series]], str]]:
    """Make of what draws on axes what gives the SVG: a chart of curves, with room for the names at
    the right, or of one row a candidate, with the names at the left.
    """

    def decorated(draw: Draw) -> Callable[[Sequence[Series]], str]:
        @functools.wraps(draw)
        def plot(series: Sequence[Series]) -> str:
            import matplotlib as mpl
            from matplotlib.figure import Figure

            names = _CHARACTER * max(len(_short(each.name)) for each in series)
            if rows:
                height, left, right = _ROW * len(series) + _TOP + _BOTTOM, 0.2 + names, _EDGE
            else:
                height = max(_CURVES, _LABEL * (len(series) + 2) + _TOP + _BOTTOM)
                left, right = _LEFT, 0.7 + max(_CHARACTER * 15, names)
            size = ((_WIDTH - left - right) / _WIDTH, (height - _TOP - _BOTTOM) / height)
            buffer = io.BytesIO()
            with mpl.rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text
                figure = Figure(figsize=(_WIDTH, height))
                draw(figure.add_axes((left / _WIDTH, _BOTTOM / height, *size)), series)
                figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
            return _inline(buffer.getvalue(), name, title)

        return plot

    return decorated


@_plot("throughput", "Offline throughput of each candidate", rows=True)
def throughput(axes: Axes, bars: Sequence[Series]) -> None:
    """Bars of images a second; `values` holds one (median, min, max)."""
    for row, bar in enumerate(bars):
        median, low, high = bar.values[0]
        axes.barh(row, median, 0.62, color=OURS if bar.ours else PEER)
        axes.plot((low, high), (row, row), color=INK, marker="|", markersize=7, linewidth=1)
    _label_ends(axes, [max(bar.values[0]) for bar in bars], [number(bar.values[0][0]) for bar in bars])
    axes.set_xlabel("Offline, images/s (median; whiskers: slowest and fastest query)")
    _rows(axes, bars)


@_plot("latency", "Percentiles of the SingleStream latency of each candidate", rows=True)
def latency(axes: Axes, dots: Sequence[Series]) -> None:
    """Dots for percentiles; `values` holds one (p50, p90, p99) in milliseconds."""
    for row, each in enumerate(dots):
        colour, times = OURS if each.ours else PEER, each.values[0]
        axes.plot(times, [row] * 3, color=colour, linewidth=1.5, zorder=2)
        for value, marker, size, inside in zip(times, "o|s", (6, 9, 6), (colour, colour, "white"), strict=True):
            shape: dict[str, Any] = {"markersize": size, "markeredgewidth": 1.5, "markerfacecolor": inside}
            axes.plot(value, row, marker, color=colour, zorder=3, **shape)
        _label(axes, times[2], row, " / ".join(map(number, times)), 9)
    _limits(axes, [value for each in dots for value in each.values[0]], spare=0.27)
    axes.set_xlabel("SingleStream latency, ms (circle p50, bar p90, open square p99)")
    _rows(axes, dots)


@_plot("distribution", "Distribution of the SingleStream latency of each candidate")
def distribution(axes: Axes, samples: Sequence[Series]) -> None:
    """Empirical distribution functions; `values` holds (milliseconds,) of each query."""
    styles = _styles(samples)
    for each in sorted(samples, key=lambda each: timing.percentile([value for (value,) in each.values], 50)):
        axes.ecdf(np.ravel(each.values), label=_short(each.name), **styles[each.name])
    _limits(axes, [value for each in samples for (value,) in each.values], spare=0.02)
    axes.set(ylim=(0, 1.02), xlabel="SingleStream latency, ms", ylabel="share of queries within")
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, handlelength=2.6, title="fastest median first"
    )


@_plot("waterfall", "Time of an image, step by step", rows=True)
def waterfall(axes: Axes, steps: Sequence[Series]) -> None:
    """Bars from each step's predecessor to itself; `values` holds one (milliseconds an image,)."""
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


@_plot("batch", "Throughput against the number of images a call")
def batch_sweep(axes: Axes, lines: Sequence[Series]) -> None:
    """Images a second against images a call; `values` holds (batch, median, min, max)."""
    for each, style in zip(lines, _styles(lines).values(), strict=True):
        batch, median, low, high = np.array(each.values).T
        spread = [median - low, high - median]
        axes.errorbar(batch, median, spread, marker="o", markersize=5, capsize=3, elinewidth=1, **style)
    axes.set_xscale("log", base=2)
    _sweep(axes, lines, "images a call", "images/s (median, min–max)")


@_plot("draws", "Time of an image against the number of draws")
def draws_sweep(axes: Axes, lines: Sequence[Series]) -> None:
    """Milliseconds an image against draws; `values` holds (draws, milliseconds)."""
    for each, style in zip(lines, _styles(lines).values(), strict=True):
        axes.plot(*np.array(each.values).T, marker="o", markersize=5, **style)
    _sweep(axes, lines, "draws at each noise level", "ms an image, one image a call")
    axes.set_xlim(left=0)


@_plot("trade-off", "AUROC against the time of an image")
def trade_off(axes: Axes, lines: Sequence[Series]) -> None:
    """Accuracy against time, a series a metric; `values` holds (ms an image, percent, draws)."""
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
    axes.set(xlabel="ms an image, one image a call (number at a line: draws)", ylabel="AUROC, %")
    _end_labels(axes, lines)


def number(value: float, digits: int = 4) -> str:
    """A whole number as it is, any other with at least so many significant digits; never with an
    exponent.
    """
    if isinstance(value, int):
        return f"{value:,}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def shortest(value: float) -> str:
    """The text of `number` without zeros at the end."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


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
    """An axis of times, a share `spare` free at the right, logarithmic if they differ widely."""
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


def _sweep(axes: Axes, lines: Sequence[Series], x: str, y: str) -> None:
    """Ticks where there are values, heights from zero, and names at the ends."""
    ticks = sorted({int(value[0]) for each in lines for value in each.values})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.set(ylim=(0, 1.08 * max(value[-1] for each in lines for value in each.values)), xlabel=x, ylabel=y)
    _end_labels(axes, lines)


def _styles(lines: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """Colour and dash of each candidate; ours are thicker."""
    styles: dict[str, dict[str, Any]] = {}
    counts = {True: itertools.count(), False: itertools.count()}
    for line in lines:
        index, shades = next(counts[line.ours]), _SHADES[line.ours]
        styles[line.name] = {
            "color": shades[index % len(shades)],
            "linestyle": _DASHES[index % len(_DASHES)],
            "linewidth": 2.2 if line.ours else 1.4,
        }
    return styles


def _end_labels(axes: Axes, lines: Sequence[Series]) -> None:
    """Names at the right, at the height of each line's end, moved where two would overlap."""
    inches = axes.bbox.height / axes.figure.dpi
    low, high = axes.get_ylim()
    ordered, styles = sorted(lines, key=lambda line: line.values[-1][1]), _styles(lines)
    heights = _apart([line.values[-1][1] for line in ordered], _LABEL * (high - low) / inches, high)
    for line, height in zip(ordered, heights, strict=True):
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
    """Ascending heights moved up until `step` apart, and down again where they are above `most`."""
    moved = itertools.accumulate(heights, lambda below, height: max(height, below + step))
    above = reversed(range(len(heights)))
    return [min(height, most - count * step) for height, count in zip(moved, above, strict=True)]


def _short(name: str) -> str:
    """A name that fits beside a plot."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
