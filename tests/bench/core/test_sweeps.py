"""Sweeps over batch size and draws, and the setting recommended for a line."""

import dataclasses
import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

from sprfast.bench.core import arrivals, peers, recommend, work
from sprfast.bench.core import sweeps as settings
from sprfast.config import Level, Schedule
from sprfast.data import datasets as data
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError
from sprfast.evaluation import evaluate as evaluation
from support import simulated_clock
from support.scoring_mode_cases import with_mode

CPU = torch.device("cpu")
EAGER = next(each for each in peers.CANDIDATES if each.name == "eager")
PRECISIONS = {"eager": "float32", "fast": "bfloat16"}


def quiet(*progress):
    pass


def altered(name, change):
    """A candidate that computes the definition, then `change`s model-dependent parts of the error
    map.
    """

    def build(model, noise, device):
        maps = peers.plain(model, noise, device, torch.contiguous_format)

        def run(x):
            errors, anomalies = maps(x)
            return change(model, errors), anomalies

        return run

    return peers.Candidate(name, "for the test", build, ours=True)


@pytest.fixture(scope="module")
def given():
    return work.random_images(3, 32)


@pytest.fixture(scope="module")
def category(tmp_path_factory, small_model):
    """Two good and two defective test images whose masks are small squares."""
    root, random = tmp_path_factory.mktemp("nut"), np.random.default_rng(0)

    def write(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)

    for folder, contrast in (("train/good", 0.3), ("test/good", 0.3), ("test/dent", 0.9)):
        for number in range(2):
            write(root / folder / f"{number}.png", (random.random((32, 32, 3)) * 255 * contrast).astype(np.uint8))
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:16, 8:16] = 255
    for number in range(2):
        write(root / "ground_truth" / "dent" / f"{number}_mask.png", mask)
    return data.load_category(root, None, small_model.preprocessing)


def measured(model, given, candidates, points, seconds=1e-3, on_progress=quiet):
    into = {}
    settings.measure(model, given, work.TensorToMap, candidates, CPU, points, seconds, on_progress, into)
    return into


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
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(recommend.table(report))
    return console.export_text()


def test_every_level_gets_the_draws_and_keeps_the_rest():
    schedule = Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0)))
    assert settings.with_draws(schedule, 4) == Schedule((Level(1e-3, 4, 1.0), Level(1e-2, 4, 3.0)))
    assert settings.own_draws(schedule) == 2


def test_draws_that_a_schedule_cannot_have_are_refused():
    antithetic = Schedule((Level(1e-3, 2),), noise="antithetic")
    assert settings.with_draws(antithetic, 4).draws == 4
    with pytest.raises(InputError, match="draws: 1"):
        settings.with_draws(antithetic, 1)
    assert [count for count in (1, 2, 4) if settings.allowed(antithetic, count)] == [2, 4]
    assert not settings.allowed(Schedule(), 1025)


def test_the_models_own_number_of_draws_is_the_model_itself(small_model):
    uneven = with_mode(small_model, schedule=Schedule((Level(1e-3, 2), Level(1e-2, 1))))
    assert settings.variant(uneven, 2) is uneven
    assert [level.draws for level in settings.variant(uneven, 1).schedule.levels] == [1, 1]


@pytest.mark.parametrize(
    ("batch", "draws", "expected"),
    [
        (1, 1, [(1, 1), (1, 2)]),
        (4, 3, [(1, 3), (2, 3), (4, 3), (1, 1), (1, 2), (1, 6)]),
        (6, 2, [(1, 2), (2, 2), (4, 2), (6, 2), (1, 1), (1, 4)]),
    ],
)
def test_cross_varies_one_at_a_time_and_grid_both(batch, draws, expected):
    assert settings.cross(batch, draws) == expected
    full = settings.grid(batch, draws)
    assert len(full) == len(set(full)) == len({size for size, _ in expected}) * len({count for _, count in expected})
    assert set(expected) <= set(full)


