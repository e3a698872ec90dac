import contextlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from sprfast.bench.gpu import carried, clocks, report, steps, truth
from sprfast.bench.gpu import check as gpu_check
from sprfast.errors import InputError
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch
from support import ROOT
from support.line_cases import eventually

dry = pytest.mark.skipif(not launch.INTERPRETED, reason="a dry run is for machines without a CUDA device")


def dry_run(folder, *options):
    """Summary, reports by name, and what a dry run printed."""
    command = [sys.executable, "-m", "sprfast.bench.gpu.check", str(folder), "--dry-run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = {}
    with tarfile.open(folder / carried.RESULTS) as packed:
        for name in packed.getnames():
            if name.endswith(".json"):
                reports[name.removesuffix(".json")] = json.load(packed.extractfile(name))
    summary = json.loads((folder / carried.SUMMARY).read_text())
    for document in (summary, *reports.values()):
        assert document["schema_version"] >= 1
    return summary, reports, done.stdout


def states(summary):
    return {step["step"]: step["status"] for step in summary["steps"]}


@dry
@pytest.mark.interpreter
def test_first_call(tmp_path):
    summary, reports, printed = dry_run(tmp_path / "out", "--call", "1", "--images", "1")
    assert states(summary) == dict.fromkeys((step.name for step in steps.CALLS[1]), "passed")
    assert "dry run" in printed
    (operators,) = reports["operators"]["batches"]
    others = {"affine_swish_head", "affine_swish_pool", "norm_swish"}  # which an image as small as that does not need
    assert {row["operator"] for row in operators["operators"]} == set(kernels.__all__) - others
    for row in operators["operators"]:
        assert row["status"] == "measured"
        assert row["warm_us"] > 0
        assert all(check["passed"] for check in row["parity"])
    (batch,) = reports["turns"]["batches"]
    assert batch["candidates"]["triton_bfloat16"]["status"] == "measured"
    for name, step in (("cuda_graph_bfloat16", "turns"), ("compile_library_bfloat16", "compile_library")):
        entry = reports[step]["batches"][0]["candidates"][name]
        assert entry["status"] == "unavailable"
        assert "CUDA" in entry["reason"]
    (timeline,) = reports["timeline"]["batches"]
    assert timeline["launches"] == len(timeline["kernels"]) > 10
    assert reports["threads"]["cases"][0]["passed"]
    assert (reports["convolutions"]["plans"], reports["convolutions_all_plans"]["plans"]) == (10, 0)
    rows = {row["candidate"] for row in summary["waterfall"] if row["step"] == "turns"}
    assert rows == {"published", "eager_bfloat16", "triton_bfloat16", "cuda_graph_bfloat16"}
    assert summary["waterfall"][0]["percent_of_floor"] is not None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {carried.SUMMARY, carried.RESULTS}


@dry
@pytest.mark.interpreter
def test_second_call_with_what_an_earlier_one_left(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    dry_run(first, "--steps", "truth", "--images", "1")
    assert (first / truth.FILE).exists()
    before = {"timeline": [{"images": 1, "us": 123.0}]}
    (first / carried.SUMMARY).write_text(json.dumps(before))
    summary, reports, _ = dry_run(second, "--call", "2", "--images", "1", "--from", str(first))
    assert states(summary) == dict.fromkeys((step.name for step in steps.CALLS[2]), "passed")
    assert summary["timeline"][0]["before_us"] == 123.0
    for step, draws in (("turns", 1), ("single", 1), ("compile", 1)):
        assert reports[step]["batches"][0]["truth"] == "carried"
        assert reports[step]["input"]["draws"] == draws
    assert {row["ways"]["ours"]["status"] for row in reports["passes"]["batches"][0]["passes"]} == {"measured"}
    names = [row["candidate"] for row in summary["efficientad"]]
    assert names == ["ours", "efficientad_s"]
    ways = [(row["way"], row["status"]) for row in summary["own_convolutions"]]
    assert ways == [("cudnn", "measured"), ("float16", "measured"), ("float8", "measured")] * 2
    assert (second / truth.FILE).read_bytes() == (first / truth.FILE).read_bytes()  # carried on


@dry
@pytest.mark.process
def test_third_call(tmp_path):
    summary, reports, _ = dry_run(tmp_path / "out", "--call", "3", "--images", "1")
    found = states(summary)
    assert (found["tests"], found["replays"]) == ("passed", "passed")
    assert {found["memcheck"], found["racecheck"]} <= {"skipped", "passed"}
    assert summary["steps"][0]["counts"]["tests"] > 0
    assert [(case["images"], case["different"]) for case in reports["replays"]["cases"]] == [(1, 0)]


def test_check_refuses_a_folder_with_old_results(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{}")
    assert gpu_check.main([str(tmp_path), "--dry-run"]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--steps", "turns,nonsense"], "--steps: 'nonsense' is not allowed, choose from turns,"),
        (["--turn", "0"], "--turn: 0 is not allowed"),
        (["--from", "."], "give the folder of an earlier call"),
    ],
)
def test_check_names_what_is_wrong_in_its_options(option, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main([str(tmp_path / "out"), "--dry-run", *option]) == 2
    assert message in capsys.readouterr().err


def test_images_that_are_no_numbers_end_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main([str(tmp_path / "out"), "--images", "1,x"])
    assert "argument --images: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_check_without_a_gpu_names_the_device(tmp_path, capsys):
    assert gpu_check.main([str(tmp_path / "out")]) == 3
    assert "cuda" in capsys.readouterr().err


def test_a_step_that_crashes_or_hangs_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    scripts = {
        "tests": "import sys; print('boom'); sys.exit(7)",
        "operators": f"import time; open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid())); "
        f"time.sleep(60)",
        "convolutions": "print('fine')",
        "turns": "import os; os.kill(os.getpid(), 9)",
    }
    monkeypatch.setattr(steps, "command", lambda job: [sys.executable, "-c", scripts[job.step]])
    monkeypatch.setattr(gpu_check, "MARGIN", 0.1)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    planned = [steps.Step(name, 2.0) for name in (*scripts, "memcheck")]
    assert gpu_check.check(tmp_path / "out", planned, 1, 60.0, None, True) == 1
    found = {step["step"]: step for step in json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]}
    assert found["tests"]["reason"] == "exit code 7: boom"
    assert found["memcheck"]["status"] == "skipped"
    assert "stopped after 2 s" in found["operators"]["reason"]
    assert found["convolutions"]["status"] == "passed"
    assert found["turns"]["reason"] == "exit code -9"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert "exit code 7" in capsys.readouterr().out


@dry
@pytest.mark.process
def test_sigterm_ends_the_step_that_runs_too(tmp_path):
    command = [sys.executable, "-m", "sprfast.bench.gpu.check", str(tmp_path / "out"), "--dry-run", "--steps", "truth"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert eventually(lambda: steps_of(process.pid))
        (step,) = steps_of(process.pid)
        process.terminate()
        assert process.wait(60) == 143
    assert not Path(f"/proc/{step}").exists()


def steps_of(pid):
    """Processes that one has started, each in a session of its own, as Linux lists them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, parent, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            if (parent, session) == (str(pid), stat.parent.name):
                found.append(int(session))
    return found


def test_what_a_step_has_written_is_kept_while_it_runs(tmp_path, monkeypatch):
    """A call that is killed from outside loses a few seconds."""
    out = tmp_path / "out"
    script = (
        "import json, pathlib, sys, time; work = pathlib.Path(sys.argv[1]); "
        "(work / 'turns.json').write_text(json.dumps({'batches': []})); "
        f"results = pathlib.Path({str(out / carried.RESULTS)!r}); "
        "end = time.monotonic() + 20\n"
        "while not results.exists() and time.monotonic() < end: time.sleep(0.05)\n"
        "sys.exit(0 if results.exists() else 1)"
    )
    monkeypatch.setattr(steps, "command", lambda job: [sys.executable, "-c", script, job.folder])
    monkeypatch.setattr(gpu_check, "SAVED_EVERY", 0.1)
    assert gpu_check.check(out, [steps.Step("turns", 30.0)], 1, 60.0, None, True) == 0


def test_steps_come_from_their_call_and_fit_into_ten_minutes():
    assert [step.images for step in steps.planned(1, ["compile"])] == [(32,)]
    assert [step.images for step in steps.planned(2, ["compile"])] == [(1,)]
    assert [step.name for step in steps.planned(3, ["operators", "tests"])] == ["operators", "tests"]
    assert [step.images for step in steps.planned(1, ["threads", "turns"], [4])] == [(), (4,)]
    with pytest.raises(InputError, match="nonsense"):
        steps.planned(1, ["nonsense"])
    for planned in steps.CALLS.values():
        *shares, rest = [step.seconds for step in planned]
        assert rest == steps.REST
        assert sum(shares) + gpu_check.RESERVED <= gpu_check.SECONDS - 30  # something is left for the last


def test_a_cache_comes_out_where_it_was_packed_without_what_people_read(tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "CACHE", tmp_path / "cache")
    kernel = tmp_path / "cache" / "triton" / "abc"
    kernel.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx", "k.ttir"):
        (kernel / name).write_text(name)
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    carried.leave_cache(out)
    for path in kernel.iterdir():
        path.unlink()
    assert carried.take(out, work) is None
    assert sorted(path.name for path in kernel.iterdir()) == ["k.cubin", "k.json"]
    (out / carried.ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be unpacked"):
        carried.take(out, work)


def test_truth_is_of_these_images_and_this_model_alone(tmp_path, monkeypatch):
    model = steps.model(steps.DRY)
    path = tmp_path / truth.FILE
    truth.compute((model,), (1, 2), 16, 16, path)
    stored = truth.Truths.load(path)
    noise = truth.noise_bank(model.schedule, 16, 16, model.noise_seed)
    (errors, maps), origin = stored.of(model, truth.pictures(2, 16, 16), noise)
    assert origin == "carried"
    assert (errors.shape, maps.shape, maps.dtype) == ((2, 1, 16, 16), (2, 1, 256, 256), torch.float64)
    assert stored.of(steps.single(model), truth.pictures(2, 16, 16), noise)[1] == "computed here"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="--steps truth"):
        truth.Truths.load(path)


def test_clocks_are_those_under_load(tmp_path):
    path = tmp_path / "clocks.csv"
    assert clocks.under_load(path) is None
    lines = ["0, 345, 2619, 70.1, 30", "99, 1755, 2619, 640.5, 55", "87, 1980, 2619, 600, 50", "98, [N/A], 2619, 1, 1"]
    path.write_text("\n".join([*lines, "97, 19"]))
    load = clocks.under_load(path)
    assert load["samples"] == 2
    assert load["sm_mhz"] == {"median": 1867.5, "min": 1755.0, "max": 1980.0}


def test_summary_of_a_folder_without_reports(tmp_path):
    document = report.summary(tmp_path)
    assert document["waterfall"] == []
    assert document["operators"] is None
