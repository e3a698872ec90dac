"""The command `evaluate`."""

import importlib
import json
import os

evaluate_command = importlib.import_module("sprfast.cli.evaluate")  # whose function has its name


def test_metrics_without_anomalies_are_null_with_a_reason(run, data_set, model_path):
    for folder in ("test/dent", "ground_truth/dent"):
        for path in (data_set / "bolt" / folder).iterdir():
            path.unlink()
        (data_set / "bolt" / folder).rmdir()
    code, out, _ = run("evaluate", model_path, data_set, "--category", "bolt", "--json")
    row = json.loads(out)["categories"][0]
    assert code == 0
    assert row["image_AUROC"] is None
    assert "anomal" in row["undefined"]["image_AUROC"]


def test_a_figure_that_cannot_be_is_refused_before_the_scoring(run, data_set, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_command, "evaluated", None)
    os.mkfifo(tmp_path / "pipe")
    image = data_set / "bolt" / "test" / "dent" / "000.png"
    arguments = ["evaluate", model_path, data_set, "--category", "bolt", "--figure"]
    for figure in (tmp_path / "missing" / "f.png", tmp_path / "pipe", tmp_path, image, model_path):
        code, _, err = run(*arguments, figure)
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot be written" in err or "read here" in err
