"""The command `evaluate`."""

import importlib
import json
import os

import PIL.Image
import pytest

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


@pytest.mark.parametrize("name", ["$", "[red]", "lot[", ":100:", "划痕", os.fsdecode(b"lot-\xff")])
def test_any_name_of_a_defect_or_category_ends_in_a_table_and_a_figure(run, data_set, model_path, tmp_path, name):
    for part in ("test", "ground_truth"):
        (data_set / "bolt" / part / "dent").rename(data_set / "bolt" / part / name)
    (data_set / "bolt").rename(data_set / name)
    code, out, _ = run("evaluate", model_path, data_set, "--category", name, "--figure", tmp_path / "figure.png")
    assert code == 0
    shown = name.replace("\udcff", r"\xff")
    assert f"{shown} against good" in out
    assert f"{shown}: 4 images" in out
    assert PIL.Image.open(tmp_path / "figure.png").width > 100
