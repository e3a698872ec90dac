import copy
import html.parser
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from sprfast.bench.core import cases, peers, report, scenarios
from sprfast.bench.page import plots
from sprfast.bench.page import render as page
from sprfast.bench.page.plots import Series
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import InputError
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.scoring_mode import ScoringMode
from sprfast.system import environment

TIMES = {"published": 0.1, "channels_last": 0.04, "eager": 0.03, "fused": 0.005, "slower": 0.02}  # seconds an image
OURS = ("eager", "fused", "slower")
SAMPLES = 4
HOSTILE = "<script>alert(1)</script> & $x_1$ \"q\" <img src=x onerror='alert(2)'>"
VOID = {"meta", "br", "hr", "img", "link", "input"}


def line(late=0):
    figures = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "max_ms"), 21.5)
    return {
        "period_ms": 40.0,
        "deadline_ms": 40.0,
        "frames": 25,
        "late": late,
        "dropped": 0,
        **figures,
        "jitter_ms": 1.25,
    }


def checks(error=2e-6):
    errors = {"relative_rms": error / 2, "relative_max": error}
    return {key: {"error_map": errors, "anomaly_map": errors, "passed": error < 1e-4} for key in ("one_image", "batch")}


def server():
    trials = [
        {"queries_per_s": rate, "queries": 120, "p99_ms": 4e3 / rate, "valid": rate < 30} for rate in (12.5, 25.0, 50.0)
    ]
    return {
        "queries_per_s": 25.0,
        "bound_ms": 160.0,
        "most_in_a_call": SAMPLES,
        "trials": trials,
        "note": "at least 120 queries a trial",
    }


def hardware(joules=0.5):
    reason = None if joules else "energy is measured on CUDA devices only"
    memory = {"allocated": 812.5, "reserved": 1024.0} if joules else None
    used = {"peak_memory_mib": memory, "joules_per_image": joules, "energy_reason": reason}
    return {"percent_of_matmul": 43.21, "percent_of_copy": 20.34, **used}


def settings():
    points = []
    for name in ("eager", "fused"):
        for batch, draws in ((1, 3), (2, 3), (4, 3), (1, 1), (1, 6)):
            seconds = TIMES[name] * batch**0.8 * draws / 3
            speed = {"median": batch / seconds, "min": 0.9 * batch / seconds, "max": 1.1 * batch / seconds}
            figures = {
                "p50_ms": 1e3 * seconds,
                "p99_ms": 1.1e3 * seconds,
                "images_per_s": speed,
                "seconds": [seconds] * 7,
            }
            points.append({"candidate": name, "batch": batch, "draws": draws, "rounds": 7, **figures})
    rows = ((1, 0.95, 0.96), (3, 0.97, 0.975), (6, 0.98, None))
    accuracy = [
        {"draws": draws, "images": 83, "image_AUROC": image, "pixel_AUROC": pixel} for draws, image, pixel in rows
    ]
    failed = [{"candidate": "slower", "batch": None, "draws": 6, "reason": "no memory was left"}]
    return {
        "points": points,
        "failed": failed,
        "accuracy": accuracy,
        "draws": 3,
        "note": "draws are at every sigma level",
    }


def recommendation(**changes):
    setting = {
        "candidate": "fused",
        "batch": 4,
        "draws": 1,
        "p99_ms": 21.25,
        "images_per_s": 190.5,
        "latency_ms": 141.25,
    }
    accuracy = {"image_AUROC": 0.95, "AUROC_cost": 0.02, "reason": "one draw holds it", "line": line()}
    return {"period_ms": 40.0, "margin": 0.2, **setting, **accuracy} | changes


def nothing_holds():
    empty = dict.fromkeys(
        ("candidate", "batch", "draws", "p99_ms", "images_per_s", "latency_ms", "image_AUROC", "AUROC_cost", "line")
    )
    return recommendation(**empty, reason="no setting holds 40 ms; the fastest, fused, holds 55 ms")


