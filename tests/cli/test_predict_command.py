"""The command `predict`: verdicts, overlays, odd names and poor machines."""

import json
import os
from pathlib import Path

import pytest
import torch

from sprfast.formats import model as model_file
from support.command_line import run_sprfast
from support.scoring_mode_cases import with_mode


def test_one_bad_file_is_an_error_line_not_the_end(run, model_path, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(pictures[0].read_bytes()[:100])
    output = tmp_path / "out"
    code, out, _ = run("predict", model_path, pictures[0], bad, pictures[1], "-o", output, "--json")
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert code == 1
    assert json.loads(out)["results"] == rows
    assert [row["verdict"] == "ERROR" for row in rows] == [False, True, False]
    assert "bad.png" in rows[1]["reason"]
    assert {"path", "pred_score", "verdict", "threshold", "milliseconds"} <= set(rows[0])
    assert sorted(path.name for path in output.glob("*.png")) == ["0.png", "1.png"]


def test_verdicts_follow_the_threshold(run, model_path, pictures, tmp_path):
    scores = [row["pred_score"] for row in json.loads(run("predict", model_path, *pictures, "--json")[1])["results"]]
    middle = sorted(scores)[1]
    run("calibrate", model_path, "--threshold", middle)
    rows = json.loads(run("predict", model_path, *pictures, "--json")[1])["results"]
    assert [row["verdict"] for row in rows] == ["PASS" if score <= middle else "REJECT" for score in scores]


def test_a_model_without_threshold_never_passes(run, small_model, pictures, tmp_path):

    path = tmp_path / "uncalibrated.safetensors"
    model_file.save(path, with_mode(small_model, threshold=None))
    code, out, _ = run("predict", path, *pictures, "--json")
    document = json.loads(out)
    assert code == 1
    assert document["counts"] == {"PASS": 0, "REJECT": 0, "ERROR": len(pictures)}
    assert "calibrate" in document["results"][0]["reason"]


def test_a_missing_device_is_an_environment_error(run, model_path, pictures):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, _, err = run("predict", model_path, pictures[0], "--device", "cuda")
    assert code == 3
    assert "driver" in err


def test_an_unwritable_output_is_one_line(run, model_path, pictures, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, err = run("predict", model_path, pictures[0], "-o", blocked / "out")
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_an_overlay_never_leaves_the_output_folder(run, model_path, pictures, tmp_path):
    output, outside = tmp_path / "out", tmp_path / "outside.png"
    output.mkdir()
    (output / "0.png").symlink_to(outside)
    code, _, err = run("predict", model_path, pictures[0], "-o", output)
    assert code == 2
    assert "leads out" in err
    assert not outside.exists()


def test_images_of_one_name_get_overlays_of_their_own(run, model_path, pictures, tmp_path):
    twin = tmp_path / "other" / pictures[0].name
    twin.parent.mkdir()
    twin.write_bytes(pictures[1].read_bytes())
    _, out, _ = run("predict", model_path, pictures[0], twin, "-o", tmp_path / "out", "--json")
    names = [row["overlay"] for row in json.loads(out)["results"]]
    assert len(set(names)) == 2
    assert all((tmp_path / "out" / name).exists() for name in names)


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C"}, pytest.param({"LC_ALL": "de_DE.UTF-8"}, marks=pytest.mark.process)]
)
def test_odd_names_and_locales_work(environment, model_path, pictures, tmp_path):
    folder = tmp_path / "Teile für heute"
    folder.mkdir()
    names = [b"plain.png", "ü-Umlaut.png".encode(), "ü-composed.png".encode(), b"latin-\xfc.png", b"n" * 251 + b".png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(pictures[0].read_bytes())
    done = run_sprfast(["predict", model_path, folder, "-o", tmp_path / "out", "--json"], environment)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(rows) == len(names)
    assert len({row["pred_score"] for row in rows}) == 1
    assert all((tmp_path / "out" / row["overlay"]).exists() for row in rows)


def test_few_descriptors_no_home_and_no_writable_cache(model_path, pictures, tmp_path):
    environment = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"}
    done = run_sprfast(["predict", model_path, *pictures, "-o", tmp_path / "out"], environment, "ulimit -n 64; ")
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == len(pictures)
