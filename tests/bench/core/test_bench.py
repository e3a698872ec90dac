import copy
import dataclasses
import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

import sprfast.bench
from sprfast.backends import registry
from sprfast.bench.core import cases, peers, report, report_file, work
from sprfast.bench.page import render as page
from sprfast.errors import BackendError, InputError
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from sprfast.system import environment
from support.bench_reports import printed

CPU = torch.device("cpu")
BACKENDS = {"cpu": "cpu", "onnx_plan": "onnxruntime", "cpu_bf16": "cpu"}  # of the candidates that cannot run everywhere


@pytest.fixture
def model(two_levels):
    return two_levels


def _rendered(document, width=80):
    return printed(report.table(document), width)


def _wrong(change):
    """A candidate whose maps `change` has altered."""

    def build(model, noise, device):
        maps = peers.plain(model, noise, device)
        return lambda x: change(*maps(x))

    return peers.Candidate("wrong", "for the test", build)


@pytest.mark.parametrize("candidate", peers.candidates(CPU), ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("size", [(32, 32), (35, 50), (16, 520)])
def test_every_candidate_computes_the_definition(model, candidate, size):
    if reason := candidate.name in BACKENDS and registry.unavailable(BACKENDS[candidate.name]):
        pytest.skip(reason)
    noise = noise_bank(model.schedule, *size, model.noise_seed)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network = unet.from_weights(model.network, model.weights)
    with torch.no_grad():
        errors = scoring.error_map(network, x, model.schedule, noise)
        truth = {"error_map": errors, "anomaly_map": scoring.anomaly_map(errors)}
    try:
        maps = candidate.build(model, noise, CPU)
    except BackendError as error:
        assert candidate.precision == "bfloat16", "float32 runs on every processor"
        pytest.skip(str(error))
    check = work.parity(dict(zip(truth, maps(x), strict=True)), truth, candidate.tolerance)
    assert check["passed"]
    exact = candidate.precision == "float32"
    assert (max(check["error_map"].values()) < 1e-5) is exact


def test_building_the_peers_leaves_the_model_as_it_was(model):
    before = model.sha256
    for candidate in peers.CANDIDATES:
        candidate.build(model, noise_bank(model.schedule, 32, 32, 0), CPU)(torch.zeros(1, 3, 32, 32))
    assert model.sha256 == before


def test_report_has_figures_environment_and_parity_of_every_candidate(model, document):
    assert document["schema_version"] == 8
    assert document["truth"] == "the plain definition in float64 on the CPU"
    assert document["complete"] is True
    assert document["note"] == "MLPerf-style, not an MLPerf result"
    assert document["model"]["sha256"] == model.sha256
    assert document["environment"]["torch"] == torch.__version__
    assert (document["input"]["height"], document["input"]["samples"]) == (16, 3)
    assert "random" in document["input"]["images"]
    own = ["cpu_bf16", "torch_bf16"]
    assert list(document["candidates"]) == ["published", "channels_last", "eager", "cpu", "onnx_plan", *own]
    can_run = {
        name
        for name in document["candidates"]
        if name not in own and (name not in BACKENDS or registry.unavailable(BACKENDS[name]) is None)
    }
    for entry in (document["candidates"][name] for name in can_run):
        assert entry["status"] == "measured"
        assert all(check["passed"] for check in entry["parity"].values())
        assert all(entry[key] > 0 for key in ("build_s", "first_image_s", "first_batch_s"))
        assert entry["offline"]["images_per_s"] > 0
        assert entry["offline"]["samples_per_query"] == 3
        assert (
            0 < entry["single_stream"]["p50_ms"] <= entry["single_stream"]["p90_ms"] <= entry["single_stream"]["p99_ms"]
        )
    assert document["candidates"]["published"]["offline"]["ratio_to_published"] == {
        "median": 1.0,
        "min": 1.0,
        "max": 1.0,
    }


def test_report_survives_json_and_is_replaced_whole(document, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    report_file.write(document, path)
    assert json.loads(path.read_text()) == document
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written"):
        report_file.write(document, tmp_path / "absent" / "report.json")


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.5, "0.50"), (9.994, "9.99"), (9.996, "10.0"), (12.34, "12.3"), (99.9, "99.9")]
)
def test_ratios_have_one_width(ratio, text):
    assert report._times(ratio) == text


def test_table_fits_a_terminal_and_shows_every_figure(document):
    text = _rendered(document)
    assert "…" not in text
    for name, entry in document["candidates"].items():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{name} "))
        if entry["status"] == "unavailable":
            assert f"{name}: unavailable, " in text
            continue
        assert f"{entry['offline']['images_per_s']:.4g}" in line
        assert all(f"{entry['single_stream'][key]:.4g}" in line for key in ("p50_ms", "p90_ms", "p99_ms"))
    assert "not an MLPerf result" in text
    assert "INTERRUPTED" not in text


