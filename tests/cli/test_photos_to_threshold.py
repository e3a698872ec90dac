"""From photos to a threshold: `train --hold-back`, `calibrate --held-back`, and what comes next."""

import importlib
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from sprfast.backends import registry as backends
from sprfast.data import datasets
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.method.threshold import lowest_rate
from support.command_line import TRAIN, next_command, one_line

HOLD_BACK = ("--hold-back", "0.25")


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Twelve good and two bad photos, and the model of one training on them."""
    from typer.testing import CliRunner

    from sprfast.cli.app import app

    folder = tmp_path_factory.mktemp("plant")
    for seed in range(11):
        write(folder / "my photos" / "Normal" / f"{seed:02}.png", seed)
    write(folder / "my photos" / "Normal" / "night" / "00.png", 11)
    for seed in (20, 21):
        write(folder / "my photos" / "defect" / f"{seed}.png", seed)
    arguments = [folder / "my photos", "--recursive", "-o", folder / "part.safetensors", *TRAIN, *HOLD_BACK]
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return folder


@pytest.fixture
def plant(trained, tmp_path):
    """A copy of the model, which may be changed; the photos are where they were."""
    return shutil.copy(trained / "part.safetensors", tmp_path / "part.safetensors")


def test_each_command_as_it_is_printed_leads_to_the_next(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "240")
    code, out, err = run("train", trained / "my photos", "--recursive", *TRAIN, *HOLD_BACK)
    assert code == 0
    assert out.count("\n") < 10
    assert "9 images, 3 held back" in out
    assert "2 steps: `study curve` has measured no model of fewer than 131" in err
    code, out, err = run(*next_command(err))
    assert code == 0
    assert "at most 25 % of good parts are rejected" in out
    assert "3, which allow 25 % at the lowest" in out
    assert "of 2 are caught" in out
    code, out, err = run(*next_command(err))
    assert code == 0
    assert "of 12 good images the 3 that were not trained on are scored" in err
    assert "my photos: 5 images" in out
    following = next_command(err)
    assert following == ["predict", "my photos.safetensors", "NEW_IMAGES", "-o", "results"]
    folder = str(trained / "my photos" / "Normal")
    code, out, err = run(*following[:2], folder, *following[3:])
    assert (code, "left out" in err, out.count(".png ")) == (0, True, 11)
    assert next_command(err) == ["station", "my photos.safetensors", "--folder", folder]
    code, out, err = run(*following[:2], folder, "--recursive")
    assert (code, "left out" in err, out.count(".png ")) == (0, False, 12)
    assert next_command(run(*following[:2], f"{folder}/00.png")[2])[-1] == "INCOMING"


def test_a_model_file_knows_what_was_held_back_and_where(run, trained, plant, tmp_path):
    known = model_file.load(plant).provenance
    assert (known["category"], known["data"]["data"]) == ("my photos", str(trained / "my photos"))
    moved = tmp_path / "elsewhere" / "deep"
    for index, path in enumerate(sorted((trained / "my photos" / "Normal").rglob("*.png"))):
        moved.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / f"renamed-{index}.png")
    code, out, _ = run("calibrate", plant, "--held-back", "--json")
    expected = json.loads(out)["threshold"]
    assert (code, expected["samples"], expected["false_reject_rate"]) == (0, 3, lowest_rate(3))
    code, out, _ = run("calibrate", plant, moved.parent, "--held-back", "--json")
    assert (code, json.loads(out)["threshold"]) == (0, expected)
    used, held_back = datasets.split(datasets.load_category(trained / "my photos", None, recursive=True).train, 0.25, 0)
    code, out, _ = run("predict", plant, *held_back, "--json")
    scores = [row["pred_score"] for row in json.loads(out)["results"]]
    assert expected["scores"]["maximum"] == pytest.approx(max(scores), rel=1e-6)
    gone = next(path for path in moved.iterdir() if path.read_bytes() == held_back[0].read_bytes())
    gone.unlink()
    code, out, err = run("calibrate", plant, moved, "--held-back", "--json")
    assert (code, json.loads(out)["threshold"]["samples"]) == (0, 2)
    assert "1 of the 3 images held back are not in" in err
    assert len(used) == 9


def test_bad_images_show_what_a_threshold_catches(run, trained, plant, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    bad = trained / "my photos" / "defect"
    scores = sorted(row["pred_score"] for row in json.loads(run("predict", plant, bad, "--json")[1])["results"])
    between = ("--threshold", str(sum(scores) / 2))
    code, out, _ = run("calibrate", plant, *between, "--bad", bad, "--json")
    found = json.loads(out)["bad"]
    assert (code, found["images"], found["caught"]) == (0, 2, 1)
    assert [row["pred_score"] for row in found["missed"]] == pytest.approx(scores[:1], rel=1e-6)
    code, out, _ = run("calibrate", plant, *between, "--bad", bad)
    assert "1 of 2 are caught" in out
    assert found["missed"][0]["path"] in out
    before = plant.read_bytes()
    good = trained / "my photos" / "Normal"
    twin = one_line(run, "calibrate", plant, "--held-back", "--bad", good, "--recursive")
    assert "a bad image, but the same file as the good" in twin
    assert "holds no images" in one_line(run, "calibrate", plant, *between, "--bad", trained)
    assert plant.read_bytes() == before


def test_held_back_images_that_cannot_be_had_are_one_sentence(run, trained, plant, small_model, tmp_path):
    before = plant.read_bytes()
    assert "none of the 3 images held back is in" in one_line(
        run, "calibrate", plant, trained / "my photos" / "defect", "--held-back"
    )
    rate = ("--false-reject-rate", "0.1")
    assert "needs scores of at least 9 good images, got 3, with which 0.25 is the lowest" in one_line(
        run, "calibrate", plant, "--held-back", *rate
    )
    assert "or --held-back" in one_line(run, "calibrate", plant, "--held-back", "--threshold", "1")
    assert plant.read_bytes() == before
    model_file.save(plant, small_model)
    assert "the model file does not say where" in one_line(run, "calibrate", plant, "--held-back")
    assert "train with --hold-back" in one_line(run, "calibrate", plant, trained, "--held-back")
    shutil.copytree(trained / "my photos", tmp_path / "gone")
    arguments = ["train", tmp_path / "gone", "-o", tmp_path / "b.safetensors", *TRAIN, *HOLD_BACK]
    assert run(*arguments)[0] == 0
    shutil.rmtree(tmp_path / "gone")
    assert "gone, where they were, is gone; give the folder" in one_line(
        run, "calibrate", tmp_path / "b.safetensors", "--held-back"
    )


def test_good_and_bad_folders_are_given_by_name(run, trained, tmp_path):
    good, bad = trained / "my photos" / "Normal", trained / "my photos" / "defect"
    model = tmp_path / "m.safetensors"
    code, _, err = run("train", "--good", good, "--bad", bad, "-o", model, *TRAIN, *HOLD_BACK)
    assert code == 0
    assert next_command(err) == ["calibrate", str(model), "--held-back", "--bad", str(bad)]
    code, out, _ = run("evaluate", model, "--good", good, "--bad", bad, "--json")
    (row,) = json.loads(out)["categories"]
    assert (code, row["category"], row["images"], list(row["kinds"])) == (0, "my photos", 5, ["defect"])
    assert "give DATA, or --good DIR" in one_line(run, "evaluate", model)
    assert "give DATA, or --good DIR" in one_line(run, "train", good, "--good", good)
    assert "--bad: goes with --good" in one_line(run, "train", good, "--bad", bad)
    assert "--category: is of DATA" in one_line(run, "evaluate", model, "--good", good, "--category", "nut")
    assert "--good and --bad go together" in one_line(run, "study", model, "--good", good)
    assert "give DATA and at least one MODEL" in one_line(run, "study", "curve", model)


@pytest.mark.parametrize(("command", "room"), [("run", "measure"), ("curve", "curve")])
def test_a_study_has_the_good_images_that_no_model_was_trained_on(run, trained, plant, monkeypatch, command, room):
    measuring, given = importlib.import_module(f"sprfast.bench.accuracy.{room}"), []

    def stop(models, category, *fit, **options):
        given.extend((category.test, *fit))
        raise SystemExit(0)

    monkeypatch.setattr(measuring, "study" if command == "run" else "measure", stop)
    run("study", command, trained / "my photos", plant, "--recursive")
    untrained = datasets.split(datasets.load_category(trained / "my photos", None, recursive=True).train, 0.25, 0)[1]
    test, *fit = given
    good = [sample.path for sample in test if not sample.label]
    assert sorted([*good, *(path for each in fit for path in each)]) == sorted(untrained)
    assert len(test) - len(good) == 2
    if command == "run":
        assert fit == [untrained[0::2]]


def test_another_category_is_said_to_be_one(run, data_set, tmp_path):
    model, plan = tmp_path / "bolt.safetensors", tmp_path / "bolt.plan"
    assert run("train", data_set, "--category", "bolt", "-o", model, *TRAIN)[0] == 0
    files = [model]
    if not backends.unavailable("cpu"):
        assert run("export", model, "--to", "plan", "-o", plan)[0] == 0
        files.append(plan)
    for file in files:
        assert "was trained on" not in run("evaluate", file, data_set, "--category", "bolt")[2]
        code, _, err = run("evaluate", file, data_set, "--category", "nut")
        assert code == 0
        assert "the model was trained on bolt, and nut is scored" in err


def test_an_export_without_a_category_is_scored_without_a_word(run, data_set, model_path, tmp_path):
    """As those of earlier versions are."""
    if reason := backends.unavailable("cpu"):
        pytest.skip(reason)
    plan = tmp_path / "model.plan"
    assert run("export", model_path, "--to", "plan", "-o", plan)[0] == 0
    assert "category" not in export_file.read(plan).metadata.to_json()
    code, _, err = run("evaluate", plan, data_set, "--category", "nut")
    assert (code, "was trained on" in err) == (0, False)
    before = plan.read_bytes()
    assert "calibrate its model with it and export that" in one_line(run, "calibrate", plan, "--held-back")
    assert plan.read_bytes() == before


def test_a_training_of_no_step_is_refused_and_leaves_nothing(run, data_set, tmp_path):
    arguments = ["train", data_set, "--category", "bolt", "-o", tmp_path / "m.safetensors", *TRAIN[:4]]
    for limit in ("--steps", "--epochs"):
        assert f"{limit} 0: nothing would be trained" in one_line(run, *arguments, limit, "0")
    assert "were over before the first step" in one_line(run, *arguments, "--time-limit", "1ms")
    assert list(tmp_path.glob("m*")) == []


def test_three_thousand_epochs_on_a_cpu_are_advised_against(run, data_set, monkeypatch):
    from sprfast.errors import InputError
    from sprfast.training import train as training

    def stop(*given, **options):
        raise InputError("trains no further")

    monkeypatch.setattr(training, "train", stop)
    arguments = ["train", data_set, "--category", "bolt", "--size", "16", "--device", "cpu"]
    assert "on a CPU try --recipe fast --time-limit 20m" in run(*arguments)[2]
    assert "on a CPU try" not in run(*arguments, "--time-limit", "20m")[2]
    assert "on a CPU try" not in run(*arguments, "--recipe", "fast")[2]