def unmeasured(status, reason=None):
    given = {
        "description": "for the test",
        "ours": False,
        "precision": "float32",
        "tolerance": 1e-4,
        "status": status,
        "reason": reason,
    }
    streams = (*(scenario.key for scenario in scenarios.ALL), "line", "server")
    figures = ("build_s", "first_image_s", "first_batch_s", "parity", "audits", *streams, "hardware", "memory")
    return given | dict.fromkeys(figures)


def synthetic():
    """A report with all that one can have."""
    random = np.random.default_rng(0)
    rounds = [{name: time * random.lognormal(0, 0.1) for name, time in TIMES.items()} for _ in range(50)]
    candidates = {}
    for name, seconds in TIMES.items():
        entry = unmeasured("measured") | {
            "ours": name in OURS,
            "parity": checks(),
            "line": line(),
            "server": server(),
            "hardware": hardware(),
        }
        entry |= {"build_s": 1.5, "first_image_s": seconds * 2, "first_batch_s": seconds * 8}
        repeated = {"ratio": {"p25": 0.98, "p50": 1.0, "p75": 1.02}, "rounds": 7, "allowed": 1.1, "passed": True}
        entry["audits"] = {"outputs": {"compared": 9, "passed": True}, "repeated_image": repeated}
        for scenario in scenarios.ALL:
            entry[scenario.key] = scenario.summary(rounds, name, "published", SAMPLES)
        candidates[name] = entry
    ceilings = {"matmul_gflop_per_s": {"float32": 128.4}, "copy_gb_per_s": 11.3}
    return {
        "schema_version": cases.SCHEMA_VERSION,
        "note": scenarios.NOTE,
        "complete": True,
        "environment": environment.describe(torch.device("cpu")),
        "model": {
            "sha256": "ab" * 32,
            "network": {"base_width": 64, "embedding_dim": 256},
            "schedule": {"levels": [{"t": 1e-3, "draws": 3, "weight": 1.0}], "noise": "gaussian"},
            "noise_seed": 0,
        },
        "input": {"images": "random", "height": 192, "width": 256, "samples": SAMPLES, "noise": "frozen"},
        "device": "cpu",
        "work": "maps",
        "timed": "from tensor to map",
        "truth": peers.TRUTH,
        "seconds_per_scenario": 30.0,
        "baseline": "published",
        "ceilings": ceilings | {"gflop_per_image": 0.36, "least_mb_per_image": {"float32": 21.4}},
        "candidates": candidates,
        "settings": settings(),
        "recommendation": recommendation(),
        "exports": None,
    }