@pytest.mark.parametrize(
    "change",
    [
        lambda errors, anomalies: (errors * 1.001, anomalies),
        lambda errors, anomalies: (errors, anomalies * 1.001),
        lambda errors, anomalies: (errors, anomalies.roll(1, dims=3)),
        lambda errors, anomalies: (errors * math.nan, anomalies),
        lambda errors, anomalies: (errors[..., :-1], anomalies),
        lambda errors, anomalies: (errors.flip(0), anomalies.flip(0)),  # right for one image, wrong for a batch
    ],
)
def test_wrong_maps_get_no_speed(model, change):
    document = cases.run(model, cases.BenchOptions(batch=2, seconds=0.01, device="cpu"), candidates=[_wrong(change)])
    wrong = document["candidates"]["wrong"]
    assert wrong["status"] == "failed"
    assert wrong["offline"] is None
    assert wrong["single_stream"] is None
    assert document["complete"]
    json.dumps(document, allow_nan=False)
    line = next(line for line in _rendered(document).splitlines() if line.strip().startswith("wrong "))
    assert "struck out" in line


def test_without_the_baseline_there_is_speed_but_no_ratio(model):
    broken = dataclasses.replace(_wrong(lambda errors, anomalies: (-errors, anomalies)), name="published")
    document = cases.run(
        model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=[broken, peers.CANDIDATES[2]]
    )
    assert document["candidates"]["eager"]["offline"]["ratio_to_published"] is None
    assert document["candidates"]["eager"]["offline"]["images_per_s"] > 0
    _rendered(document)


def test_interrupt_while_measuring_leaves_a_partial_report(model, tmp_path):
    calls = []

    def interrupt(done, total, what):
        calls.append(what)
        if calls.count("SingleStream") == 3:  # once before the first round
            raise KeyboardInterrupt

    options = cases.BenchOptions(batch=2, seconds=30.0, device="cpu")
    document = cases.run(model, options, candidates=peers.CANDIDATES, on_progress=interrupt)
    assert document["complete"] is False
    for entry in document["candidates"].values():
        assert entry["single_stream"]["queries"] == 2
        assert entry["offline"] is None
    assert "INTERRUPTED" in _rendered(document)
    report_file.write(document, tmp_path / "report.json")


def test_interrupt_while_building_leaves_a_partial_report(model):
    def build(model, noise, device):
        raise KeyboardInterrupt

    candidates = [*peers.CANDIDATES[:1], peers.Candidate("slow", "for the test", build)]
    document = cases.run(model, cases.BenchOptions(batch=1, device="cpu"), candidates=candidates)
    assert document["complete"] is False
    assert [entry["status"] for entry in document["candidates"].values()] == ["not measured", "not measured"]
    assert document["candidates"]["published"]["parity"]["batch"]["passed"]
    assert "INTERRUPTED" in _rendered(document)


