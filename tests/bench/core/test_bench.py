import dataclasses
import importlib
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import sprfast.bench
from sprfast.backends import registry as backends
from sprfast.bench.core import cases, libraries, peers, report, report_file, scenarios, timing, work
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode
from sprfast.system import environment

CPU = torch.device("cpu")
BACKENDS = {"cpu": "cpu", "onnx_plan": "onnxruntime"}  # of the candidates that cannot run everywhere


@pytest.fixture(scope="module")
def model():
    config = NetworkConfig(32, 8)
    torch.manual_seed(0)
    schedule = Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0)))
    return Model(
        config, ScoringMode(schedule), Preprocessing(size=32), unet.ScoreUNet(config).state_dict(), noise_seed=5
    )


@pytest.fixture(scope="module")
def document(model):
    return cases.run(model, cases.Options(batch=3, seconds=0.05, device="cpu"))


def _rendered(document, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(document))
    return console.export_text()


def _wrong(change):
    """A candidate whose maps `change` has altered."""

    def build(model, noise, device):
        maps = peers.plain(model, noise, device, torch.contiguous_format)
        return lambda x: change(*maps(x))

    return peers.Candidate("wrong", "for the test", build)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 100, 101, 1000])
@pytest.mark.parametrize("q", [50, 90, 99])
def test_percentile_is_the_smallest_sample_that_q_percent_do_not_exceed(n, q):
    samples = np.random.default_rng(n).permutation(n) + 1.0
    expected = next(value for value in sorted(samples) if 100 * np.sum(samples <= value) >= q * n)
    assert timing.percentile(samples, q) == expected == -(q * n // -100)


def test_candidates_take_turns_and_answer_the_same_query():
    seen = []
    calls = {name: lambda index, name=name: seen.append((name, index)) for name in "ABC"}
    measured = list(timing.rounds(calls, CPU, budget=1e-9, minimum=3))
    assert seen == [(name, index) for index in range(3) for name in "ABC"]
    assert [list(times) for times in measured] == [["A", "B", "C"]] * 3


def test_a_turn_is_several_calls_after_one_that_is_not_timed():
    seen = []
    calls = {name: lambda index, name=name: seen.append((name, index)) for name in "AB"}
    settle = {name: lambda name=name: seen.append(name) for name in "AB"}
    measured = list(timing.rounds(calls, CPU, budget=1e-9, minimum=3, turn=2, settle=settle))
    assert seen == ["A", ("A", 0), ("A", 1), "B", ("B", 0), ("B", 1), "A", ("A", 2), ("A", 3), "B", ("B", 2), ("B", 3)]
    assert [list(times) for times in measured] == [["A", "B"]] * 4


def test_the_untimed_call_takes_what_the_candidate_before_leaves_behind():
    spinning = []

    def answer(index):
        time.sleep(0.03 if spinning else 0.001)
        spinning.clear()

    calls = {"spinner": spinning.append, "victim": answer}
    settled = list(
        timing.rounds(calls, CPU, budget=1e-9, minimum=4, settle={"spinner": list, "victim": lambda: answer(0)})
    )
    assert max(times["victim"] for times in settled) < 0.02
    assert min(times["victim"] for times in timing.rounds(calls, CPU, budget=1e-9, minimum=4)) > 0.02


def test_rounds_stop_before_the_budget_is_overrun():
    calls = {"A": lambda index: time.sleep(0.05)}
    assert len(list(timing.rounds(calls, CPU, budget=0.24, minimum=1))) in {3, 4}
    assert not list(timing.rounds({}, CPU, budget=math.inf, minimum=1))


def test_ratio_is_the_median_of_the_ratios_within_each_round():
    measured = [{"base": 2.0, "ours": 1.0}, {"base": 30.0, "ours": 10.0}, {"base": 4.0, "ours": 4.0}]
    assert timing.ratio(measured, "base", "ours") == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert timing.ratio(measured, "absent", "ours") is None


def test_single_stream_sends_one_sample_a_query_and_offline_all_of_them():
    seen = []
    for scenario in (scenarios.SINGLE_STREAM, scenarios.OFFLINE):
        seen.append([])
        assert list(scenario.rounds({"A": lambda indices: seen[-1].append(list(indices))}, 3, CPU, seconds=1e-9))
    assert seen == [[[0], [0], [1], [2], [0]], [[0], [0, 1, 2]] * 3]  # a turn begins with one that is not timed


def test_multi_stream_sends_eight_samples_a_query_in_turn():
    assert scenarios.MULTI_STREAM.query(3, 0) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert scenarios.MULTI_STREAM.query(3, 1) == [2, 0, 1, 2, 0, 1, 2, 0]


def test_early_stopping_is_an_upper_bound_that_short_runs_lack():
    assert timing.upper_percentile(range(43), 90) is None  # 0.9^43 is above 1 %
    assert timing.upper_percentile(range(44), 90) == 43
    assert timing.upper_percentile(range(458), 99) is None
    assert timing.upper_percentile(range(459), 99) == 458
    many = timing.upper_percentile(range(10_000), 90)
    assert 9000 < many < 9100


def test_figures_of_known_times():
    measured = [{"published": 2.0 * k, "A": k} for k in (0.1, 0.2, 0.4)]
    single = scenarios.SINGLE_STREAM.summary(measured, "A", "published", 16)
    assert [single[key] for key in ("p50_ms", "p90_ms", "p99_ms", "min_ms", "max_ms")] == pytest.approx(
        [200, 400, 400, 100, 400]
    )
    assert "3 queries" in single["note"]
    assert "p90 = p99 = the slowest" in single["note"]
    offline = scenarios.OFFLINE.summary(measured, "A", "published", 16)
    assert offline["images_per_s"] == pytest.approx(80)
    assert (offline["min_images_per_s"], offline["max_images_per_s"]) == pytest.approx((40, 160))
    assert offline["ratio_to_published"] == pytest.approx({"median": 2.0, "min": 2.0, "max": 2.0})


def test_note_of_a_long_run_calls_no_percentile_the_slowest():
    measured = [{"A": float(k)} for k in range(1, 201)]
    assert (
        scenarios.SINGLE_STREAM.summary(measured, "A", "published", 1)["note"]
        == "percentiles by nearest rank from 200 queries"
    )


@pytest.mark.parametrize("candidate", peers.candidates(CPU), ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("size", [(32, 32), (35, 50)])
def test_every_candidate_computes_the_definition(model, candidate, size):
    if reason := candidate.name in BACKENDS and backends.unavailable(BACKENDS[candidate.name]):
        pytest.skip(reason)
    noise = noise_bank(model.schedule, *size, model.noise_seed)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network = unet.from_weights(model.network, model.weights)
    with torch.no_grad():
        errors = scoring.error_map(network, x, model.schedule, noise)
        truth = {"error_map": errors, "anomaly_map": scoring.anomaly_map(errors)}
    given = dict(zip(truth, candidate.build(model, noise, CPU)(x), strict=True))
    check = work.parity(given, truth, 1e-4)
    assert check["passed"]
    assert max(check["error_map"].values()) < 1e-5


def test_building_the_peers_leaves_the_model_as_it_was(model):
    before = model.sha256
    for candidate in peers.CANDIDATES:
        candidate.build(model, noise_bank(model.schedule, 32, 32, 0), CPU)(torch.zeros(1, 3, 32, 32))
    assert model.sha256 == before


def test_report_has_figures_environment_and_parity_of_every_candidate(model, document):
    assert document["schema_version"] == 7
    assert document["truth"] == "the plain definition in float64 on the CPU"
    assert document["complete"] is True
    assert document["note"] == "MLPerf-style, not an MLPerf result"
    assert document["model"]["sha256"] == model.sha256
    assert document["environment"]["torch"] == torch.__version__
    assert (document["input"]["height"], document["input"]["samples"]) == (32, 3)
    assert "random" in document["input"]["images"]
    assert list(document["candidates"]) == ["published", "channels_last", "eager", "cpu", "onnx_plan"]
    can_run = {
        name for name in document["candidates"] if name not in BACKENDS or backends.unavailable(BACKENDS[name]) is None
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
    document = cases.run(
        model, cases.Options(batch=2, seconds=0.01, device="cpu"), candidates=[peers.CANDIDATES[0], _wrong(change)]
    )
    wrong, right = document["candidates"]["wrong"], document["candidates"]["published"]
    assert wrong["status"] == "failed"
    assert wrong["offline"] is None
    assert wrong["single_stream"] is None
    assert right["status"] == "measured"
    assert document["complete"]
    json.dumps(document, allow_nan=False)
    line = next(line for line in _rendered(document).splitlines() if line.strip().startswith("wrong "))
    assert "struck out" in line


def test_without_the_baseline_there_is_speed_but_no_ratio(model):
    broken = dataclasses.replace(_wrong(lambda errors, anomalies: (-errors, anomalies)), name="published")
    document = cases.run(
        model, cases.Options(batch=1, seconds=0.01, device="cpu"), candidates=[broken, peers.CANDIDATES[2]]
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

    options = cases.Options(batch=2, seconds=30.0, device="cpu")
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
    document = cases.run(model, cases.Options(batch=1, device="cpu"), candidates=candidates)
    assert document["complete"] is False
    assert [entry["status"] for entry in document["candidates"].values()] == ["not measured", "not measured"]
    assert document["candidates"]["published"]["parity"]["batch"]["passed"]
    assert "INTERRUPTED" in _rendered(document)


def test_progress_counts_up_to_the_time_of_all_scenarios(model):
    seen = []
    options = cases.Options(batch=1, seconds=0.3, device="cpu")
    cases.run(model, options, on_progress=lambda done, total, what: seen.append((done, total, what)))
    assert {total for _, total, _ in seen} == {6}
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert all(0 <= done <= 6 for done, *_ in seen)
    assert [what for *_, what in seen][:3] == ["building published", "building channels_last", "building eager"]
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
        cases.run(model, cases.Options(**{"device": "cpu"} | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_driver_is_a_backend_error(model):
    with pytest.raises(BackendError, match="cuda"):
        cases.run(model, cases.Options(device="cuda"))


def test_bench_leaves_torch_as_it_was(model):
    threads, grad, tf32 = torch.get_num_threads(), torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32
    state = torch.get_rng_state()
    cases.run(model, cases.Options(batch=1, seconds=0.01, device="cpu"))
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32) == (threads, grad, tf32)
    assert torch.equal(torch.get_rng_state(), state)


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


def test_on_cuda_the_kernels_are_compared_too_each_with_the_tolerance_of_its_precision():
    found = peers.candidates(torch.device("cuda"))
    assert [each.name for each in found[:3]] == ["published", "channels_last", "eager"]
    assert {each.precision for each in found} <= peers.TOLERANCES.keys()
    kernels = {name for name in ("triton", "cuda_graph") if backends.unavailable(name) is None}
    assert {(each.name, each.precision) for each in found[3:]} == {
        (f"{name}_{p}", p) for name in kernels for p in ("float32", "bfloat16")
    }
    assert [each.name for each in peers.candidates(CPU)] == [
        *(each.name for each in peers.CANDIDATES),
        "cpu",
        "onnx_plan",
    ]


def test_backend_cpu_names_its_instruction_set():
    if library.unavailable():
        pytest.skip(library.unavailable())
    assert library.instruction_set() in peers.cpu().description
    assert peers.cpu().ours


def test_backend_cpu_is_listed_with_the_reason_where_it_cannot_run(model, without_cpu_kernels):
    document = cases.run(model, cases.Options(batch=1, seconds=0.01, device="cpu"), candidates=[peers.cpu()])
    entry = document["candidates"]["cpu"]
    assert (entry["status"], entry["reason"]) == ("unavailable", f"backend cpu: {without_cpu_kernels}")
    assert entry["description"] == "sprfast, backend cpu: our CPU kernels"


def test_backend_onnxruntime_has_a_name_beside_that_of_the_plain_export():
    plan, export = libraries.chosen(CPU, ["onnxruntime", "onnx_plan"])
    assert (plan.name, plan.ours, export.name, export.ours) == ("onnx_plan", True, "onnxruntime", False)
    assert plan.description == "sprfast, backend onnxruntime: the folded plan as an ONNX graph"


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_backend_onnxruntime_is_listed_with_what_to_install_where_it_cannot_run(module, model, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # so that it cannot be found
    document = cases.run(model, cases.Options(batch=1, seconds=0.01, device="cpu"), candidates=[peers.ONNX_PLAN])
    entry = document["candidates"]["onnx_plan"]
    reason = f"backend onnxruntime: needs {module}, not installed here: run pip install 'sprfast[onnx]'"
    assert (entry["status"], entry["reason"]) == ("unavailable", reason)


def test_a_candidate_may_have_a_tolerance_of_its_own(model):
    loose = dataclasses.replace(
        _wrong(lambda errors, anomalies: (errors * 1.001, anomalies * 1.001)), own_tolerance=3e-3
    )
    entry = cases.run(model, cases.Options(batch=1, seconds=0.01, device="cpu"), candidates=[loose])["candidates"][
        "wrong"
    ]
    assert (entry["status"], entry["precision"], entry["tolerance"]) == ("measured", "float32", 3e-3)
    assert report.largest_error(entry["parity"]) == pytest.approx(1e-3, rel=0.01)


def test_a_candidate_that_cannot_run_here_is_listed_with_the_reason(model):
    def build(model, noise, device):
        raise BackendError("nosuch is not installed")

    candidates = [peers.CANDIDATES[2], peers.Candidate("nosuch", "", build)]
    document = cases.run(model, cases.Options(batch=1, seconds=0.01, device="cpu"), candidates=candidates)
    entry = document["candidates"]["nosuch"]
    assert (entry["status"], entry["reason"], entry["offline"]) == ("unavailable", "nosuch is not installed", None)
    assert document["candidates"]["eager"]["status"] == "measured"
    text = _rendered(document)
    assert "nosuch: unavailable, nosuch is not installed" in text
    assert report.failures(document) == []
