"""The command `predict`: verdicts, overlays, odd names and poor machines."""

import errno
import importlib
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from sprfast.data import images
from sprfast.engine import predictor
from sprfast.engine.engine import Engine
from sprfast.engine.load import load
from sprfast.errors import InputError, OutOfMemoryError
from sprfast.formats import model as model_file
from sprfast.system import lines
from support.command_line import one_line, run_sprfast
from support.scoring_mode_cases import with_mode

predict_command = importlib.import_module("sprfast.cli.predict")  # whose function has its name


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


def test_a_heic_without_its_library_says_what_to_install(run, model_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    code, _, err = run("predict", model_path, tmp_path / "a.heic")
    assert (code, err.count("\n")) == (3, 1)
    assert "pip install 'sprfast[heic]'" in err


def test_what_is_not_for_a_cluster_is_refused(run, model_path, pictures, tmp_path):
    for name, given in (("report", [tmp_path / "a.html"]), ("recursive", [])):
        said = one_line(run, "predict", model_path, *pictures, "--ray", "local", f"--{name}", *given)
        assert f"--{name}: is for images that are scored here, without --ray" in said


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
    code, out, _ = run("predict", model_path, pictures[0], "-o", output, "--json")
    (row,) = json.loads(out)["results"]
    assert code == 0
    assert "leads out" in row["note"]
    assert "overlay" not in row
    assert not outside.exists()


@pytest.fixture
def one_by_one(monkeypatch):
    """Batches of one image, in the command and in the engine."""
    monkeypatch.setattr(predictor, "MAX_BATCH", 1)


def rows_of(output):
    return [json.loads(line) for line in (output / "results.jsonl").read_text("utf-8").splitlines()]


def stopping(monkeypatch, number, after):
    """Have this process get a signal while it scores the image `after`."""
    predict = Engine.predict

    def signalled(self, paths):
        if paths[0] == after:
            os.kill(os.getpid(), number)
        return predict(self, paths)

    monkeypatch.setattr(Engine, "predict", signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_keeps_what_was_answered_and_resume_goes_on(
    number, run, model_path, pictures, tmp_path, monkeypatch, one_by_one
):
    output = tmp_path / "out"
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stopping(patch, number, pictures[1])
        code, out, err = run("predict", model_path, *pictures, "-o", output, "--json")
    assert code == 128 + number
    assert json.loads(out)["results"] == rows_of(output)
    assert [row["path"] for row in rows_of(output)] == [str(path) for path in pictures[:2]]
    assert "--resume" in err
    kept = rows_of(output)
    code, out, _ = run("predict", model_path, *pictures, "-o", output, "--json", "--resume")
    document = json.loads(out)
    assert code == 0
    assert rows_of(output)[:2] == kept
    assert [row["path"] for row in document["results"]] == [str(path) for path in pictures]
    assert sum(document["counts"].values()) == len(pictures)
    assert len({row["overlay"] for row in document["results"]}) == len(pictures)
    assert signal.getsignal(number) == before


def test_an_ignored_hang_up_stays_ignored(run, model_path, pictures, tmp_path, monkeypatch, one_by_one):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stopping(monkeypatch, signal.SIGHUP, pictures[0])
        assert run("predict", model_path, *pictures, "-o", tmp_path / "out")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_resume_is_for_an_output_of_the_same_model(run, model_path, pictures, tmp_path):
    code, _, err = run("predict", model_path, pictures[0], "--resume")
    assert (code, "--output" in err) == (2, True)
    run("predict", model_path, pictures[0], "-o", tmp_path / "out", "--resume")
    run("calibrate", model_path, "--threshold", "2")
    code, _, err = run("predict", model_path, *pictures, "-o", tmp_path / "out", "--resume")
    assert code == 2
    assert "line 1 has threshold 0.023, this run 2.0" in err
    assert len(rows_of(tmp_path / "out")) == 1
    assert run("predict", model_path, *pictures, "-o", tmp_path / "out")[0] == 0  # begins anew
    assert len(rows_of(tmp_path / "out")) == len(pictures)


def test_a_full_disk_ends_it_in_one_sentence_with_the_rows_so_far(
    run, model_path, pictures, tmp_path, monkeypatch, one_by_one
):
    append = lines.Lines.append

    def full(self, line):
        if str(pictures[2]) in line:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, line)

    monkeypatch.setattr(lines.Lines, "append", full)
    code, _, err = run("predict", model_path, *pictures, "-o", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert "results.jsonl: cannot be written (No space left on device); the rows in it are kept" in err
    assert len(rows_of(tmp_path / "out")) == 2


@pytest.mark.parametrize("large", [{1}, {0, 1, 2, 3}])
def test_an_image_for_which_there_is_no_memory_is_an_error(large, run, model_path, pictures, monkeypatch):
    maps = Engine.maps
    refused = [load(model_path).prepare(pictures[index]).pixels for index in large]

    def failing(self, x):
        if any((pixels == each).all() for pixels in refused for each in x):
            raise OutOfMemoryError("no memory")
        return maps(self, x)

    expected = json.loads(run("predict", model_path, *pictures, "--json")[1])["results"]
    monkeypatch.setattr(Engine, "maps", failing)
    code, out, _ = run("predict", model_path, *pictures, "--json")
    rows = json.loads(out)["results"]
    assert code == 1
    for index, row in enumerate(rows):
        assert row["reason"] == "no memory" if index in large else row["pred_score"] == expected[index]["pred_score"]


@pytest.mark.parametrize(
    "error", [InputError("gone"), MemoryError(), OSError(errno.ENOENT, "No such file or directory")]
)
def test_an_overlay_that_fails_is_a_note_in_its_row(error, run, model_path, pictures, tmp_path, monkeypatch):
    read = images.read_rgb

    def failing(path, preprocessing):
        if path == pictures[0]:
            raise error
        return read(path, preprocessing)

    monkeypatch.setattr(images, "read_rgb", failing)
    code, _, _ = run("predict", model_path, *pictures[:2], "-o", tmp_path / "out")
    first, second = rows_of(tmp_path / "out")
    assert code == 0
    assert first["note"].startswith("no overlay: ")
    assert math.isfinite(first["pred_score"])
    assert (second["overlay"], "note" in second) == ("1.png", False)


def test_an_argument_that_cannot_be_used_among_others_is_an_error_row(run, model_path, pictures, tmp_path):
    empty = tmp_path / "dir.png"
    empty.mkdir()
    code, out, _ = run("predict", model_path, pictures[0], empty, pictures[1], "--json")
    rows = json.loads(out)["results"]
    assert code == 1
    assert [row["verdict"] == "ERROR" for row in rows] == [False, True, False]
    assert "holds no image" in rows[1]["reason"]
    assert run("predict", model_path, empty)[0] == 2


@pytest.mark.parametrize("spelling", ["{0}", "{0}/../{1}/.", "{0}/..", "link"])
def test_the_output_folder_is_and_holds_no_source(spelling, run, model_path, pictures, tmp_path):
    parts = tmp_path / "all" / "parts"
    parts.mkdir(parents=True)
    shutil.copy(pictures[0], parts / "0.png")
    (tmp_path / "link").symlink_to(parts)
    output = tmp_path / "link" if spelling == "link" else spelling.format(parts, parts.name)
    for source in (parts, parts / "0.png"):
        code, _, err = run("predict", model_path, source, "-o", output)
        assert code == 2
        assert "read here; name another output" in err
    assert os.listdir(parts) == ["0.png"]
    assert (parts / "0.png").read_bytes() == pictures[0].read_bytes()


def test_two_runs_do_not_write_one_output(run, model_path, pictures, tmp_path, monkeypatch):
    predict = Engine.predict
    seen = []

    def inner(self, paths):
        monkeypatch.setattr(Engine, "predict", predict)
        seen.append(run("predict", model_path, pictures[1], "-o", tmp_path / "out"))
        return predict(self, paths)

    monkeypatch.setattr(Engine, "predict", inner)
    assert run("predict", model_path, pictures[0], "-o", tmp_path / "out")[0] == 0
    ((code, _, err),) = seen
    assert code == 2
    assert "another process is working on it" in err
    assert [row["path"] for row in rows_of(tmp_path / "out")] == [str(pictures[0])]


def test_a_table_is_cut_and_says_so(run, model_path, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_command, "TABLE_ROWS", 2)
    _, out, _ = run("predict", model_path, *pictures, "-o", tmp_path / "out")
    assert "the first 2 images" in out
    assert ("1.png" in out, "2.png" in out) == (True, False)
    assert len(rows_of(tmp_path / "out")) == len(pictures)


def test_names_that_are_taken_are_numbered(tmp_path):
    names = {"a.png", "x-a.png", "x-a-3.png"}
    assert predict_command._overlay_name(names, tmp_path / "x" / "A.png") == "x-A-4.png"


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
