"""`sprfast bench` as its users meet it."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from sprfast.bench.core import drivers, peers, report, report_file
from sprfast.formats import model as model_file
from support import ROOT

FEW = ["--candidates", "channels_last,eager", "--batch", "2", "--size", "16", "--device", "cpu"]


@pytest.fixture
def run(run):
    """Run a bench command in this process: (exit code, stdout, stderr)."""
    return lambda *arguments: run("bench", *arguments)


@pytest.fixture
def written(document, tmp_path):
    """A report in a file."""
    path = tmp_path / "report.json"
    report_file.write(document, path)
    return path


def test_the_report_is_printed_and_written_with_its_page(run, model_path, tmp_path):
    output = tmp_path / "report.json"
    code, out, err = run(model_path, *FEW, "--seconds", "0.01", "-o", output, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(output.read_text())
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert f"report: {output} and {tmp_path / 'report.html'}" in err
    assert list(json.loads(out)["candidates"]) == ["channels_last", "eager"]


def test_without_a_choice_every_peer_is_listed_and_what_is_missing_says_what_to_install():
    from sprfast.bench.core import libraries

    chosen = [each.name for each in libraries.chosen(torch.device("cpu"))]
    assert chosen == [
        *(each.name for each in peers.candidates(torch.device("cpu"))),
        *(each.name for each in libraries.CANDIDATES),
    ]


def test_real_images_from_file_to_verdict(run, model_path, pictures):
    arguments = (model_path, *FEW, "--seconds", "0.01", "--timed", "file", "--images", pictures[0].parent, "--json")
    code, out, _ = run(*arguments)
    assert code == 0
    assert json.loads(out)["work"] == "file"
    assert json.loads(out)["input"]["images"].startswith("2 files")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--candidates", "eager,nosuch"], "'nosuch'"),
        (["--quick", "--seconds", "3"], "--quick"),
        (["--seconds", "0"], "seconds: 0"),
        (["--timed", "gpu"], "timed: 'gpu'"),
        (["--timed", "file"], "--images"),
        (["--recommend"], "--period"),
        (["--recommend", "--period", "10ms", "--margin", "1"], "margin: 1"),
        (["--recommend", "--period", "10ms", "--candidates", "published"], "--candidates"),
        (["--period", "soon"], "soon"),
        (["-o", "report.txt"], "report.txt"),
        (["-o", "nowhere/report.json"], "report.json"),
        (["--images", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(run, model_path, arguments, names):
    started = time.monotonic()
    code, out, err = run(model_path, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sprfast: ")
    assert names in err
    assert len(err.strip().splitlines()) == 1
    assert time.monotonic() - started < 30


def test_labelled_data_without_test_images_are_refused(run, model_path, pictures, tmp_path):
    good = tmp_path / "nut" / "train" / "good"
    good.mkdir(parents=True)
    shutil.copy(pictures[0], good)
    code, out, err = run(model_path, "--data", tmp_path, "--category", "nut")
    assert (code, out) == (2, "")
    assert "nut has no test images" in err


def test_show_prints_the_table_of_a_report_and_writes_its_page(run, written, tmp_path):
    code, out, _ = run("show", written)
    assert code == 0
    assert all(name in out for name in ("published", "channels_last", "eager", report_file.load(written)["note"]))
    assert run("show", written, "--page", tmp_path / "page.html")[0] == 0
    assert "eager" in (tmp_path / "page.html").read_text()
    assert json.loads(run("show", written, "--json")[1]) == report_file.load(written)


def test_the_published_table_is_what_the_command_prints(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("show", ROOT / "bench" / "results" / "xeon-2core-192.json")
    text = (ROOT / "docs" / "results" / "speed.md").read_text()
    table = next(block for block in text.split("```") if "candidate      images/s" in block)
    printed = [line.rstrip() for line in out.splitlines()]
    assert [line for line in table.splitlines() if line not in printed] == []


def test_show_refuses_a_damaged_report_in_one_line(run, written, tmp_path):
    document = json.loads(written.read_text())
    del document["environment"]["devices"]
    (tmp_path / "damaged.json").write_text(json.dumps(document))
    for path in (tmp_path / "damaged.json", tmp_path / "absent.json"):
        code, out, err = run("show", path)
        assert (code, out) == (2, "")
        assert path.name in err
        assert len(err.strip().splitlines()) == 1


def test_a_report_compared_with_itself_is_no_regression(run, written):
    code, out, _ = run("compare", written, written)
    assert code == 0
    assert "No regression" in out


def test_a_candidate_that_is_asked_for_and_not_installed_is_exit_3(run, model_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # so that it cannot be found
    few = ("--size", "16", "--device", "cpu", "--batch", "1", "--seconds", "0.01")
    code, out, err = run(model_path, "--candidates", "eager,onnxruntime", *few, "-o", tmp_path / "report.json")
    assert (code, out) == (3, "")
    assert "onnxruntime" in err
    assert "run pip install 'sprfast[" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "report.json").exists()


def test_a_candidate_with_wrong_maps_is_struck_out_and_the_exit_code_is_1(run, model_path, tmp_path, monkeypatch):
    """One bias of the network that it runs is not the model's."""
    right = peers.CANDIDATES[2]

    def build(model, noise, device):
        weights = {name: value.clone() for name, value in model.weights.items()}
        weights["outc.conv.bias"][0] += 0.1
        return right.build(model_file.dataclasses.replace(model, weights=weights), noise, device)

    wrong = peers.Candidate("wrong_bias", "for the test", build, ours=True)
    monkeypatch.setattr(peers, "CANDIDATES", (*peers.CANDIDATES, wrong))
    output = tmp_path / "report.json"
    two = ("--candidates", "channels_last,wrong_bias", "--size", "16", "--device", "cpu")
    code, out, _ = run(model_path, *two, "--batch", "2", "--seconds", "0.1", "-o", output)
    assert code == 1
    line = next(line for line in out.splitlines() if line.strip().startswith("wrong_bias"))
    assert "struck out" in line
    entry = json.loads(output.read_text())["candidates"]["wrong_bias"]
    assert entry["status"] == "failed"
    assert all(entry[key] is None for key in drivers.KEYS)
    assert report.failures(json.loads(output.read_text()))
    assert "<s>wrong_bias</s>" in (tmp_path / "report.html").read_text()


@pytest.mark.process
def test_ctrl_c_leaves_a_partial_report_marked_incomplete(model_path, tmp_path):
    output = tmp_path / "report.json"
    command = [sys.executable, "-m", "sprfast", "bench", str(model_path), *FEW, "--seconds", "60", "-o", str(output)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # a share done: the report is begun
        assert any("%" in line and not line.startswith("building: ") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "INTERRUPTED" in out
    document = json.loads(output.read_text())
    assert document["complete"] is False
    assert "Traceback" not in err
    assert (tmp_path / "report.html").exists()
