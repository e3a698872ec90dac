"""`sprfast study`: the error maps of every way of scoring, and what a study of one category
says.
"""

import dataclasses
import itertools
import json

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import roc_auc_score

from sprfast.backends import registry
from sprfast.backends.sessions import cpu
from sprfast.bench.accuracy import costs, measure, named, summary
from sprfast.bench.accuracy.passes import Passes
from sprfast.bench.accuracy.rows import ROWS, StudyRow
from sprfast.config import Level, Preprocessing, Schedule
from sprfast.data import datasets, images
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import MAX_BATCH
from sprfast.errors import BackendError, InputError
from sprfast.evaluation import calibration, metrics
from sprfast.evaluation.evaluate import evaluate
from sprfast.evaluation.metrics import Metric
from sprfast.method.scoring_mode import ScoringMode
from support import study_cases
from support.scoring_mode_cases import with_mode
from support.study_cases import BACKEND, CPU, HELD_BACK

BY_NAME = {row.name: row for row in ROWS}
NAMED = {
    "single": "signs, t = 0.0008",
    "noiseless": "no noise, t = 0.03",
    "multi": "levels 0.001 and 0.01, K = 1",
    "field": "t = 0.01, K = 1, field",
}
NAMES = ("published", "independent draws, K = 1", "t = 0.01, K = 1", *NAMED.values())
SCHEDULES = {
    "published": Schedule(),
    "antithetic": Schedule((Level(1e-3, 4),), noise="antithetic"),
    "signs": Schedule((Level(2e-4, 2),), noise="signs"),
    "none": Schedule((Level(1e-2, 1),), noise="none"),
    "two levels": Schedule((Level(1e-3, 2, 3.0), Level(1e-2, 1, 1.0))),
    "two levels, none": Schedule((Level(1e-3, 1, 1.0), Level(1e-1, 1, 0.1)), noise="none"),
}


