"""Sweeps over batch size and draws."""

import dataclasses
import json
import math

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.bench.core import arrivals, peers, recommend, sweeps, work
from sprfast.config import Level, Schedule
from sprfast.data import datasets
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError
from sprfast.evaluation.evaluate import evaluate
from support import simulated_clock
from support.bench_reports import printed
from support.scoring_mode_cases import with_mode

CPU = torch.device("cpu")
EAGER = next(each for each in peers.CANDIDATES if each.name == "eager")


def quiet(*progress):
    pass


def altered(name, change):
    """A candidate that computes the definition, then `change`s model-dependent parts of the error
    map.
    """

    def build(model, noise, device):
        maps = peers.plain(model, noise, device)

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
    return datasets.load_category(root, None, small_model.preprocessing)


def measured(model, given, candidates, points, seconds=1e-3, on_progress=quiet):
    into = {}
    sweeps.measure(work.Work(model, given, CPU), candidates, points, seconds, on_progress, into)
    return into


def test_every_level_gets_the_draws_and_keeps_the_rest():
    schedule = Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0)))
    assert sweeps.with_draws(schedule, 4) == Schedule((Level(1e-3, 4, 1.0), Level(1e-2, 4, 3.0)))
    assert sweeps.own_draws(schedule) == 2


def test_draws_that_a_schedule_cannot_have_are_refused():
    antithetic = Schedule((Level(1e-3, 2),), noise="antithetic")
    assert sweeps.with_draws(antithetic, 4).draws == 4
    with pytest.raises(InputError, match="draws: 1"):
        sweeps.with_draws(antithetic, 1)
    assert [count for count in (1, 2, 4) if sweeps.allowed(antithetic, count)] == [2, 4]
    assert not sweeps.allowed(Schedule(), 1025)


def test_the_models_own_number_of_draws_is_the_model_itself(small_model):
    uneven = with_mode(small_model, schedule=Schedule((Level(1e-3, 2), Level(1e-2, 1))))
    assert sweeps.variant(uneven, 2) is uneven
    assert [level.draws for level in sweeps.variant(uneven, 1).schedule.levels] == [1, 1]


@pytest.mark.parametrize(
    ("batch", "draws", "expected"),
    [
        (1, 1, [(1, 1), (1, 2)]),
        (4, 3, [(1, 3), (2, 3), (4, 3), (1, 1), (1, 2), (1, 6)]),
        (6, 2, [(1, 2), (2, 2), (4, 2), (6, 2), (1, 1), (1, 4)]),
    ],
)
def test_cross_varies_one_at_a_time_and_grid_both(batch, draws, expected):
    assert sweeps.cross(batch, draws) == expected
    full = sweeps.grid(batch, draws)
    assert len(full) == len(set(full)) == len({size for size, _ in expected}) * len({count for _, count in expected})
    assert set(expected) <= set(full)


def test_all_points_take_turns_in_the_same_rounds(small_model, given):
    second = dataclasses.replace(EAGER, name="second")
    points = sweeps.cross(3, 2)
    found = measured(small_model, given, [EAGER, second], points)
    assert [(row["candidate"], row["batch"], row["draws"]) for row in found["points"]] == [
        (name, *each) for name in ("eager", "second") for each in points
    ]
    assert found["failed"] == []
    for row in found["points"]:
        assert row["rounds"] == len(row["seconds"]) == sweeps.ROUNDS
        assert row["p99_ms"] == pytest.approx(1e3 * max(row["seconds"]))
        assert row["images_per_s"]["min"] == pytest.approx(row["batch"] / max(row["seconds"]))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", [work.NetworkOnly, work.FileToVerdict])
