"""Settings from the command line: made by `calibrate`, then used by every command that scores."""

import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from sprfast.backends import registry as backends
from sprfast.cli.calibrate import calibrate_file
from sprfast.cli.calibration_request import Request
from sprfast.cli.options import Runtime
from sprfast.config import Level, Schedule
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.evaluation import calibration
from sprfast.formats import model as model_file
from support.command_line import one_line
from support.line_cases import frame

RATE = ("--false-reject-rate", "0.2")
LOW = ("--false-reject-rate", "0.001")


@pytest.fixture(scope="module")
def made(small_model, good, tmp_path_factory):
    """A model file with every setting that has a name, made by the commands below."""
    path = tmp_path_factory.mktemp("made") / "model.safetensors"
    model_file.save(path, small_model)
    from typer.testing import CliRunner

    from sprfast.cli.app import app

    for name in calibration.SETTINGS:
        done = CliRunner().invoke(app, ["calibrate", str(path), str(good), *RATE, "--setting", name, "--json"])
        assert done.exit_code == 0, (name, done.output, done.exception)
    return path


@pytest.fixture
def path(made, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copy(made, tmp_path / "model.safetensors")


def rows(run, *arguments, code=0):
    got, out, err = run("predict", *arguments, "--json")
    assert got == code, err
    return json.loads(out)["results"]


def test_calibrate_stores_the_conformal_quantile(run, model_path, pictures):
    scores = sorted(
        row["pred_score"] for row in json.loads(run("predict", model_path, *pictures, "--json")[1])["results"]
    )
    code, out, _ = run("calibrate", model_path, pictures[0].parent, "--false-reject-rate", "0.4", "--json")
    assert code == 0
    threshold = json.loads(out)["threshold"]
    assert threshold["rank"] == 3  # ceil((4 + 1) * 0.6)
    assert threshold["value"] == pytest.approx(scores[2] * (1 + 1e-4), rel=1e-9)
    assert model_file.load(model_path).scoring_mode.threshold.value == threshold["value"]


def test_too_few_images_for_the_rate_leave_the_model_unchanged(run, model_path, pictures):
    before = model_path.read_bytes()
    code, _, err = run("calibrate", model_path, pictures[0].parent, "--false-reject-rate", "0.001")
    assert code == 2
    assert "999" in err
    assert model_path.read_bytes() == before


@pytest.mark.parametrize("name", list(calibration.SETTINGS))
def test_a_named_setting_is_fitted_on_one_half_and_calibrated_on_the_other(run, model_path, good, name):
    before = model_file.load(model_path)
    code, out, _ = run("calibrate", model_path, good, *RATE, "--setting", name, "--json")
    assert code == 0
    model = model_file.load(model_path)
    stored = model.scoring_modes[name]
    setting, files = calibration.SETTINGS[name], sorted(good.iterdir())

    def predictor_of(mode):
        return Engine(dataclasses.replace(before, scoring_mode=mode))

    fitted = calibration.fitted(setting, predictor_of, files[::2])
    assert (stored.schedule, stored.error_field) == (fitted.schedule, fitted.error_field)
    assert (stored.error_field is not None) == setting.field == (stored.map_threshold is not None)
    promised = files[1::2] if setting.fitted else files  # nothing is held back where nothing is fitted
    assert stored.threshold.samples == len(promised)
    scores = [result.pred_score for result in Engine(model.using(name)).predict(promised)]
    assert stored.threshold.scores == pytest.approx(sorted(scores), rel=1e-6)
    if setting.field:
        assert stored.error_field.samples == 10
        assert stored.map_threshold.false_pixel_rate == 0.2  # the rate of rejects, where no other is given
    summary = json.loads(out)
    assert (summary["setting"], summary["threshold"]) == (name, stored.threshold.summary())
    assert (model.scoring_mode, model.sha256) == (before.scoring_mode, before.sha256)  # the published one stays


def test_predict_scores_with_the_setting_that_is_named(run, made, fresh, tmp_path):
    model, paths = model_file.load(made), sorted(fresh.iterdir())
    scores = {}
    for name in ("published", *calibration.SETTINGS):
        got = rows(run, made, fresh, "--setting", name)
        expected = Engine(model.using(name)).predict(paths)
        assert [row["verdict"] for row in got] == [result.verdict.value for result in expected]
        assert {row["threshold"] for row in got} == {expected[0].threshold}
        scores[name] = tuple(row["pred_score"] for row in got)
        assert scores[name] == pytest.approx([result.pred_score for result in expected], rel=1e-6)
    assert len(set(scores.values())) == len(scores)
    assert [row["pred_score"] for row in rows(run, made, fresh)] == pytest.approx(scores["published"])
    output = tmp_path / "out"
    assert len(rows(run, made, fresh, "--setting", "field", "-o", output)) == len(list(output.glob("*.png"))) == 6


def test_evaluate_takes_a_setting(run, made, tmp_path):
    name = "field"
    for kind, label in (("train/good", 0), ("test/good", 0), ("test/dent", 1)):
        (tmp_path / "part" / kind).mkdir(parents=True)
        for index in range(3):
            PIL.Image.fromarray(frame(400 + index + 50 * label)).save(
                tmp_path / "part" / kind / f"{index}{kind[:2]}.png"
            )
    figure = tmp_path / "figure.png"
    code, out, _ = run(
        "evaluate", made, tmp_path, "--category", "part", "--setting", name, "--figure", figure, "--json"
    )
    assert code == 0
    row = json.loads(out)["categories"][0]
    engine = Engine(model_file.load(made).using(name))
    folders = (tmp_path / "part" / "test" / kind for kind in ("good", "dent"))
    good, bad = ([engine.predict(path).pred_score for path in folder.iterdir()] for folder in folders)
    assert row["image_AUROC"] == pytest.approx(np.mean([[b > g for g in good] for b in bad]))
    assert row["caught"] == pytest.approx(np.mean(np.array(bad) > max(good)))
    assert row["rejected_good"] == sum(score > engine.threshold.value for score in good)
    assert PIL.Image.open(figure).width > 100
    assert "give one of the two" in one_line(
        run, "evaluate", made, tmp_path, "--category", "part", "--setting", name, "--level", "0.1:1"
    )


@pytest.mark.parametrize("name", list(calibration.SETTINGS))
def test_export_and_parity_take_a_setting(run, made, good, fresh, tmp_path, name):
    pytest.importorskip("onnxruntime")
    if backends.unavailable("cpu"):
        pytest.skip(backends.unavailable("cpu"))
    expected = rows(run, made, fresh, "--setting", name, "--backend", "eager")
    for target in ("onnx", "plan"):
        exported = tmp_path / target
        code, out, _ = run(
            "export", made, "--to", target, "-o", exported, "--images", good, "--setting", name, "--json"
        )
        assert code == 0
        shown, stored = json.loads(out), model_file.load(made).scoring_modes[name]
        assert {part: shown[part] for part in stored.summary()} == json.loads(json.dumps(stored.summary()))
        got = rows(run, exported, fresh)
        assert [(row["verdict"], row["threshold"]) for row in got] == [
            (row["verdict"], row["threshold"]) for row in expected
        ]
        # without noise a score is of the network's output alone, which rounds by more than a sum
        assert [row["pred_score"] for row in got] == pytest.approx([row["pred_score"] for row in expected], rel=3e-5)
        code, out, _ = run("parity", made, "--images", fresh, "--export", exported, "--json")
        assert (code, json.loads(out)["passed"]) == (0, True)
        for command in (("predict", exported, fresh), ("calibrate", exported, good, *RATE)):
            assert "an export has the setting that it was exported with" in one_line(run, *command, "--setting", name)
    code, out, _ = run("parity", made, "--images", fresh, "--setting", name, "--backend", "cpu", "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)


def test_an_export_with_a_field_is_calibrated_anew(run, made, good, tmp_path):
    pytest.importorskip("onnxruntime")
    exported = tmp_path / "a.onnx"
    assert run("export", made, "--to", "onnx", "-o", exported, "--setting", "field")[0] == 0
    code, out, _ = run("calibrate", exported, good, *RATE, "--false-pixel-rate", "0.3", "--json")
    shown = json.loads(out)
    assert code == 0
    assert (
        shown["threshold"]["samples"],
        shown["map_threshold"]["samples"],
        shown["map_threshold"]["false_pixel_rate"],
    ) == (20, 20, 0.3)
    assert json.loads(run("info", exported, "--json")[1])["map_threshold"] == shown["map_threshold"]
    code, out, _ = run("calibrate", exported, "--threshold", "1.5", "--json")
    assert (code, json.loads(out)["threshold"]["value"]) == (0, 1.5)
    assert json.loads(run("info", exported, "--json")[1])["field"] == {"shape": [32, 32], "samples": 10}


def test_a_setting_that_the_model_does_not_have_is_one_sentence(run, made, model_path, fresh, tmp_path):
    for command in (
        ("predict", made, fresh),
        ("evaluate", made, fresh),
        ("export", made, "--to", "plan", "-o", tmp_path / "a"),
        ("parity", made, "--images", fresh),
        ("calibrate", made, "--threshold", "1"),
    ):
        error = one_line(run, *command, "--setting", "fast")
        known = ", ".join(("published", *sorted(calibration.SETTINGS)))
        assert f"setting 'fast': the model has {known}; `sprfast calibrate --setting` adds one" in error
    assert "the model has published;" in one_line(run, "predict", model_path, fresh, "--setting", "single")
    assert not (tmp_path / "a").exists()


def test_a_setting_of_ones_own_is_made_with_its_levels(run, path, good, fresh):
    levels = ("--level", "0.0005:2", "--level", "0.01:2:3", "--noise", "signs")
    for name, more in (("plain", ()), ("fielded", ("--field", "--false-pixel-rate", "0.4")), ("even", ("--balance",))):
        assert run("calibrate", path, good, *RATE, "--setting", name, *levels, *more)[0] == 0, name
        assert {row["verdict"] for row in rows(run, path, fresh, "--setting", name)} <= {"PASS", "REJECT"}
    plain, fielded, even = (model_file.load(path).scoring_modes[name] for name in ("plain", "fielded", "even"))
    schedule = Schedule((Level(5e-4, 2), Level(0.01, 2, 3.0)), noise="signs")
    assert plain.schedule == fielded.schedule == schedule
    assert (plain.error_field, plain.map_threshold, plain.threshold.samples) == (None, None, 20)
    assert fielded.error_field.samples == 10
    assert fielded.map_threshold.false_pixel_rate == 0.4
    assert (even.error_field, even.threshold.samples) == (None, 10)
    assert [(level.t, level.draws) for level in even.schedule.levels] == [(5e-4, 2), (0.01, 2)]
    assert even.schedule.weights != pytest.approx(schedule.weights)


def test_other_levels_leave_a_named_setting_its_noise_field_and_balance(run, path, good):
    for name, levels in (("noiseless", (Level(0.1, 1),)), ("multi", (Level(5e-4, 1), Level(0.1, 1)))):
        given = [part for level in levels for part in ("--level", f"{level.t}:{level.draws}")]
        assert run("calibrate", path, good, *RATE, "--setting", name, *given)[0] == 0
        stored, named = model_file.load(path).scoring_modes[name], calibration.SETTINGS[name]
        assert [(level.t, level.draws) for level in stored.schedule.levels] == [(each.t, 1) for each in levels]
        assert stored.schedule.noise == named.schedule.noise
        assert (len(set(stored.schedule.weights)) > 1) == named.balanced


def test_window_and_tile_are_those_of_the_threshold_and_of_every_score(run, path, good, fresh):
    for name, levels in (("single", calibration.SETTINGS["single"].schedule.levels), ("mine", Schedule().levels)):
        plain = model_file.load(path)
        assert run("calibrate", path, good, *RATE, "--setting", name, "--window", "5", "--tile", "16")[0] == 0
        stored = model_file.load(path).scoring_modes[name]
        assert (stored.window, stored.tile, stored.schedule.levels) == (5, 16, levels)
        engine = Engine(dataclasses.replace(plain, scoring_mode=stored))
        scores = [result.pred_score for result in engine.predict(sorted(good.iterdir()))]
        assert stored.threshold.scores == pytest.approx(sorted(scores), rel=1e-6)
        if name == "single":
            assert stored.threshold.value != pytest.approx(plain.scoring_modes[name].threshold.value, rel=1e-3)
        calibrate_file(path, Request(good, 0.2, setting=name).as_stored(stored), Runtime())  # as a station does
        assert model_file.load(path).scoring_modes[name] == stored
        assert run("calibrate", path, good, *RATE, "--setting", name)[0] == 0  # which it has now
        assert model_file.load(path).scoring_modes[name] == stored
        got = rows(run, path, fresh, "--setting", name)
        expected = [result.pred_score for result in engine.predict(sorted(fresh.iterdir()))]
        assert [row["pred_score"] for row in got] == pytest.approx(expected, rel=1e-6)


def test_images_to_fit_on_may_be_given(run, model_path, good, fresh):
    assert run("calibrate", model_path, good, *RATE, "--setting", "field", "--fit", fresh)[0] == 0
    stored = model_file.load(model_path).scoring_modes["field"]
    assert (stored.error_field.samples, stored.threshold.samples) == (6, 20)


def test_a_threshold_of_a_setting_is_set_by_hand(run, path):
    before = model_file.load(path)
    code, out, _ = run("calibrate", path, "--threshold", "0.75", "--setting", "field", "--json")
    after = model_file.load(path)
    assert (code, json.loads(out)["threshold"]["value"]) == (0, 0.75)
    assert after.scoring_modes["field"].threshold.value == 0.75
    assert after.scoring_modes["field"].map_threshold == before.scoring_modes["field"].map_threshold
    assert after.scoring_mode == before.scoring_mode
    assert after.scoring_modes["single"].threshold == before.scoring_modes["single"].threshold


def test_a_map_threshold_of_the_published_setting_is_only_made_where_it_is_asked_for(run, model_path, good, fresh):
    assert run("calibrate", model_path, good, *RATE, "--false-pixel-rate", "0.3")[0] == 0
    stored = model_file.load(model_path)
    assert (stored.scoring_mode.map_threshold.false_pixel_rate, stored.scoring_mode.threshold.false_reject_rate) == (
        0.3,
        0.2,
    )
    result = Engine(stored).predict(sorted(fresh.iterdir())[0])
    assert result.map_threshold == stored.scoring_mode.map_threshold.value != result.threshold
    assert run("calibrate", model_path, good, *RATE)[0] == 0
    assert model_file.load(model_path).scoring_mode.map_threshold is None


def test_an_image_of_another_size_than_the_field_is_an_error_and_the_others_are_scored(run, made, fresh, tmp_path):
    PIL.Image.fromarray(frame(1, (40, 80, 3))).save(tmp_path / "wide.png")
    for name in ("field", "single"):
        got = rows(
            run,
            made,
            fresh / "0.png",
            tmp_path / "wide.png",
            fresh / "1.png",
            "--setting",
            name,
            code=int(name == "field"),
        )
        expected = rows(run, made, fresh / "0.png", fresh / "1.png", "--setting", name)
        wide = got.pop(1)
        assert [(row["pred_score"], row["verdict"]) for row in got] == [
            (row["pred_score"], row["verdict"]) for row in expected
        ]
        if name == "single":  # which has no field
            assert wide["verdict"] in ("PASS", "REJECT")
        else:
            assert (wide["verdict"], wide["pred_score"]) == ("ERROR", None)
            assert (
                "wide.png: 32x64 pixels (height x width) at the network's input, the error field was fitted at 32x32"
                in wide["reason"]
            )
    assert "wide.png: 32x64 pixels" in one_line(run, "parity", made, "--images", tmp_path, "--setting", "field")


def test_what_cannot_be_calibrated_is_one_sentence_and_leaves_the_file_as_it_was(
    run, made, model_path, good, fresh, tmp_path
):
    twin, bad, mixed = (tmp_path / name for name in ("twin", "bad", "mixed"))
    for folder in (twin, bad, mixed):
        shutil.copytree(fresh, folder)
    shutil.copy(good / "07.png", twin / "other-name.png")
    (bad / "9.png").write_bytes(b"not an image")
    PIL.Image.fromarray(frame(1, (40, 80, 3))).save(mixed / "wide.png")
    before = {file: file.read_bytes() for file in (made, model_path)}
    listing = sorted(model_path.parent.rglob("*"))
    field, quiet = ("--setting", "field"), ("--setting", "noiseless")
    auto = ("--setting", "auto")
    for model, arguments, match in (
        (made, (good, "--fit", fresh), "--fit, --level, --window and --tile are for a --setting other than the publ"),
        (made, (good, "--window", "8"), "--window and --tile are for a --setting other than the published one"),
        (made, (good, "--setting", "mine", "--window", "0"), "window: 0 is not allowed, expected an integer from 1 to"),
        (made, (good, "--setting", "single", "--tile", "64"), "tile: 64 needs a window too"),
        (made, ("--threshold", "1", "--window", "8", *field), "by hand goes without --fit, --level, --window"),
        (made, (good, *RATE, *auto, "--window", "8"), "--setting auto goes without --threshold, --level, --window and"),
        (
            made,
            (good, *RATE, "--setting", "fast"),
            "--setting fast: known are published, single, noiseless, multi, field; give --level, --window or --tile",
        ),
        (made, (good, *RATE, *field, "--fit", twin), "1 of the images to fit on are among the good images too"),
        (made, (good, *RATE, *field, "--fit", good), "20 of the images to fit on are among the good images too"),
        (made, (good, *RATE, *field, "--fit", bad), "9.png: cannot be scored"),
        (made, (bad, *RATE, *field, "--fit", good), "9.png: cannot be scored"),
        (made, (good, *RATE, *field, "--fit", mixed), "expected good images of one size at the network's input"),
        (made, (mixed, *RATE, *field, "--fit", good), f"wide.png: cannot be scored ({mixed}/wide.png: 32x64 pixels"),
        (made, (good, *RATE, *field, "--fit", tmp_path / "nowhere"), "nowhere"),
        (made, (good, *RATE, *field, "--field"), "--field and --balance are for a new --setting"),
        (made, (good, *RATE, *field, "--level", "0.1:1", "--balance"), "are for a new --setting, field has its own"),
        (made, (good, *RATE, *field, "--level", "0.1:1", "--noise", "signs"), "--noise signs: is for a new --setting"),
        (made, (good, *RATE, *quiet, "--level", "0.1:2"), "draws: 2 is not allowed, expected 1 without noise"),
        (made, (good, *LOW, *field), "needs scores of at least 999 good images, got 10, with which 0.091 is the low"),
        (made, (good, *LOW, "--setting", "single"), "needs scores of at least 999 good images, got 20, with which"),
        (made, (good, *RATE, "--false-pixel-rate", "0.001", *field), "needs 999 good images, got 10, with which"),
        (made, (good, *RATE, "--setting", "single", "--fit", fresh), "--fit: setting single has nothing to fit"),
        (made, (good, *RATE, "--setting", "cascade"), "setting 'cascade': this mode is gone; use 'single' or"),
        (made, (good, *RATE, "--setting", "cascade", "--level", "0.1:1"), "setting 'cascade': this mode is gone"),
        (made, ("--threshold", "1", "--setting", "cascade"), "setting 'cascade': this mode is gone"),
        (made, ("--threshold", "1", *auto), "--setting auto goes without --threshold, --level, --window and"),
        (made, (good, *LOW, *auto), "needs scores of at least 999 good images, got 10, with which 0.091 is the low"),
        (made, (good, "--threshold", "1", *field), "give either GOOD_DIR or --threshold"),
        (made, (good, *RATE, "--setting", "mine", "--level", "0.1:1", "--noise", "pink"), "'pink' is not allowed"),
        (made, (good, *RATE, "--setting", "mine", "--level", "0.1:2", "--noise", "antithetic"), "antithetic: is gone"),
    ):
        error = one_line(run, "calibrate", model, *arguments)
        assert match in error, error
    assert {file: file.read_bytes() for file in before} == before
    assert sorted(model_path.parent.rglob("*")) == listing
    assert [file.name for file in made.parent.iterdir()] == [made.name]


def test_nan_while_calibrating_stores_nothing(run, made, small_model, good, tmp_path):
    weights = {**small_model.weights, "outc.conv.weight": small_model.weights["outc.conv.weight"] * 1e30}
    broken = tmp_path / "broken.safetensors"
    model_file.save(broken, dataclasses.replace(model_file.load(made), weights=weights))
    before = broken.read_bytes()
    for name in ("published", *calibration.SETTINGS):
        assert "cannot be scored (the score is" in one_line(run, "calibrate", broken, good, *RATE, "--setting", name)
    assert broken.read_bytes() == before


def test_info_lists_settings_without_their_numbers(run, made):
    code, out, _ = run("info", made, "--json")
    document, model = json.loads(out), model_file.load(made)
    assert code == 0
    assert document["settings"] == json.loads(
        json.dumps({name: each.summary() for name, each in model.scoring_modes.items()})
    )
    assert document["settings"]["field"]["field"] == {"shape": [32, 32], "samples": 10}
    assert document["field"] is None
    assert len(out) < 8000
    table = run("info", made)[1]
    for line in ("settings.field.field.samples", "settings.single.threshold.value"):
        assert line in table


@pytest.mark.parametrize("given", [{"good": None}, {"by_hand": 1.0}])
def test_a_request_takes_images_or_a_threshold(good, given):
    with pytest.raises(InputError, match="give either GOOD_DIR or --threshold"):
        Request(**{"good": good} | given)
