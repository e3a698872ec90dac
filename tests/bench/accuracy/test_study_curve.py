"""`sprfast study curve`: trainings of several lengths, their accuracy, and what is no such
training.
"""

import dataclasses
import json
from pathlib import Path

import PIL.Image
import pytest

from sprfast.bench.accuracy import curve, report
from sprfast.config import Level, Preprocessing, Schedule, TrainingConfig
from sprfast.data import datasets
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.evaluation import metrics
from sprfast.evaluation.evaluate import evaluate
from sprfast.formats import model as model_file
from sprfast.training.recipes import RECIPES
from support import study_cases
from support.bench_reports import printed
from support.command_line import next_command
from support.scoring_mode_cases import with_mode
from support.study_cases import BACKEND, CPU


def trained(small_model, recipe, minutes, seed=0, **changes):
    """A model that says it was trained so; its noise stands for what its training would have
    made.
    """
    config = TrainingConfig(**RECIPES[recipe] | {"epochs": 0, "time_limit": 60.0 * minutes, "seed": seed} | changes)
    facts = {"steps": 90, "seconds": 61.0 * minutes, "peak_memory_mib": 1000 + seed, "training": config.to_json()}
    return study_cases.model(small_model, seed, **facts)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return study_cases.write_category(tmp_path_factory.mktemp("data") / "nut")


@pytest.fixture(scope="module")
def models(small_model):
    of = [("fast", 10, 0), ("published", 20, 0), ("fast", 2.5, 0), ("fast", 2.5, 1), ("published", 5, 0)]
    return [
        (Path(f"{recipe}-{minutes}-{seed}.safetensors"), trained(small_model, recipe, minutes, seed))
        for recipe, minutes, seed in of
    ]


def measured(models, root, **options):
    return curve.measure(models, datasets.load_category(root, None), backend=BACKEND, device=CPU, **options)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(models, root, told):
    return measured(models, root, on_progress=lambda *at: told.append(at))


def test_points_are_recipes_and_limits_in_order_and_seeds_are_one_point(found, told):
    assert [(each["recipe"], each["minutes"]) for each in found["points"]] == [
        ("published", 5.0),
        ("published", 20.0),
        ("fast", 2.5),
        ("fast", 10.0),
    ]
    of_seeds = found["points"][2]
    assert [each["file"] for each in of_seeds["files"]] == ["fast-2.5-0.safetensors", "fast-2.5-1.safetensors"]
    assert of_seeds["peak_memory_mib"]["values"] == [1000.0, 1001.0]
    assert of_seeds["images_per_s"]["mean"] == pytest.approx(90 * 4 / 152.5)
    assert found["points"][0]["images_per_s"]["mean"] == pytest.approx(90 * 16 / 305)
    assert told[0] == (0, 5, "published-5-0.safetensors")
    assert [done for done, *_ in told] == list(range(5))
    json.dumps(found, allow_nan=False)


def test_a_model_of_an_earlier_version_names_no_precision(found, models, root):
    path, model = models[0]
    earlier = {name: value for name, value in model.provenance["training"].items() if name != "precision"}
    model = dataclasses.replace(model, provenance=model.provenance | {"training": earlier})
    assert measured([(path, model)], root)["points"][0]["recipe"] == found["points"][3]["recipe"]


def test_metrics_are_what_evaluate_says_of_the_published_setting(found, models, root):
    # of which no notice is taken
    model = with_mode(models[0][1], schedule=Schedule((Level(0.1, 1),)), threshold=None)
    other = measured([(models[0][0], model)], root)["points"][0]
    engine = Engine(with_mode(model, schedule=Schedule()), BACKEND, "cpu")
    expected = evaluate(engine, datasets.load_category(root, None)).metrics
    for key in metrics.KEYS:
        assert found["points"][3]["metrics"][key]["values"] == other["metrics"][key]["values"] == [expected[key].value]
    assert found["points"][2]["metrics"]["image_AUROC"]["standard_error"] > 0