class Page(html.parser.HTMLParser):
    """What is on a page; `open` is empty at the end of a well-formed one."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.rows, self.classes = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.classes.append(dict(attrs).get("class"))
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.attributes.append(("style", data))
            return
        self.texts.append(data)
        if "td" in self.open or ("th" in self.open and self.rows):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def table(self, name):
        """Cells after the name, of every row with this name."""
        return [row[1:] for row in self.rows if row and row[0].strip() == name]


@pytest.fixture(scope="module")
def document():
    return synthetic()


@pytest.fixture(scope="module")
def rendered(document):
    return page.render(document)


def value(cell):
    return float(cell.replace(",", ""))


def test_the_page_is_well_formed_and_needs_nothing_else(rendered):
    found = Page(rendered)
    assert found.open == []
    assert found.tags.count("svg") == 7
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & set(found.tags)
    for name, text in found.attributes:
        assert name not in {"src", "srcset", "action", "data"}
        assert not name.startswith("on")
        assert "@import" not in (text or "")
        if name.endswith("href"):
            assert text.startswith("#")
        if not name.startswith("xmlns"):
            assert "//" not in (text or "")
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?(.)", text or ""))


def test_ids_are_unique_over_all_plots_and_what_refers_to_one_finds_it(rendered):
    ids = re.findall(r'\bid="([^"]*)"', rendered)
    assert len(ids) == len(set(ids)) > 50
    references = set(re.findall(r"url\(#([^)]*)\)", rendered)) | set(re.findall(r'href="#([^"]*)"', rendered))
    assert references
    assert references <= set(ids)


def test_the_same_report_gives_the_same_page(document, rendered, tmp_path):
    page.write(json.loads(json.dumps(document)), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == rendered.encode()


def test_a_page_that_cannot_be_written_is_an_input_error(document, tmp_path):
    with pytest.raises(InputError, match="missing"):
        page.write(document, tmp_path / "missing" / "page.html")


def test_figures_of_the_summary_are_those_of_the_report(document, rendered):
    found = Page(rendered)
    for name, entry in document["candidates"].items():
        cells = found.table(name)[0]
        offline, single, ratio = entry["offline"], entry["single_stream"], entry["offline"]["ratio_to_published"]
        shown = [value(cell) for cell in (cells[0], *cells[2:7])]
        expected = [
            offline["images_per_s"],
            *(single[f"p{q}_ms"] for q in (50, 90, 99)),
            entry["multi_stream"]["p99_ms"],
            25.0,
        ]
        assert shown == pytest.approx(expected, rel=5e-4)
        assert [float(text) for text in re.findall(r"[\d.]+", cells[1])] == pytest.approx(
            list(ratio.values()), abs=0.051
        )
        assert cells[7:] == ["0 / 0 / 25", "2.0e-06", "ok"]
    assert next(row for row, kind in zip(found.rows, found.classes, strict=True) if kind == "ours")[0] == "eager"
    assert "192 × 256 pixels · 3 draws an image · maps timed" in found.text
    assert scenarios.NOTE in found.text
    assert "INCOMPLETE" not in found.text


def test_the_other_tables_have_the_report_s_figures_too(document, rendered):
    found = Page(rendered)
    rows = found.table("fused")
    single = document["candidates"]["fused"]["single_stream"]
    assert ["1.0e-06", "2.0e-06"] * 4 + ["0.0001", "passed"] in rows
    assert ["9", "ok", "0.980", "1.000", "1.020", "1.10", "7", "ok"] in rows
    assert ["float32", "43.2", "20.3", "812", "1,024", "0.500"] in rows
    assert ["25.00", "160", "4", "3"] in rows
    assert ["50.00", "120", "80.00", "too slow"] in rows
    assert ["40.00", "40.00", "25", "0", "0", "21.50", "21.50", "21.50", "21.50", "1.250"] in rows
    shown = [plots.number(single[key]) for key in ("p90_ms", "p90_early_stopping_ms", "p99_ms")]
    assert any(row[:5] == ["50", *shown, "–"] for row in rows)
    assert ["2", "3", "7", "8.706", "9.576", "229.7", "206.8", "252.7"] in rows
    assert ["float32", "1.50", "0.0100", "0.0400"] in rows
    assert found.table("sha256") == [["ab" * 32]]
    assert found.table("torch") == [[torch.__version__]]
    assert "matrix product 128.4 GFLOP/s in float32; copy 11.3 GB/s" in found.text
    assert "slower, 6 draws: left out, no memory was left" in found.text


def test_the_recommendation_comes_first(rendered):
    text = Page(rendered).text
    assert text.index("Recommended: fused, 4 images a call, 1 draw") < text.index("Summary")
    assert "one draw holds it" in text
    assert "40 ms from image to image, 20 % to spare" in text
    assert "p99 21.25 ms, 190.5 images/s" in text
    assert "141.2 ms from the trigger" in text
    assert "95.0 %, 2.0 points below that of the model's own number of draws" in text
    assert "kept: 0 late and 0 dropped of 25 calls, p99 21.50 ms of 40 ms" in text


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (nothing_holds(), "the fastest, fused, holds 55 ms"),
        (recommendation(line=line(late=3)), "NOT kept: 3 late and 0 dropped of 25 calls"),
        (recommendation(line=None), "not tried at this period"),
        (recommendation(image_AUROC=None, AUROC_cost=None), "not known"),
        (recommendation(AUROC_cost=0.0), "95.0 %, the same as that of"),
        (recommendation(AUROC_cost=-0.01), "95.0 %, 1.0 points above that of"),
    ],
)
def test_a_recommendation_says_what_is_not_as_wished(document, chosen, said):
    text = page.render(document | {"recommendation": chosen})
    assert said in Page(text).text
    broken = chosen["candidate"] is None or bool(chosen["line"] and chosen["line"]["late"])
    assert ('class="answer none"' in text) == broken
    assert text.count('<p class="banner">') == len(report.failures(document | {"recommendation": chosen})) == broken


def test_an_incomplete_report_says_so_at_the_top(document):
    changed = copy.deepcopy(document) | {"complete": False}
    for entry in changed["candidates"].values():
        entry |= {"offline": None, "line": None, "server": None}
    text = Page(page.render(changed)).text
    assert text.index("INCOMPLETE") < text.index("Summary")
    assert "Throughput left out: no candidate has Offline figures" in text
    assert "Line left out" in text


def test_a_candidate_with_wrong_maps_is_struck_out_and_has_no_figures(document):
    changed = copy.deepcopy(document)
    wrong = changed["candidates"]["slower"]
    wrong |= {"status": "failed", "parity": checks(0.25), "line": None}
    wrong["offline"] |= {"images_per_s": 98765.4, "min_images_per_s": 98765.4, "max_images_per_s": 98765.4}
    wrong["single_stream"] |= {"p50_ms": 87654.3, "p99_ms": 87654.3, "seconds": [87.6543]}
    text = page.render(changed)
    found = Page(text)
    reason = "struck out: its maps are not the definition's (largest relative error 2.5e-01, tolerance 0.0001)"
    assert found.table("slower")[0] == [reason]
    assert ["1.2e-01", "2.5e-01"] * 4 + ["0.0001", "FAILED"] in found.table("slower")
    assert "<s>slower</s>" in text
    assert "98,765" not in found.text
    assert "87,654" not in found.text
    assert "slower" not in " ".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert text.count('<p class="banner">') == 1
    wrong["parity"]["batch"]["error_map"] = {"relative_rms": None, "relative_max": None}
    assert "largest relative error not finite" in Page(page.render(changed)).text


def test_a_failed_audit_is_told_at_the_top_and_in_the_summary(document):
    changed = copy.deepcopy(document)
    changed["candidates"]["fused"]["audits"]["outputs"]["passed"] = False
    changed["candidates"]["eager"]["audits"]["repeated_image"] = None
    found = Page(page.render(changed))
    assert "fused: FAILED the audit outputs" in found.text
    assert [found.table(name)[0][-1] for name in TIMES] == ["ok", "ok", "ok", "FAILED", "ok"]


def test_what_cannot_run_here_is_listed_with_the_reason(document):
    changed = copy.deepcopy(document)
    changed["candidates"] |= {"nosuch": unmeasured("unavailable", "not installed"), "later": unmeasured("not measured")}
    found = Page(page.render(changed))
    assert found.table("nosuch")[:2] == [["unavailable: not installed"], ["unavailable, not compared"]]
    assert found.table("later")[0] == ["not measured"]


def test_every_text_of_a_report_is_escaped(document):
    changed = copy.deepcopy(document)
    changed["candidates"][HOSTILE] = copy.deepcopy(changed["candidates"]["eager"]) | {"description": HOSTILE}
    changed["candidates"]["\x00\ud800\x1b"] = copy.deepcopy(changed["candidates"]["eager"])
    changed["candidates"]["broken"] = unmeasured("unavailable", HOSTILE)
    changed["settings"]["points"] += [{**point, "candidate": HOSTILE} for point in changed["settings"]["points"]]
    changed["recommendation"] |= {"reason": HOSTILE, "candidate": HOSTILE}
    changed["environment"] |= {"cpu": HOSTILE, HOSTILE: HOSTILE, "devices": {"cpu": {"name": HOSTILE}}}
    changed |= {"timed": HOSTILE, "note": HOSTILE, "work": HOSTILE}
    found = Page(page.render(changed))
    assert found.open == []
    assert not {"script", "img"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.text.count(" ".join(HOSTILE.split())) > 10
    assert any(f"unavailable: {HOSTILE}" in cell for row in found.table("broken") for cell in row)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"recommendation": None}, ["Recommendation left out: no period was given"]),
        ({"settings": None}, ["Left out: the run measured no sweep over batch size and draws"]),
        (
            {"settings": settings() | {"accuracy": None}},
            ["Accuracy against time left out: accuracy needs labelled images"],
        ),
        (
            {"settings": settings() | {"points": []}},
            ["Batch size left out", "Draws left out", "Accuracy against time left out"],
        ),
        ({"ceilings": None}, ["Left out: the run did not measure them"]),
    ],
)
def test_what_a_report_has_no_data_for_is_left_out_with_the_reason(document, rendered, changes, reasons):
    text = Page(page.render(document | changes)).text
    for reason in reasons:
        assert reason in text
        assert reason not in Page(rendered).text


def test_a_damaged_report_has_no_page(document):
    for key in ("candidates", "environment", "input", "model", "ceilings", "settings", "recommendation"):
        with pytest.raises(KeyError, match=key):
            page.render({name: each for name, each in document.items() if name != key})


def test_a_report_without_any_measurement_has_a_page(document):
    nothing = document | {"complete": False, "candidates": {name: unmeasured("not measured") for name in TIMES}}
    nothing |= dict.fromkeys(("settings", "recommendation", "ceilings"))
    found = Page(page.render(nothing))
    assert "svg" not in found.tags
    assert found.text.count("eft out: ") == 13


def test_a_name_with_dollar_signs_is_no_formula():
    for draw, values in PLOTS.items():
        assert "$x_1$" in labels(draw(series(["$x_1$"], values)))


def test_the_reason_for_unknown_energy_is_given(document):
    changed = copy.deepcopy(document)
    for entry in changed["candidates"].values():
        entry["hardware"] = hardware(joules=None)
    found = Page(page.render(changed))
    assert ["float32", "43.2", "20.3", "–", "–", "–"] in found.table("fused")
    assert found.text.count("energy is measured on CUDA devices only") == 1


def test_the_waterfall_goes_from_the_baseline_to_our_fastest_backend(document, rendered):
    drawn = next(svg for svg in re.findall(r"<svg.*?</svg>", rendered, re.DOTALL) if "step by step" in svg)
    texts = labels(drawn)
    p50 = [
        document["candidates"][name]["single_stream"]["p50_ms"]
        for name in ("published", "channels_last", "eager", "fused")
    ]
    assert [text for text in texts if text in TIMES] == ["published", "channels_last", "eager", "fused"]
    shown = [plots.number(each) for each in p50]
    assert f"{shown[0]} ms" in texts
    assert f"{shown[1]} ms, × {p50[0] / p50[1]:.2f}" in texts
    assert f"{shown[3]} ms, × {p50[2] / p50[3]:.2f}, × {p50[0] / p50[3]:.1f} in all" in texts


def test_a_report_of_the_bench_has_a_page():
    config = NetworkConfig(32, 8)
    model = Model(
        config,
        ScoringMode(Schedule((Level(1e-3, 1, 1.0),))),
        Preprocessing(size=16),
        unet.ScoreUNet(config).state_dict(),
    )
    chosen = [peers.CANDIDATES[0], peers.CANDIDATES[2]]
    # no Server search is that long
    options = cases.Options(batch=2, seconds=0.02, device="cpu", period=0.01, bound=1e3, margin=0.2)
    found = Page(page.render(cases.run(model, options, candidates=chosen)))
    assert found.open == []
    assert found.tags.count("svg") == 6
    assert "period" in found.text
    assert {"published", "eager"} <= {row[0] for row in found.rows if row}


def labels(svg):
    """Texts of a plot in the order in which they are drawn."""
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


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
