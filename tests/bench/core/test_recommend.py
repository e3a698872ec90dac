"""The setting recommended for a line."""

import json

import pytest

from sprfast.bench.core import recommend, sweeps
from support import simulated_clock
from support.bench_reports import printed

PRECISIONS = {"eager": "float32", "fast": "bfloat16"}


def point(candidate="eager", batch=1, draws=3, p99=50.0):
    speed = {"median": 1e3 * batch / p99, "min": 123.45, "max": 1234.5}
    return {
        "candidate": candidate,
        "batch": batch,
        "draws": draws,
        "rounds": 5,
        "p50_ms": p99,
        "p99_ms": p99,
        "images_per_s": speed,
    }


def chosen(points, accuracy=None, period=0.1, margin=0.2):
    result = recommend.recommend(points, accuracy, period=period, margin=margin, draws=3, precisions=PRECISIONS)
    json.dumps(result, allow_nan=False)
    return result


def auroc(**values):
    return [
        {"draws": int(name[1:]), "images": 10, "image_AUROC": value, "pixel_AUROC": None}
        for name, value in values.items()
    ]


def rendered(report, width=80):
    return printed(recommend.table(report), width)


@pytest.mark.parametrize(
    ("batch", "p99", "holds"), [(1, 80.0, True), (1, 80.1, False), (4, 320.0, True), (4, 321.0, False)]
)
def test_a_setting_holds_with_the_margin_to_spare(batch, p99, holds):
    assert (chosen([point(batch=batch, p99=p99)])["candidate"] is not None) is holds


def test_what_is_chosen_is_told_in_full():
    result = chosen([point(batch=4, p99=200.0)], auroc(k3=0.97))
    assert result == {
        "period_ms": 100.0,
        "margin": 0.2,
        "candidate": "eager",
        "batch": 4,
        "draws": 3,
        "p99_ms": 200.0,
        "images_per_s": 20.0,
        "latency_ms": 500.0,  # three periods until the batch is whole, then its call
        "image_AUROC": 0.97,
        "AUROC_cost": 0.0,
        "reason": "the model's own 3 draws hold 100 ms",
        "line": None,
    }


def test_the_models_own_draws_come_first_even_in_larger_batches_and_against_a_better_auroc():
    points = [point(batch=8, p99=600.0), point(draws=1, p99=10.0), point(draws=6, p99=70.0)]
    for accuracy in (None, auroc(k1=0.99, k3=0.95, k6=0.99)):
        result = chosen(points, accuracy)
        assert (result["draws"], result["batch"]) == (3, 8)


def test_without_the_models_own_the_best_auroc_comes_first():
    points = [point(p99=90.0), point(draws=1, p99=10.0), point(draws=2, p99=60.0)]
    result = chosen(points, auroc(k1=0.93, k2=0.955, k3=0.96))
    assert (result["draws"], result["image_AUROC"]) == (2, 0.955)
    assert result["AUROC_cost"] == pytest.approx(0.005)
    assert result["reason"] == (
        "no setting with the model's own 3 draws holds 100 ms, but 2 draws do, with image_AUROC 0.5 points lower"
    )
    better = chosen(points, auroc(k1=0.93, k2=0.98, k3=0.96))
    assert better["AUROC_cost"] == pytest.approx(-0.02)
    assert better["reason"].endswith("image_AUROC 2.0 points higher")


def test_an_auroc_within_a_tenth_of_a_point_gives_way_to_the_lower_latency():
    points = [point(draws=1, p99=10.0), point(draws=2, p99=60.0)]
    assert chosen(points, auroc(k1=0.9545, k2=0.955, k3=0.96))["draws"] == 1
    assert chosen(points, auroc(k1=0.9535, k2=0.955, k3=0.96))["draws"] == 2


def test_without_auroc_the_number_of_draws_nearest_to_the_models_comes_first():
    points = [point(draws=1, p99=10.0), point(draws=2, p99=60.0)]
    result = chosen(points)
    assert (result["draws"], result["image_AUROC"], result["AUROC_cost"]) == (2, None, None)
    assert result["reason"].endswith("2 draws do; image_AUROC is unknown, give --data to know")
    assert (
        chosen([point()])["reason"]
        == "the model's own 3 draws hold 100 ms; image_AUROC is unknown, give --data to know"
    )
    undefined = chosen(points, auroc(k1=None, k2=None, k3=None))
    assert (undefined["draws"], undefined["AUROC_cost"]) == (2, None)
    assert undefined["reason"].endswith("image_AUROC is not defined on the labelled images")