def test_progress_counts_up_to_the_time_of_all_scenarios(model):
    seen = []
    options = cases.BenchOptions(batch=1, seconds=0.3, device="cpu")
    cases.run(
        model,
        options,
        candidates=peers.CANDIDATES[1:],
        on_progress=lambda done, total, what: seen.append((done, total, what)),
    )
    assert {total for _, total, _ in seen} == {6}
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert all(0 <= done <= 6 for done, *_ in seen)
    assert [what for *_, what in seen][:2] == ["building channels_last", "building eager"]
    assert {"SingleStream", "MultiStream", "Offline", "Line and Server, eager"} <= {what for *_, what in seen}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, "size: 15"),
        ({"batch": 0}, "batch: 0"),
        ({"seconds": 0.0}, "seconds: 0"),
        ({"seconds": math.nan}, "seconds: nan"),
        ({"seconds": math.inf}, "seconds: inf"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_options_out_of_range_are_input_errors(model, options, message):
    with pytest.raises(InputError, match=message):
        cases.run(model, cases.BenchOptions(**{"device": "cpu"} | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_driver_is_a_backend_error(model):
    with pytest.raises(BackendError, match="cuda"):
        cases.run(model, cases.BenchOptions(device="cuda"))


def test_bench_leaves_torch_as_it_was(bench_run):
    _, before, after = bench_run
    assert before == after


def test_bench_cannot_be_imported_under_another_name(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(sprfast.bench.__file__).parents[1]))
    with pytest.raises(ImportError, match=r"sprfast\.bench"):
        importlib.import_module("bench")


def test_environment_is_json_and_names_the_device():
    described = environment.describe(CPU)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert list(described["devices"]) == ["cpu"]
    assert described["devices"]["cpu"]["name"]
    assert described["torch_threads"] == torch.get_num_threads()
    assert described["usable_cores"] >= 1
    assert described["sprfast"] == sprfast.__version__
    assert "cpu" in environment.describe()["devices"]


def test_environment_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.describe(CPU)["git_commit"] is None


def _rounded(ran="bfloat16", **given):
    """A candidate with the error of 16 bits whose library says that it `ran` in a precision."""

    def build(model, noise, device):
        maps = peers.plain(model, noise, device)
        return lambda x: tuple(each * 1.003 for each in maps(x))

    return peers.Candidate("rounded", "for the test", build, "bfloat16", ran=lambda: ran, **given)


def test_candidates_stand_together_by_the_precision_that_they_ran_in(model):
    given = [_rounded(), dataclasses.replace(_rounded("float32"), name="low"), peers.CANDIDATES[2]]
    document = cases.run(model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=given)
    entries = document["candidates"]
    assert [(name, each["precision"]) for name, each in entries.items()] == [
        *(("low", "float32"), ("eager", "float32"), ("rounded", "bfloat16")),
    ]
    assert {name: each["asked_precision"] for name, each in entries.items()} == {
        **dict.fromkeys(("low", "rounded"), "bfloat16"),
        "eager": "float32",
    }
    assert {each["status"] for each in entries.values()} == {"measured"}
    assert list(document["ceilings"]["matmul_gflop_per_s"]) == ["float32", "bfloat16"]
    said = "low: asked for bfloat16, runs in float32 on this machine"
    for text in (_rendered(document), re.sub("<[^>]*>", " ", page.render(document))):
        lines = [line.strip() for line in text.splitlines()]
        places = [
            next(i for i, line in enumerate(lines) if line.split("  ")[0].rstrip() == name)
            for name in ("in float32", "low", "eager", "in bfloat16", "rounded")
        ]
        assert places == sorted(places)
        assert said in " ".join(text.split())


def test_int8_has_figures_but_no_ceiling(model):
    given = [dataclasses.replace(_rounded("int8"), precision="int8")]
    document = cases.run(model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=given)
    entry = document["candidates"]["rounded"]
    assert (entry["status"], entry["tolerance"]) == ("measured", 0.2)
    assert (entry["hardware"]["percent_of_matmul"], document["ceilings"]["matmul_gflop_per_s"]) == (None, {})
    _rendered(document)
    page.render(document)


def test_a_candidate_may_have_a_tolerance_of_its_own(model):
    loose = dataclasses.replace(
        _wrong(lambda errors, anomalies: (errors * 1.001, anomalies * 1.001)), own_tolerance=3e-3
    )
    entry = cases.run(model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=[loose])["candidates"][
        "wrong"
    ]
    assert (entry["status"], entry["precision"], entry["tolerance"]) == ("measured", "float32", 3e-3)
    assert report.largest_error(entry["parity"]) == pytest.approx(1e-3, rel=0.01)


def test_a_required_candidate_that_cannot_run_ends_the_bench(model):
    def build(model, noise, device):
        raise BackendError("nosuch is not installed: run pip install nosuch")

    candidates = [peers.CANDIDATES[2], peers.Candidate("nosuch", "", build)]
    options = cases.BenchOptions(batch=1, seconds=0.01, device="cpu", required=["nosuch"])
    with pytest.raises(BackendError, match="run pip install nosuch"):
        cases.run(model, options, candidates=candidates)


def test_shares_above_100_percent_have_a_word(document):
    entry = copy.deepcopy(document["candidates"]["eager"])
    entry["hardware"]["percent_of_matmul"] = 100.5
    text = _rendered(document | {"candidates": {"eager": entry}})
    assert "% of matmul and copy: above 100 where" in " ".join(text.split())


def test_a_candidate_that_cannot_run_here_is_listed_with_the_reason(model):
    def build(model, noise, device):
        raise BackendError("nosuch is not installed")

    candidates = [peers.CANDIDATES[2], peers.Candidate("nosuch", "", build)]
    document = cases.run(model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=candidates)
    entry = document["candidates"]["nosuch"]
    assert (entry["status"], entry["reason"], entry["offline"]) == ("unavailable", "nosuch is not installed", None)
    assert document["candidates"]["eager"]["status"] == "measured"
    text = _rendered(document)
    assert "nosuch: unavailable, nosuch is not installed" in text
    assert report.failures(document) == []