def test_the_network_alone_and_files_can_be_swept_too(small_model, pictures, kind):
    into = {}
    given = work.file_images(pictures, 2, small_model.preprocessing)
    sweeps.measure(kind(small_model, given, CPU), [EAGER], sweeps.cross(2, 2), 1e-3, quiet, into)
    assert [(row["batch"], row["draws"]) for row in into["points"]] == sweeps.cross(2, 2)


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
    assert sizes == [(2, 2), (1, 2), (1, 4)] + turns * sweeps.ROUNDS
    first = given.pixels[:, 0, 0, 0].tolist()
    assert [each[2] for each in seen[1 - 6 * sweeps.ROUNDS :: 6]] == [
        first[index % 3] for index in range(sweeps.ROUNDS)
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
        sweeps.measure(work.Work(small_model, given, CPU), [EAGER], [(1, 2), (2, 2)], 1e9, interrupt, into)
    assert [row["rounds"] for row in into["points"]] == [2, 2]


def test_accuracy_is_that_of_evaluate(small_model, category):
    told = []
    rows = list(sweeps.accuracy(small_model, category, CPU, [1, 2], lambda *done: told.append(done)))
    for row in rows:
        engine = Engine(sweeps.variant(small_model, row["draws"]), "auto", "cpu")
        expected = evaluate(engine, category).metrics
        assert row == {"draws": row["draws"], "images": 4} | {
            key: expected[key].value for key in ("image_AUROC", "pixel_AUROC")
        }
    assert [row["draws"] for row in rows] == [1, 2]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("image_AUROC", "pixel_AUROC"))
    assert told == [(0.5, "settings: accuracy"), (1.0, "settings: accuracy")]


def test_accuracy_without_defects_is_null(small_model, category):
    good = dataclasses.replace(category, test=tuple(sample for sample in category.test if not sample.label))
    (row,) = sweeps.accuracy(small_model, good, CPU, [1], quiet)
    assert (row["images"], row["image_AUROC"], row["pixel_AUROC"]) == (2, None, None)


def section(model, given, into, **options):
    defaults = {"seconds": 0.02, "labelled": None, "period": None, "margin": 0.2, "on_progress": quiet}
    recommend.section(work.Work(model, given, CPU), [EAGER], **(defaults | options), into=into)
    json.dumps(into, allow_nan=False)
    return into


def test_section_without_a_period_measures_the_cross_and_recommends_nothing(small_model, given):
    told = []
    into = section(small_model, given, {"recommendation": None}, on_progress=lambda *each: told.append(each))
    found = into["settings"]
    assert [(row["batch"], row["draws"]) for row in found["points"]] == sweeps.cross(3, 2)
    assert (found["accuracy"], found["draws"], found["failed"]) == (None, 2, [])
    assert into["recommendation"] is None
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "eager" in printed(recommend.table(into))


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
    assert {(row["batch"], row["draws"]) for row in found["points"]} == set(sweeps.grid(3, 2))
    assert [row["draws"] for row in found["accuracy"]] == [1, 2, 4]
    assert (setting["candidate"], setting["batch"], setting["draws"], setting["AUROC_cost"]) == ("eager", 1, 2, 0.0)
    assert setting["line"]["frames"] == recommend.LEAST_QUERIES
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_section_leaves_out_draws_that_antithetic_noise_cannot_have(small_model, given):
    model = with_mode(small_model, schedule=Schedule((Level(1e-3, 2),), noise="antithetic"))
    found = section(model, work.random_images(1, 32), {})["settings"]
    assert [(row["batch"], row["draws"]) for row in found["points"]] == [(1, 2), (1, 4)]


def test_section_keeps_what_was_whole_when_it_was_interrupted(small_model, given, category):
    def interrupt(fraction, what):
        if "accuracy" in what and fraction > 0.7:
            raise KeyboardInterrupt

    into = {"recommendation": None}
    with pytest.raises(KeyboardInterrupt):
        section(small_model, given, into, labelled=category, on_progress=interrupt)
    assert len(into["settings"]["points"]) == len(sweeps.cross(3, 2))
    assert [row["draws"] for row in into["settings"]["accuracy"]] == [1]
    assert into["recommendation"] is None
    printed(recommend.table(into))
