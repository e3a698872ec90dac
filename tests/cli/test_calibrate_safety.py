"""Calibration that loses nothing: two at once, files that change, links, trained images."""

import dataclasses
import hashlib
import json

import PIL.Image
import pytest

from sprfast.backends import registry as backends
from sprfast.evaluation import calibration
from sprfast.formats import model as model_file
from sprfast.formats import trained_on
from support.line_cases import frame

RATE = ("--false-reject-rate", "0.2")


def test_a_second_calibration_of_one_file_is_refused_and_loses_nothing(run, model_path, good, monkeypatch):
    seen = []
    calibrate = calibration.calibrate

    def meanwhile(*given):
        if not seen:
            seen.append(run("calibrate", model_path, "--threshold", "7"))
        return calibrate(*given)

    monkeypatch.setattr(calibration, "calibrate", meanwhile)
    assert run("calibrate", model_path, good, *RATE)[0] == 0
    ((code, _, err),) = seen
    assert (code, err.count("\n")) == (2, 1)
    assert "another process is working on it" in err
    assert model_file.load(model_path).scoring_mode.threshold.value != 7
    assert run("calibrate", model_path, "--threshold", "7")[0] == 0


@pytest.mark.parametrize("exported", [False, True])
def test_a_file_that_was_changed_meanwhile_stays_as_it_is(
    exported, run, small_model, model_path, good, monkeypatch, tmp_path
):
    if exported:
        if backends.unavailable("cpu"):
            pytest.skip(backends.unavailable("cpu"))
        assert run("export", model_path, "--to", "plan", "-o", tmp_path / "model.plan")[0] == 0
        model_path = tmp_path / "model.plan"
    calibrate = calibration.calibrate

    def meanwhile(*given):
        model_file.save(model_path, dataclasses.replace(small_model, provenance={"by": "hand"}))
        return calibrate(*given)

    monkeypatch.setattr(calibration, "calibrate", meanwhile)
    code, _, err = run("calibrate", model_path, good, *RATE)
    assert code == 2
    assert "was changed while this ran" in err
    assert model_file.load(model_path).provenance == {"by": "hand"}


def test_a_linked_model_is_calibrated_behind_its_link(run, model_path, tmp_path):
    link = tmp_path / "release"
    link.symlink_to(model_path)
    model_path.chmod(0o600)
    assert run("calibrate", link, "--threshold", "7")[0] == 0
    assert link.is_symlink()
    assert model_file.load(model_path).scoring_mode.threshold.value == 7
    assert model_path.stat().st_mode & 0o777 == 0o600
    model_path.chmod(0o444)
    assert "read-only" in run("calibrate", link, "--threshold", "8")[2]


def test_images_that_were_trained_on_are_refused_or_said_to_be(run, small_model, model_path, good, tmp_path):
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in sorted(good.iterdir())[:3]]
    model_file.save(model_path, dataclasses.replace(small_model, provenance={"trained_on": trained_on.packed(digests)}))
    code, _, err = run("calibrate", model_path, good, *RATE)
    assert code == 2
    assert "3 of the 20 good images were trained on" in err
    code, _, err = run("calibrate", model_path, good, *RATE, "--force")
    assert code == 0
    assert "more good parts will be rejected than the rate says" in err
    shown = json.loads(run("info", model_path, "--json")[1])
    assert shown["provenance"] == {"trained_on": 3}
    held_back = tmp_path / "held-back"
    held_back.mkdir()
    for index in range(9):
        PIL.Image.fromarray(frame(400 + index)).save(held_back / f"{index}.png")
    code, _, err = run("calibrate", model_path, held_back, *RATE, "--setting", "field", "--fit", good)
    assert code == 2
    assert "3 of the 20 good images were trained on" in err
    if not backends.unavailable("cpu"):
        plan = tmp_path / "model.plan"
        assert json.loads(run("export", model_path, "--to", "plan", "-o", plan, "--json")[1])["trained_on"] == 3
        code, _, err = run("calibrate", plan, good, *RATE)
        assert code == 2
        assert "3 of the 20 good images were trained on" in err


@pytest.mark.parametrize("value", [5, "no base64!", "AAAA"])
def test_a_damaged_list_of_training_images_is_named(value, run, small_model, model_path, good):
    model_file.save(model_path, dataclasses.replace(small_model, provenance={"trained_on": value}))
    code, _, err = run("calibrate", model_path, good, *RATE)
    assert code == 2
    assert "trained_on: is damaged" in err