def test_float32_comes_before_a_faster_lower_precision_but_after_the_draws():
    assert chosen([point("fast", p99=10.0), point("eager", p99=70.0)])["candidate"] == "eager"
    assert chosen([point("fast", p99=10.0), point("eager", draws=2, p99=20.0)])["candidate"] == "fast"


def test_then_comes_the_lowest_latency_then_the_most_headroom():
    assert chosen([point(batch=4, p99=20.0), point(batch=1, p99=70.0)])["batch"] == 1
    tied = [point(batch=2, p99=150.0), point(batch=3, p99=50.0)]  # 250 ms both
    assert chosen(tied)["batch"] == 3


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (
            [point(p99=90.0), point(draws=1, p99=28.0)],
            "no setting holds 20 ms; the fastest, eager with 1 draw, holds 35 ms",
        ),
        (
            [point(batch=4, p99=90.0)],
            "no setting holds 20 ms; the fastest, eager with 3 draws and 4 images a call, holds 28.2 ms",
        ),
        ([point(p99=30_000.0)], "no setting holds 20 ms; the fastest, eager with 3 draws, holds 37.5 s"),
        ([], "no setting could be measured"),
    ],
)
def test_where_nothing_holds_the_reason_says_what_would(points, reason):
    result = chosen(points, auroc(k3=0.97), period=0.02)
    assert result["reason"] == reason
    setting = (
        "candidate",
        "batch",
        "draws",
        "p99_ms",
        "images_per_s",
        "latency_ms",
        "image_AUROC",
        "AUROC_cost",
        "line",
    )
    assert {result[key] for key in setting} == {None}


@pytest.mark.parametrize(("service", "late"), [(0.3, 0), (0.39, 0), (0.41, 25)])
def test_verify_counts_the_batches_that_are_late(service, late):
    clock, seen = simulated_clock.Clock(), []

    def answer(index):
        seen.append(index)
        clock.time += service

    line = recommend.verify(answer, 4, period=0.1, seconds=10.0, clock=clock)
    assert (line["frames"], line["period_ms"], line["deadline_ms"]) == (25, 400.0, 400.0)
    assert seen == list(range(25))
    assert line["late"] == late
    assert line["dropped"] == 0
    assert recommend.verify(answer, 4, period=0.1, seconds=0.1, clock=clock)["frames"] == recommend.LEAST_QUERIES


LINE = {"late": 0, "dropped": 0, "frames": 300, "p99_ms": 52.0, "jitter_ms": 1.5}


def document(line=LINE, period=0.1, candidates=("eager", "cuda_graph_bfloat16")):
    points = [point(name, *each, p99=1234.5 * each[0]) for name in candidates for each in sweeps.grid(16, 3)]
    rows = auroc(k1=0.931, k2=None, k3=0.964, k6=0.97)
    failed = [{"candidate": "eager", "batch": 16, "draws": 6, "reason": "OutOfMemoryError: [9 GiB]"}]
    found = {"points": points, "failed": failed, "accuracy": rows, "draws": 3, "note": "a note"}
    return {"settings": found, "recommendation": chosen([point(p99=50.0)], rows, period) | {"line": line}}


def test_table_shows_both_sweeps_and_the_setting_within_80_columns():
    text = rendered(document())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    # batch 1 of two candidates, and one image at four numbers of draws
    assert sum(" 1234 " in line for line in lines) == 2 + 2 * 4
    assert sum("96.4" in line for line in lines) == 3
    assert "*3" in text
    assert "eager, 6 draws, 16 images a call: left out, OutOfMemoryError: [9 GiB]" in text
    assert "Recommended for a part every 100 ms with 20% to spare: eager, 3 draws, 1 image a" in text
    assert "on the line's clock kept: 0 late and 0 dropped of 300 calls" in text


def test_table_says_when_the_check_failed_was_not_made_or_nothing_holds():
    assert "clock NOT kept: 2 late and 0 dropped" in rendered(document(LINE | {"late": 2}))
    assert "not checked on the line's clock" in rendered(document(None))
    assert "to spare: nothing; no setting holds 20 ms" in " ".join(rendered(document(None, period=0.02)).split())
    assert rendered({"settings": None, "recommendation": None}).strip() == ""