def test_all_points_take_turns_in_the_same_rounds(small_model, given):
    second = dataclasses.replace(EAGER, name="second")
    points = settings.cross(3, 2)
    found = measured(small_model, given, [EAGER, second], points)
    assert [(row["candidate"], row["batch"], row["draws"]) for row in found["points"]] == [
        (name, *each) for name in ("eager", "second") for each in points
    ]
    assert found["failed"] == []
    for row in found["points"]:
        assert row["rounds"] == len(row["seconds"]) == settings.ROUNDS
        assert row["p99_ms"] == pytest.approx(1e3 * max(row["seconds"]))
        assert row["images_per_s"]["min"] == pytest.approx(row["batch"] / max(row["seconds"]))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", [work.NetworkOnly, work.FileToVerdict])
def test_the_network_alone_and_files_can_be_swept_too(small_model, pictures, kind):
    into = {}
    given = work.file_images(pictures, 2, small_model.preprocessing)
    settings.measure(small_model, given, kind, [EAGER], CPU, settings.cross(2, 2), 1e-3, quiet, into)
    assert [(row["batch"], row["draws"]) for row in into["points"]] == settings.cross(2, 2)


def test_every_point_does_its_own_work_once_before_the_rounds(small_model, given):
    seen = []

    def build(model, noise, device):
        maps = EAGER.build(model, noise, device)
        draws = sum(len(level) for level in noise)
        assert draws == model.schedule.draws
        seen.append(draws)

        def run(x):
            seen.append((len(x), draws, x[0, 0, 0, 0].item()))
            return maps(x)

        return run

    spy = dataclasses.replace(EAGER, build=build)
    measured(small_model, given, [spy], [(1, 2), (2, 2), (1, 4)])
    assert [each for each in seen if isinstance(each, int)] == [2, 4]  # one build a number of draws
    sizes = [each[:2] for each in seen if isinstance(each, tuple)]
    turns = [(1, 2), (1, 2), (1, 2), (2, 2), (1, 4), (1, 4)]  # each begins with one image that is not timed
    assert sizes == [(2, 2), (1, 2), (1, 4)] + turns * settings.ROUNDS
    first = given.pixels[:, 0, 0, 0].tolist()
    assert [each[2] for each in seen[1 - 6 * settings.ROUNDS :: 6]] == [
        first[index % 3] for index in range(settings.ROUNDS)
    ]


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda model, errors: errors * 1.001, []),
        (lambda model, errors: errors * (1.001 if model.schedule.draws == 4 else 1.0), [(1, 2), (2, 2)]),
        (lambda model, errors: errors.flip(0), [(1, 2), (1, 4)]),  # right for one image, wrong for two
        (lambda model, errors: errors * math.nan, []),
    ],
)
def test_a_point_with_wrong_results_has_a_reason_and_no_figures(small_model, given, change, left):
    points = [(1, 2), (2, 2), (1, 4), (2, 4)]
    found = measured(small_model, given, [altered("wrong", change), EAGER], points)
    assert [(row["batch"], row["draws"]) for row in found["points"] if row["candidate"] == "wrong"] == left
    assert len([row for row in found["points"] if row["candidate"] == "eager"]) == 4
    assert {(row["batch"], row["draws"]) for row in found["failed"]} == set(points) - set(left)
    assert all("not the definition's (tolerance 0.0001)" in row["reason"] for row in found["failed"])


def test_what_cannot_be_built_or_does_not_fit_is_left_out_with_the_reason(small_model, given):
    def build(model, noise, device):
        if model.schedule.draws == 4:
            raise BackendError("no kernel for 4 draws")
        maps = EAGER.build(model, noise, device)

        def run(x):
            if len(x) == 2:
                raise torch.OutOfMemoryError("tried to allocate 9 GiB\nand more")
            return maps(x)

        return run

    found = measured(small_model, given, [dataclasses.replace(EAGER, build=build)], [(1, 2), (2, 2), (1, 4), (2, 4)])
    assert [(row["batch"], row["draws"]) for row in found["points"]] == [(1, 2)]
    assert found["failed"] == [
        {"candidate": "eager", "batch": 2, "draws": 2, "reason": "OutOfMemoryError: tried to allocate 9 GiB"},
        {"candidate": "eager", "batch": None, "draws": 4, "reason": "no kernel for 4 draws"},
    ]


