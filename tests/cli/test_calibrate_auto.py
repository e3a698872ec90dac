"""`calibrate --setting auto`: on which images it chooses, and what it stores and says."""

import dataclasses
import json

import pytest

from sprfast.engine.engine import Engine
from sprfast.evaluation import calibration, choice
from sprfast.formats import model as model_file

RATE = ("--false-reject-rate", "0.2")


@pytest.mark.parametrize("given", ["bad", "painted"])
def test_auto_chooses_on_one_half_and_promises_on_the_other(run, model_path, good, fresh, monkeypatch, given):
    monkeypatch.setattr(calibration, "SETTINGS", {"multi": calibration.SETTINGS["multi"]})
    seen, fitted = [], choice.try_all

    def watched(published, predictor_of, paths, bad, on_setting):
        seen.append((list(paths), list(bad)))
        found = fitted(published, predictor_of, paths, bad, on_setting)
        return [dataclasses.replace(each, auroc=each.auroc + 2 * (each.setting == "multi")) for each in found]

    monkeypatch.setattr(choice, "try_all", watched)
    bad = ("--bad", fresh) if given == "bad" else ()
    code, out, err = run("calibrate", model_path, good, *RATE, "--setting", "auto", *bad, "--json")
    assert code == 0, err
    files, summary = sorted(good.iterdir()), json.loads(out)
    assert seen == [(files[::2], sorted(fresh.iterdir()) if bad else [])]
    stored = model_file.load(model_path).scoring_modes["multi"]
    assert (summary["setting"], summary["threshold"]["samples"], stored.threshold.samples) == ("multi", 10, 10)
    chosen = {each["setting"]: each for each in summary["choice"]["settings"]}
    assert list(chosen) == ["published", "multi"]
    assert max(chosen.values(), key=lambda each: each["image_AUROC"])["setting"] == "multi"
    assert summary["choice"]["by"] == ("6 bad images" if bad else "40 good images with painted defects")
    engine = Engine(model_file.load(model_path).using("multi"))
    scores = sorted(result.pred_score for result in engine.predict(files[1::2]))
    assert stored.threshold.scores == pytest.approx(scores, rel=1e-6)


def test_auto_may_choose_the_published_setting_and_says_why(run, model_path, good, fresh, monkeypatch):
    tried = [choice.Tried("single", 1, 0.5), choice.Tried("published", 3, 0.75)]
    monkeypatch.setattr(choice, "try_all", lambda *given: tried)
    code, out, err = run("calibrate", model_path, good, *RATE, "--setting", "auto", "--fit", fresh)
    assert code == 0, err
    model = model_file.load(model_path)
    assert (model.scoring_modes, model.scoring_mode.threshold.samples) == ({}, 20)
    said = " ".join(out.split())  # a long path narrows the column
    assert "24 good images with painted defects against 6 good ones" in said
    assert "75.0 % (passes: 3)" in said
    assert "--setting" not in err