def test_the_table_has_a_line_a_point_and_fits(found):
    text = printed(curve.table(found), 110)
    assert "nut, 16x16" in text
    assert "…" not in text
    assert [line.split()[:3] for line in text.splitlines() if line.strip().startswith(("published", "fast"))] == [
        ["published", "5", "1"],
        ["published", "20", "1"],
        ["fast", "2.5", "2"],
        ["fast", "10", "1"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": {}}, r"other.safetensors: was not trained by one of the recipes \(published, fast, repair\)"),
        ({"learning_rate": 2e-3}, r"other.safetensors: was not trained by one of the recipes"),
        ({"precision": "bfloat16"}, r"other.safetensors: was not trained by one of the recipes"),
        ({"time_limit": 0.0, "steps": 5}, r"other.safetensors: was trained for a number of steps"),
        ({"preprocessing": Preprocessing(size=32)}, r"different networks or take images in different ways"),
    ],
)
def test_a_model_that_is_no_point_is_refused_before_anything_is_computed(models, small_model, root, changes, message):
    of_model = {key: changes[key] for key in changes if key in ("provenance", "preprocessing")}
    of_training = {key: changes[key] for key in changes if key not in of_model}
    other = dataclasses.replace(trained(small_model, "fast", 10, **of_training), **of_model)
    told = []
    with pytest.raises(InputError, match=message):
        measured([models[0], (Path("other.safetensors"), other)], root, on_progress=lambda *at: told.append(at))
    assert told == []


def test_the_command_writes_report_and_picture(run, small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    without_masks = study_cases.write_category(tmp_path / "data" / "nut", masks=False)
    paths = [tmp_path / f"{recipe}.safetensors" for recipe in RECIPES]
    for path in paths:
        model_file.save(path, trained(small_model, path.stem, 10))
    output, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    options = ("--category", "nut", "--device", "cpu", "-o", output, "--figure", picture)
    code, out, err = run("study", "curve", without_masks.parent, *paths, *options)
    assert (code, next_command(err)) == (0, ["calibrate", "MODEL", "--held-back"])
    points = json.loads(output.read_text())["points"]
    assert [each["recipe"] for each in points] == list(RECIPES)
    assert {each["metrics"]["pixel_AUROC"] for each in points} == {None}
    assert all(f"{100 * each['metrics']['image_AUROC']['mean']:.1f}" in out for each in points)
    assert PIL.Image.open(picture).format == "PNG"
    code, again, _ = run("study", "show", output)
    assert (code, again) == (0, out)


def test_show_prints_the_studies_and_then_each_curve(run, found, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    curves, studies = tmp_path / "curve.json", tmp_path / "study.json"
    report.write(found, curves)
    report.write(study_cases.document(), studies)
    code, out, _ = run("study", "show", curves, studies, curves)
    assert code == 0
    assert "independent draws, K = 3" in out
    assert out.count("nut, 16x16") == 2
    assert out.index("independent draws") < out.index("nut, 16x16")
    code, out, _ = run("study", "show", curves, "--json")
    assert json.loads(out) == {"reports": [found]}


@pytest.mark.parametrize("key", ["recipe", "minutes", "files", "steps", "images_per_s", "peak_memory_mib", "metrics"])
def test_a_damaged_curve_is_one_line(run, found, tmp_path, key):
    path = tmp_path / "curve.json"
    first, *others = found["points"]
    report.write(found | {"points": [{name: first[name] for name in first if name != key}, *others]}, path)
    code, out, err = run("study", "show", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"sprfast: {path}: is a damaged report of `sprfast study`")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-o", "nowhere/curve.json"], "nowhere/curve.json"),
        (["--figure", "nowhere/curve.png"], "nowhere/curve.png"),
        (["--category", "bolt"], "bolt"),
        ([], "model.safetensors: was not trained by one of the recipes"),
    ],
)
def test_a_curve_that_cannot_be_is_one_line_and_leaves_nothing(run, small_model, root, tmp_path, arguments, names):
    model_file.save(tmp_path / "model.safetensors", study_cases.model(small_model))
    arguments = [tmp_path / each if "nowhere" in each else each for each in arguments]
    code, out, err = run("study", "curve", root.parent, tmp_path / "model.safetensors", "--category", "nut", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sprfast: ")
    assert names in err
    assert len(err.strip().splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]