def test_an_interrupt_keeps_the_whole_rounds(small_model, given):
    done = []

    def interrupt(fraction, what):
        if fraction:
            done.append(fraction)
        if len(done) == 2:
            raise KeyboardInterrupt

    into = {}
    with pytest.raises(KeyboardInterrupt):
        settings.measure(small_model, given, work.TensorToMap, [EAGER], CPU, [(1, 2), (2, 2)], 1e9, interrupt, into)
    assert [row["rounds"] for row in into["points"]] == [2, 2]


def test_accuracy_is_that_of_evaluate(small_model, category):
    told = []
    rows = list(settings.accuracy(small_model, category, CPU, [1, 2], lambda *done: told.append(done)))
    for row in rows:
        engine = Engine(settings.variant(small_model, row["draws"]), "auto", "cpu")
        expected = evaluation.evaluate(engine, category).metrics
        assert row == {"draws": row["draws"], "images": 4} | {
            key: expected[key].value for key in ("image_AUROC", "pixel_AUROC")
        }
    assert [row["draws"] for row in rows] == [1, 2]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("image_AUROC", "pixel_AUROC"))
    assert told == [(4, 8), (8, 8)]


def test_accuracy_without_defects_is_null(small_model, category):
    good = dataclasses.replace(category, test=tuple(sample for sample in category.test if not sample.label))
    (row,) = settings.accuracy(small_model, good, CPU, [1], quiet)
    assert (row["images"], row["image_AUROC"], row["pixel_AUROC"]) == (2, None, None)


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


def section(model, given, into, **options):
    defaults = {"batch": 3, "seconds": 0.2, "labelled": None, "period": None, "margin": 0.2, "on_progress": quiet}
    recommend.section(model, given, work.TensorToMap, [EAGER], CPU, **(defaults | options), into=into)
    json.dumps(into, allow_nan=False)
    return into


def test_section_without_a_period_measures_the_cross_and_recommends_nothing(small_model, given):
    told = []
    into = section(small_model, given, {"recommendation": None}, on_progress=lambda *each: told.append(each))
    found = into["settings"]
    assert [(row["batch"], row["draws"]) for row in found["points"]] == settings.cross(3, 2)
    assert (found["accuracy"], found["draws"], found["failed"]) == (None, 2, [])
    assert into["recommendation"] is None
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "eager" in rendered(into)


def test_section_with_a_period_recommends_and_checks_on_the_line(small_model, given, category, monkeypatch):
    monkeypatch.setattr(arrivals, "WallClock", simulated_clock.Clock)
    told = []
    into = section(
        small_model,
        given,
        {},
        labelled=category,
        period=50.0,
        seconds=0.01,
        on_progress=lambda *each: told.append(each),
    )
    found, setting = into["settings"], into["recommendation"]
    assert {(row["batch"], row["draws"]) for row in found["points"]} == set(settings.grid(3, 2))
    assert [row["draws"] for row in found["accuracy"]] == [1, 2, 4]
    assert (setting["candidate"], setting["batch"], setting["draws"], setting["AUROC_cost"]) == ("eager", 1, 2, 0.0)
    assert setting["line"]["frames"] == recommend.LEAST_QUERIES
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_section_leaves_out_draws_that_antithetic_noise_cannot_have(small_model, given):
    model = with_mode(small_model, schedule=Schedule((Level(1e-3, 2),), noise="antithetic"))
    found = section(model, given, {}, batch=1)["settings"]
    assert [(row["batch"], row["draws"]) for row in found["points"]] == [(1, 2), (1, 4)]


def test_section_keeps_what_was_whole_when_it_was_interrupted(small_model, given, category):
    def interrupt(fraction, what):
        if "accuracy" in what and fraction > 0.7:
            raise KeyboardInterrupt

    into = {"recommendation": None}
    with pytest.raises(KeyboardInterrupt):
        section(small_model, given, into, labelled=category, on_progress=interrupt)
    assert len(into["settings"]["points"]) == len(settings.cross(3, 2))
    assert [row["draws"] for row in into["settings"]["accuracy"]] == [1]
    assert into["recommendation"] is None
    rendered(into)


LINE = {"late": 0, "dropped": 0, "frames": 300, "p99_ms": 52.0, "jitter_ms": 1.5}


def document(line=LINE, period=0.1, candidates=("eager", "cuda_graph_bfloat16")):
    points = [point(name, *each, p99=1234.5 * each[0]) for name in candidates for each in settings.grid(16, 3)]
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
