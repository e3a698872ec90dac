"""Plots of a page."""

import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from sprfast.bench.page import plots
from sprfast.bench.page.plots import Series
from support.bench_pages import labels


def series(names, values):
    return [Series(name, index % 2 == 0, values) for index, name in enumerate(names)]


NAMES = {1: ["a"], 9: [f"{index} {'long name ' * index}" for index in range(9)]}
PLOTS = {
    plots.throughput: [(1234.5, 1200.0, 1300.0)],
    plots.latency: [(1234.5, 2345.6, 3456.7)],
    plots.distribution: [(1.0,), (2.0,), (300.0,)],
    plots.waterfall: [(1234.5,)],
    plots.batch_sweep: [(1, 10.0, 9.0, 11.0), (16, 1234.5, 1200.0, 1300.0)],
    plots.draws_sweep: [(1, 1.5), (6, 9.0)],
    plots.trade_off: [(1.5, 97.5, 1), (9.0, 98.5, 6)],
}


@pytest.mark.parametrize("count", NAMES)
@pytest.mark.parametrize("draw", PLOTS, ids=lambda draw: draw.__name__)
def test_no_text_of_a_plot_is_cut_off(draw, count):
    names = NAMES[count][:2] if draw is plots.trade_off else NAMES[count]
    root = ElementTree.fromstring(draw(series(names, PLOTS[draw])))
    _, _, width, height = (float(each) for each in root.get("viewBox").split())
    assert "width" not in root.attrib
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert len(texts) > count
    for each in texts:
        x, y, extent = float(each.get("x")), float(each.get("y")), 6.2 * len("".join(each.itertext()))
        assert 0 < y < height
        if "rotate(-0" in each.get("transform"):
            anchor = re.search(r"text-anchor: (\w+)", each.get("style")).group(1)
            left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * extent
            assert left > -3
            assert left + extent < width + 3


@pytest.mark.parametrize("draw", PLOTS, ids=lambda draw: draw.__name__)
def test_a_plot_of_a_single_value_can_be_drawn(draw):
    assert "a" in labels(draw(series(["a"], PLOTS[draw][:1])))


def test_labels_at_the_ends_of_lines_do_not_overlap_nor_leave_the_plot():
    lines = series([f"line {index}" for index in range(6)], [(1, 5.0), (6, 9.0)])
    root = ElementTree.fromstring(plots.draws_sweep(lines))
    found = [
        float(each.get("y"))
        for each in root.iter("{http://www.w3.org/2000/svg}text")
        if "".join(each.itertext()).startswith("line ")
    ]
    assert len(found) == 6
    assert min(np.diff(sorted(found))) > 12
    assert min(found) > 8


@pytest.mark.parametrize(
    ("spread", "ticks"), [(5.0, {"0"}), (50.0, {"2", "5", "10", "20", "50"}), (5000.0, {"10", "100", "1,000"})]
)
def test_an_axis_of_times_that_differ_widely_is_logarithmic(spread, ticks):
    assert ticks <= set(labels(plots.distribution(series(["a"], [(1.5,), (1.5 * spread,)]))))


@pytest.mark.parametrize(
    ("given", "shown", "short"),
    [
        (20.0, "20.00", "20"),
        (19.9996, "20.00", "20"),
        (99.996, "100.0", "100"),
        (12345.6, "12,346", "12,346"),
        (0.00123456, "0.001235", "0.001235"),
        (1234567, "1,234,567", "1,234,567"),
        (100, "100", "100"),
        (0.0, "0.000", "0"),
    ],
)
def test_numbers_have_four_significant_digits_and_no_exponent(given, shown, short):
    assert plots.number(given) == shown
    assert plots.shortest(given) == short


def test_a_name_with_dollar_signs_is_no_formula():
    for draw, values in PLOTS.items():
        assert "$x_1$" in labels(draw(series(["$x_1$"], values)))


def test_a_name_in_any_script_is_text_of_the_plot_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "划痕" in plots.latency(series(["划痕", "lot\udcff", "[red]"], PLOTS[plots.latency]))
