"""The command `train`, and the signals that stop it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from sprfast.formats import model as model_file
from support import ROOT
from support.command_line import TRAIN, next_command


def test_train_evaluate_and_predict_end_to_end(run, data_set, tmp_path):
    model = tmp_path / "bolt.safetensors"
    code, out, _ = run("train", data_set, "--category", "bolt", "-o", model, *TRAIN, "--json")
    assert code == 0
    assert json.loads(out)["provenance"]["steps"] == 2
    figure = tmp_path / "figure.png"
    code, out, err = run("evaluate", model, data_set, "--category", "bolt", "--figure", figure, "--json")
    row = json.loads(out)["categories"][0]
    assert code == 0
    assert 0 <= row["image_AUROC"] <= 1
    assert set(row["kinds"]) == {"dent"}
    assert PIL.Image.open(figure).width > 100
    assert str(figure) in err


def test_category_all_trains_and_evaluates_each_and_gives_the_mean(run, data_set, tmp_path):
    code, out, _ = run("train", data_set, "--category", "all", "-o", tmp_path / "models", *TRAIN, "--json")
    document = json.loads(out)
    assert code == 0
    assert [row["category"] for row in document["categories"]] == ["bolt", "nut"]
    assert document["mean"]["image_AUROC"] == pytest.approx(
        np.mean([row["image_AUROC"] for row in document["categories"]])
    )
    code, again, _ = run("evaluate", tmp_path / "models", data_set, "--category", "all", "--json")
    assert json.loads(again)["mean"] == document["mean"]
    _, table, err = run("evaluate", tmp_path / "models", data_set, "--category", "all")
    assert "mean" in table
    first = str(tmp_path / "models" / "bolt.safetensors")
    assert next_command(err) == ["predict", first, "NEW_IMAGES", "-o", "results"]


def test_a_stop_in_this_process_leaves_a_checkpoint_to_resume_from(run, data_set, tmp_path, monkeypatch):
    """The smoke case of the test below: one signal, at a step that is known."""
    from sprfast.training import train as training

    arguments = ["train", data_set, "--category", "bolt", *TRAIN]
    stopped, whole = tmp_path / "stopped.safetensors", tmp_path / "whole.safetensors"
    train = training.train

    def interrupted(*positional, on_step, **keywords):
        return train(*positional, **keywords, on_step=lambda _: os.kill(os.getpid(), signal.SIGTERM))

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        code, out, err = run(*arguments, "-o", stopped)
    assert (code, out) == (143, "")
    assert "stopped by SIGTERM after step 1" in err
    assert "--resume" in err
    assert "unfinished" in run(*arguments, "-o", stopped)[2]
    assert run(*arguments, "-o", stopped, "--resume")[0] == run(*arguments, "-o", whole)[0] == 0
    assert model_file.load(stopped).sha256 == model_file.load(whole).sha256


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_goes_on_to_the_same_weights(number, code, data_set, tmp_path):
    arguments = [sys.executable, "-m", "sprfast", "train", data_set, "--category", "bolt", *TRAIN, "--steps", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def train(output, *more):
        return subprocess.run(
            [*arguments, "-o", output, *more], env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    stopped, whole = tmp_path / "stopped.safetensors", tmp_path / "whole.safetensors"
    process = subprocess.Popen([*arguments, "-o", stopped], env=environment, stderr=subprocess.PIPE, text=True)
    while not stopped.with_name("stopped.safetensors.checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "--resume" in err
    again = train(stopped)
    assert again.returncode == 2
    assert "unfinished" in again.stderr
    assert train(stopped, "--resume").returncode == 0
    assert train(whole).returncode == 0
    assert model_file.load(stopped).sha256 == model_file.load(whole).sha256


def test_category_all_resumes_with_finished_models_as_they_are(run, data_set, tmp_path):
    """The smoke case of the test below, in one process."""
    arguments = ["train", data_set, "--category", "all", "-o", tmp_path, *TRAIN, "--hold-back", "0.25", "--json"]
    code, out, _ = run(*arguments)
    before = (tmp_path / "bolt.safetensors").stat().st_mtime_ns
    (tmp_path / "nut.safetensors").unlink()
    again, resumed, _ = run(*arguments, "--resume")
    assert (code, again) == (0, 0)
    assert json.loads(resumed) == json.loads(out)
    err = run(*arguments[:-1], "--resume")[2]
    assert next_command(err) == ["calibrate", str(tmp_path / "bolt.safetensors"), "--held-back"]
    assert (tmp_path / "bolt.safetensors").stat().st_mtime_ns == before


@pytest.mark.process
def test_torchrun_trains_every_category(data_set, tmp_path):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sprfast"]
    arguments = ["train", data_set, "--category", "all", "-o", tmp_path / "models", *TRAIN, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for more in ([], ["--resume"]):  # the second run finds every model finished
        whole = [sys.executable, "-m", *command, *arguments, *more]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert [row["category"] for row in json.loads(done.stdout)["categories"]] == ["bolt", "nut"]


def test_a_model_is_replaced_with_force_only_and_before_any_category_is_trained(run, data_set, tmp_path):
    (tmp_path / "nut.safetensors").write_bytes(b"mine")
    code, _, err = run("train", data_set, "--category", "all", "-o", tmp_path, *TRAIN)
    assert code == 2
    assert "nut.safetensors: exists already; give --force" in err
    assert not (tmp_path / "bolt.safetensors").exists()
    arguments = ["train", data_set, "--category", "nut", "-o", tmp_path / "nut.safetensors", *TRAIN]
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--force")[0] == 0
    assert run("calibrate", tmp_path / "nut.safetensors", "--threshold", "1")[0] == 0
    assert run(*arguments)[0] == 2
    assert model_file.load(tmp_path / "nut.safetensors").scoring_mode.threshold.value == 1


def test_an_output_that_cannot_be_is_one_sentence(run, data_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in (".", "..", "/", "missing/m.safetensors"):
        code, _, err = run("train", data_set, "--category", "bolt", "-o", output, *TRAIN)
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot be written" in err
    code, _, _ = run("train", data_set / "bolt", "--category", "all", "-o", "models", *TRAIN)
    assert code == 2
    (data_set / "nut" / "ground_truth" / "dent" / "000_mask.png").unlink()
    assert run("train", data_set, "--category", "all", "-o", "models", *TRAIN)[0] == 2
    assert not (tmp_path / "models").exists()


def test_precision_is_in_the_model_file_and_one_that_is_not_known_is_a_sentence(run, data_set, tmp_path):
    arguments = ["train", data_set, "--category", "bolt", "-o", tmp_path / "bolt.safetensors", *TRAIN]
    code, _, err = run(*arguments, "--precision", "float16")
    assert code == 2
    assert err.splitlines() == ["sprfast: precision: 'float16' is not allowed, expected one of float32, bfloat16"]
    code, out, _ = run(*arguments, "--precision", "bfloat16", "--json")
    assert code == 0
    assert json.loads(out)["provenance"]["training"]["precision"] == "bfloat16"


def test_two_limits_are_named(run, data_set):
    code, _, err = run("train", data_set, "--category", "bolt", "--epochs", "1", "--time-limit", "3s")
    assert code == 2
    assert "--epochs and --time-limit: give one of them only" in err


def test_a_signal_in_the_demo_advises_no_option_that_it_lacks(run, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    from sprfast.training import train as training

    train = training.train

    def interrupted(*positional, on_step, **keywords):
        return train(*positional, **keywords, on_step=lambda _: os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(training, "train", interrupted)
    code, _, err = run("demo", "-o", tmp_path / "demo")
    assert code == 143
    assert "the demo starts afresh next time" in err
    assert "--resume" not in err


def test_a_folder_for_models_goes_again_where_no_training_began(run, data_set, tmp_path):
    (data_set / "bolt/train/good/000.png").write_bytes(b"no picture")
    code, _, err = run("train", data_set, "--category", "all", "-o", tmp_path / "new" / "models", *TRAIN)
    assert code == 2
    assert "000.png" in err
    assert not (tmp_path / "new").exists()
