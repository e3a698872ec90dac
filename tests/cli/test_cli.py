"""The command line as its users meet it: exit codes, one-line errors, JSON, files written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from rich.table import Column, Table

from sprfast.backends import registry as backends
from sprfast.cli import console
from sprfast.errors import InputError
from sprfast.formats import model as model_file
from support import ROOT
from support.scoring_mode_cases import with_mode

TRAIN = ["--size", "16", "--width", "32", "--steps", "2", "--batch-size", "2", "--workers", "0"]


@pytest.fixture
def data_set(tmp_path):
    """Two categories in the MVTec AD layout, 16x16 images."""
    random = np.random.default_rng(0)
    root = tmp_path / "data"

    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(value).save(path)

    for category in ("bolt", "nut"):
        for split, count in (("train/good", 4), ("test/good", 2), ("test/dent", 2)):
            for number in range(count):
                write(
                    root / category / split / f"{number:03}.png", random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                )
        for number in range(2):
            mask = np.zeros((16, 16), dtype=np.uint8)
            mask[4:8, 4:8] = 255
            write(root / category / "ground_truth" / "dent" / f"{number:03}_mask.png", mask)
    return root


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
    _, table, _ = run("evaluate", tmp_path / "models", data_set, "--category", "all")
    assert "mean" in table


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


def test_import_accepts_a_module_prefix_and_refuses_other_pickles(run, small_model, tmp_path):
    checkpoint, output = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({f"module.{name}": value for name, value in small_model.weights.items()}, checkpoint)
    assert run("import", checkpoint, "-o", output)[0] == 0
    assert model_file.load(output).sha256 == small_model.sha256
    checkpoint.write_bytes(b"not a checkpoint")
    code, _, err = run("import", checkpoint, "-o", output)
    assert code == 2
    assert "a.pth" in err
    assert model_file.load(output).sha256 == small_model.sha256


def test_parity_exits_1_beyond_tolerance(run, model_path, pictures, golden_folder, tmp_path):
    code, out, _ = run("parity", model_path, "--images", pictures[0].parent, "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True
    damaged = tmp_path / "golden"
    damaged.mkdir()
    document = json.loads((golden_folder / "golden.json").read_text())
    document["cases"] = {"tiny_32": document["cases"]["tiny_32"]}
    arrays = dict(np.load(golden_folder / "tiny_32.npz"))
    arrays["error_map"] = arrays["error_map"] * 1.0001
    np.savez(damaged / "tiny_32.npz", **arrays)
    import hashlib

    document["cases"]["tiny_32"]["sha256"] = hashlib.sha256((damaged / "tiny_32.npz").read_bytes()).hexdigest()
    (damaged / "golden.json").write_text(json.dumps(document))
    code, out, _ = run("parity", "--golden", damaged)
    assert code == 1
    assert "FAILED" in out


def test_bench_writes_the_report_it_prints(run, model_path, tmp_path):
    report = tmp_path / "report.json"
    code, out, _ = run("bench", model_path, "--batch", "2", "--seconds", "1", "-o", report, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(report.read_text())


def test_info_and_doctor_print_json(run, model_path, small_model):
    assert json.loads(run("info", model_path, "--json")[1])["sha256"] == small_model.sha256
    reasons = {name: backends.unavailable(name) or "can run" for name in backends.NAMES}
    assert json.loads(run("doctor", "--json")[1])["backends"] == reasons
    assert "can run" in run("doctor")[1]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["evaluate", "nowhere.safetensors", "data"], "nowhere.safetensors"),
        (["train", "nowhere"], "nowhere"),
        (["train", "nowhere", "--time-limit", "soon"], "soon"),
        (["train", "nowhere", "--steps", "3", "--epochs", "3"], "steps"),
        (["train", "nowhere", "--width", "48"], "base_width"),
        (["train", "nowhere", "--size-policy", "crop"], "size_policy"),
        (["train", "nowhere", "--level", "2:3"], "t"),
        (["train", "nowhere", "--level", "0.1"], "--level"),
        (["parity", "--golden", "nowhere"], "nowhere"),
        (["parity"], "--golden"),
        (["calibrate", "model.safetensors"], "GOOD_DIR"),
    ],
)
def test_bad_input_is_one_line_that_names_it(run, arguments, names):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("sprfast: ")
    assert names in err
    assert len(err.strip().splitlines()) == 1


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


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"LC_ALL": "de_DE.UTF-8"}])
def test_odd_names_and_locales_work(environment, model_path, pictures, tmp_path):
    folder = tmp_path / "Teile für heute"
    folder.mkdir()
    names = [b"plain.png", "ü-Umlaut.png".encode(), "ü-composed.png".encode(), b"latin-\xfc.png", b"n" * 251 + b".png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(pictures[0].read_bytes())
    done = _subprocess(["predict", model_path, folder, "-o", tmp_path / "out", "--json"], environment)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(rows) == len(names)
    assert len({row["pred_score"] for row in rows}) == 1
    assert all((tmp_path / "out" / row["overlay"]).exists() for row in rows)


def test_few_descriptors_no_home_and_no_writable_cache(model_path, pictures, tmp_path):
    environment = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"}
    done = _subprocess(["predict", model_path, *pictures, "-o", tmp_path / "out"], environment, "ulimit -n 64; ")
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == len(pictures)


def test_a_bare_checkout_runs_uninstalled(tmp_path):
    done = _subprocess(["--version"], {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert done.stdout.strip().count(".") == 2


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


def test_torchrun_trains_every_category(data_set, tmp_path):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sprfast"]
    arguments = ["train", data_set, "--category", "all", "-o", tmp_path / "models", *TRAIN, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for more in ([], ["--resume"]):  # the second run finds every model finished
        whole = [sys.executable, "-m", *command, *arguments, *more]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert [row["category"] for row in json.loads(done.stdout)["categories"]] == ["bolt", "nut"]


DURATIONS = [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("500ms", 0.5), ("1.5h", 5400), (" 2D ", 172800)]


@pytest.mark.parametrize(("text", "expected"), DURATIONS)
def test_durations(text, expected):
    assert console.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "20", "m", "5x", "-3s", "0s", "1.2.3s", "1m x"])
def test_bad_durations(text):
    with pytest.raises(InputError, match="duration"):
        console.seconds(text)


def _subprocess(arguments, environment, prefix=""):
    command = [sys.executable, "-m", "sprfast", *map(str, arguments)]
    whole = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    shell = ["bash", "-c", prefix + 'exec "$@"', "bash", *command]
    return subprocess.run(shell, env=whole, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def compile_kernels(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sprfast", "kernels", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_kernels_are_compiled_without_a_gpu_and_reported():
    done = compile_kernels("--arch", "sm_90", "--precision", "bfloat16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert {"perturb_conv3x3", "affine_swish_up2", "matmul"} <= {each["kernel"] for each in report["compiled"]}
    assert all(each["capability"] == 90 and each["registers"] > 0 for each in report["compiled"])
    table = compile_kernels("--arch", "sm_90", "--precision", "bfloat16").stdout
    assert "affine_swish_head" in table
    assert "no problems" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [("--arch", "sm_75"), ("--precision", "fp8"), ("--size", "8")])
def test_kernels_refuse_what_they_do_not_know(arguments):
    done = compile_kernels(*arguments)
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_kernels_are_not_compiled_in_the_interpreter(run, monkeypatch):
    if backends.unavailable("triton") or torch.cuda.is_available():
        pytest.skip("no interpreter here")
    code, out, err = run("kernels")
    assert (code, out) == (3, "")
    assert "TRITON_INTERPRET is set" in err


def test_precision_and_backend_reach_the_engine(run, model_path, pictures):
    assert "bfloat16" in run("predict", model_path, *pictures, "--precision", "bfloat16")[2]  # eager refuses
    assert run("predict", model_path, *pictures, "--precision", "fp8")[0] == 2
    assert (
        run("parity", model_path, "--images", pictures[0].parent, "--backend", "eager", "--precision", "float16")[0]
        == 3
    )
    code, _, err = run("parity", "--golden", ROOT / "tests" / "data" / "golden", "--precision", "bfloat16")
    assert code == 2
    assert "golden outputs are float32" in err


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("name", Column("value", no_wrap=True))
    table.add_row("long", "x" * 150)
    console.emit({}, False, lambda: table)
    assert "x" * 150 in capsys.readouterr().out