@pytest.fixture(scope="module")
def model(small_model):
    return study_cases.model(small_model, seed=7)


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(1).uniform(-1, 1, (MAX_BATCH + 2, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def counted(monkeypatch):
    """Images of each call of a backend, in their order."""
    calls, create = [], registry.create

    class Counting:
        def __init__(self, backend):
            self.backend = backend

        def maps(self, x, noise):
            calls.append(len(x))
            return self.backend.maps(x, noise)

    monkeypatch.setattr(registry, "create", lambda *arguments: Counting(create(*arguments)))
    return calls


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return study_cases.write_category(tmp_path_factory.mktemp("data") / "nut")


@pytest.fixture(scope="module")
def category(root):
    return datasets.load_category(root, None)


@pytest.fixture(scope="module")
def models(small_model):
    return [study_cases.model(small_model, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def whole(models, category, told):
    """A study of two models, with some rows and every backend."""
    with study_cases.quick(registry.NAMES):
        return study_cases.study(
            models, category, rows=[BY_NAME[name] for name in NAMES], on_progress=lambda *at: told.append(at)
        )


@pytest.fixture(scope="module")
def rows(whole):
    return {row["name"]: row for row in whole["rows"]}


@pytest.fixture(scope="module")
def passes(models, category):
    paths = [path for path in category.train if path.name in HELD_BACK]
    given = measure.Images.load(category, paths, models[0].preprocessing)
    return Passes(models[0], {"good": given.good, "test": given.test}, BACKEND, CPU)


def maps_of(model, inputs, row, **sets):
    return Passes(model, {"test": inputs, **sets}, BACKEND, CPU).error_maps(row, "test")


def evaluated(predictor, category):
    return {key: metric.value for key, metric in evaluate(predictor, category).metrics.items()}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_error_maps_are_those_of_an_engine_with_the_schedule(model, inputs, schedule):
    expected, _ = Engine(with_mode(model, schedule=schedule), BACKEND, "cpu").maps(inputs[:3])
    np.testing.assert_allclose(maps_of(model, inputs[:3], StudyRow("", schedule)), expected[:, 0], rtol=1e-4)


def test_error_maps_depend_on_the_noise_seed_of_the_model(model, inputs):
    of_one, of_other = (maps_of(dataclasses.replace(model, noise_seed=seed), inputs[:3], ROWS[0]) for seed in (7, 8))
    assert not np.allclose(of_one, of_other, rtol=1e-2)


def test_every_pass_is_computed_once_whoever_asks_for_it(model, inputs, counted):
    passes = Passes(model, {"good": inputs[:9], "test": inputs}, BACKEND, CPU)
    new = {
        "published": 3,
        "published, field": 0,
        "K = 1": 0,
        "K = 2": 0,
        "levels 0.001 and 0.01, K = 1": 1,
    }
    for name, count in new.items():
        counted.clear()
        passes.error_maps(dataclasses.replace(BY_NAME[name], balanced=False), "test")
        assert counted == [MAX_BATCH, 2] * count, name
    counted.clear()
    passes.error_maps(ROWS[0], "good")
    passes.error_maps(ROWS[0], "good")
    assert counted == [9] * 3


def test_independent_draws_differ_from_image_to_image_and_are_the_same_again(model, inputs, counted):
    alike = np.repeat(inputs[:1], MAX_BATCH + 2, axis=0)
    row = BY_NAME["independent draws, K = 1"]
    found = maps_of(model, alike, row)
    assert len({each.tobytes() for each in found}) == len(alike)
    assert maps_of(model, alike, row).tobytes() == found.tobytes()
    assert counted == [MAX_BATCH, 2] * 2
    frozen = maps_of(model, alike, BY_NAME["K = 1"])
    np.testing.assert_allclose(frozen, frozen[:1].repeat(len(alike), axis=0), rtol=1e-4)
    assert not np.allclose(maps_of(dataclasses.replace(model, noise_seed=8), alike, row), found, rtol=1e-2)


def test_independent_draws_of_one_image_differ_too(model, inputs):
    one, three = (maps_of(model, inputs[:3], BY_NAME[f"independent draws, K = {count}"]) for count in (1, 3))
    apart = np.abs(one - three).mean(axis=(1, 2)) / one.mean(axis=(1, 2))
    assert (apart > 1e-2).all()


def test_balanced_levels_weigh_alike_over_the_good_images(model, inputs):
    row = BY_NAME["levels 0.001, 0.01 and 0.1, no noise"]
    passes, others = (Passes(model, {"good": good}, BACKEND, CPU) for good in (inputs[:9], inputs[9:] * 0.2))
    weights = passes.weights(row)
    alone = [StudyRow("", dataclasses.replace(row.schedule, levels=(level,))) for level in row.schedule.levels]
    shares = [weight * passes.error_maps(each, "good").mean() for weight, each in zip(weights, alone, strict=True)]
    assert shares == pytest.approx([passes.error_maps(row, "good").mean() / 3] * 3)
    assert sum(weights) == pytest.approx(1.0)
    assert max(weights) > 1.5 * min(weights)
    assert others.weights(row) != pytest.approx(weights, rel=1e-3)
    assert passes.weights(dataclasses.replace(row, balanced=False)) == (1 / 3,) * 3


def test_names_of_rows_differ_and_each_with_a_field_follows_the_one_without():
    assert len(BY_NAME) == len(ROWS)
    for before, row in itertools.pairwise(ROWS):
        if row.field:
            assert (row.name, row.schedule, row.balanced) == (f"{before.name}, field", before.schedule, before.balanced)


def test_brightness_alone_is_a_score_in_the_report(whole, category, models):
    pixels = [images.load_image(each.path, models[0].preprocessing).pixels for each in category.test]
    expected = roc_auc_score([each.label for each in category.test], [each.mean() for each in pixels])
    assert expected != 0.5
    assert whole["brightness_AUROC"] == pytest.approx(expected)


def test_every_row_setting_and_backend_is_in_the_report(whole, rows, told):
    assert list(rows) == list(NAMES)
    assert set(whole["settings"]) == set(whole["times"]["settings"]) == {"published", *calibration.SETTINGS}
    assert {each["backend"] for each in whole["backends"]} == set(registry.NAMES)
    assert whole["images"] == {"good": 12, "test": 20, "defective": 8}
    assert [(each["file"], each["noise_seed"]) for each in whole["models"]] == [
        ("0.safetensors", 0),
        ("1.safetensors", 1),
    ]
    assert whole["models"][0]["provenance"] == {"held_back": 12, "steps": 60}
    json.dumps(whole, allow_nan=False)
    done, total = [at[0] for at in told], 2 * len(NAMES)
    assert done == sorted(done)
    assert told[0] == (0, total, "0.safetensors: published")
    assert told[-1] == (total, total, "1.safetensors: settings")


@pytest.mark.parametrize(("name", "index"), [("published", 1), ("signs, t = 0.0008", 1), ("t = 0.01, K = 1, field", 0)])
def test_a_row_is_what_evaluate_says_of_an_engine_with_that_setting(rows, models, category, name, index):
    row, model = BY_NAME[name], models[index]
    plain = Engine(dataclasses.replace(model, scoring_mode=ScoringMode(row.schedule)), BACKEND, "cpu")
    field = calibration.fit_field(plain, category.train[: len(HELD_BACK)]) if row.field else None
    expected = evaluated(
        Engine(dataclasses.replace(model, scoring_mode=ScoringMode(row.schedule, field)), BACKEND, "cpu"), category
    )
    assert {key: rows[name]["metrics"][key]["values"][index] for key in metrics.KEYS} == pytest.approx(
        expected, abs=2e-4
    )


def test_a_field_changes_the_score_and_not_the_map(rows):
    plain, divided = (rows[name]["metrics"] for name in ("t = 0.01, K = 1", "t = 0.01, K = 1, field"))
    assert plain["image_AUROC"] != divided["image_AUROC"]
    assert [plain[key] for key in ("pixel_AUROC", "AUPRO")] == [divided[key] for key in ("pixel_AUROC", "AUPRO")]


def test_two_models_give_standard_errors_and_differences_model_by_model(rows):
    base = rows["published"]["metrics"]
    for row in rows.values():
        for key in metrics.KEYS:
            values, found = row["metrics"][key]["values"], row["difference"][key]
            assert row["metrics"][key]["mean"] == pytest.approx(sum(values) / 2)
            assert row["metrics"][key]["standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
            assert found["values"] == pytest.approx(
                [one - other for one, other in zip(values, base[key]["values"], strict=True)]
            )
            assert found["standard_error"] == pytest.approx(abs(found["values"][0] - found["values"][1]) / 2)
    assert rows["published"]["difference"]["image_AUROC"] == {"mean": 0.0, "standard_error": 0.0, "values": [0.0, 0.0]}


def test_what_is_undefined_for_one_model_has_no_mean():
    one = dict.fromkeys(metrics.KEYS, Metric(0.5))
    other = one | {"AUPRO": Metric(None, "no masks")}
    found = summary.over_models([one, other], [one, one])
    assert found["metrics"]["AUPRO"] is found["difference"]["AUPRO"] is None
    assert found["metrics"]["caught"]["mean"] == 0.5
    assert summary.over_models([one], [one])["metrics"]["caught"] == {
        "mean": 0.5,
        "standard_error": None,
        "values": [0.5],
    }


def test_times_are_those_of_the_rows_passes_and_the_published_setting_is_the_published_one(whole, rows, models):
    assert models[0].schedule.draws == 2  # which a study takes no notice of
    of = whole["times"]["settings"]
    assert {name: found["passes"] for name, found in of.items()} == {
        "published": 3.0,
        "single": 1.0,
        "noiseless": 1.0,
        "multi": 2.0,
        "field": 1.0,
    }
    assert of["published"]["speedup"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for name, row in rows.items():
        assert row["passes"] == BY_NAME[name].schedule.draws
        assert row["ms"] == whole["times"]["passes"][str(row["passes"])]["ms"]["median"] > 0


def test_backends_are_compared_with_eager_or_say_why_not(whole):
    assert whole["backends"][0]["from_eager"] == {"image_AUROC": 0.0, "pixel_AUROC": 0.0}
    for each in whole["backends"]:
        if "reason" in each:
            assert "needs" in each["reason"] or registry.unavailable(each["backend"]) == each["reason"]
        else:
            assert max(map(abs, each["from_eager"].values())) < 0.01
    assert {"triton", "cuda_graph"} <= {each["backend"] for each in whole["backends"] if "reason" in each}


def test_a_backend_that_is_here_but_not_for_this_device_is_left_out_with_the_reason(models, inputs, monkeypatch):
    def refuse(self, *given):
        raise BackendError("backend cpu: cannot run on this device")

    monkeypatch.setattr(cpu.CpuSession, "__init__", refuse)
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(costs, "COMPARED", ("cpu", "eager"))
    found = costs.backends_apart(models[0], inputs, np.arange(len(inputs)) % 2 == 1, None, CPU)
    assert found[0] == {"backend": "eager", "image_AUROC": found[0]["image_AUROC"], "pixel_AUROC": None} | {
        "from_eager": {"image_AUROC": 0.0, "pixel_AUROC": None}
    }
    assert found[1] == {"backend": "cpu", "reason": "backend cpu: cannot run on this device"}


def test_named_settings_are_the_rows_of_the_same_schedule(whole, rows):
    assert NAMED.keys() == calibration.SETTINGS.keys()
    for name, row in NAMED.items():
        setting = calibration.SETTINGS[name]
        assert setting == calibration.Setting(BY_NAME[row].schedule, BY_NAME[row].field, BY_NAME[row].balanced)
    for name, row in (("published", "published"), *NAMED.items()):
        for key in metrics.KEYS:
            assert whole["settings"][name]["metrics"][key]["values"] == pytest.approx(
                rows[row]["metrics"][key]["values"], abs=1e-6
            )


@pytest.mark.parametrize(
    ("second", "given", "message"),
    [
        ({"preprocessing": Preprocessing(size=32)}, None, r"different ways \(size"),
        (
            {"provenance": {}},
            None,
            r"9 good images are needed to fit on, got 0; train with --hold-back, or give --fit DIR",
        ),
        (
            {"provenance": {"held_back": HELD_BACK[:8]}},
            None,
            r"nut: at least 9 good images are needed to fit on, got 8",
        ),
        (
            {"provenance": {"held_back": ["gone.png", *HELD_BACK]}},
            None,
            r"nut: gone.png, which the model's training held back, is",
        ),
        ({}, [], r"got 0"),
    ],
)
def test_models_and_images_that_do_not_do_are_refused_before_anything_is_computed(
    models, category, counted, second, given, message
):
    with pytest.raises(InputError, match=message):
        study_cases.study([models[0], dataclasses.replace(models[1], **second)], category, given)
    assert counted == []


def test_test_images_are_needed_and_all_images_must_be_of_one_size(models, category, counted, tmp_path):
    with pytest.raises(InputError, match="nut: there are no test images"):
        study_cases.study(models, dataclasses.replace(category, test=()))
    wide = tmp_path / "wide.png"
    PIL.Image.new("RGB", (24, 16)).save(wide)
    with pytest.raises(InputError, match=r"different sizes at the network's input: \[\(16, 16\), \(16, 24\)\]"):
        study_cases.study(models, category, [wide] * 9)
    assert counted == []


@pytest.mark.parametrize("label", [True, False], ids=["defects only", "good ones only"])
def test_of_one_kind_of_image_alone_its_shares_are_told_and_nothing_else(models, inputs, label):
    passes = Passes(models[0], {"good": inputs[:9], "test": inputs[9:12]}, BACKEND, CPU)
    found = named.over_models([named.measure(passes, np.full(3, label), None)])
    json.dumps(found, allow_nan=False)
    assert all(set(each[part].values()) == {None} for each in found.values() for part in ("metrics", "difference"))
    kept = [one for each in found.values() for (one,) in (*each["images"], *each["maps"])]
    assert all("refused" in each["iid"] and "refused" in each["in_time"] for each in kept)
    assert any("across" in each for each in kept)
    assert all("refused" in each["across"] for each in kept if label and "across" in each)
