"""onnxruntime's profile of the folded graph and of the plain one."""

import io
import json
import math

import pytest
import torch
from rich.console import Console

from sprfast.bench.core import libraries, onnx_profile, peers

ort = pytest.importorskip("onnxruntime")
if reason := libraries.unavailable("onnxruntime", onnx_profile.CPU):
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def report(small_model):
    return onnx_profile.measure(small_model, 32, 3)


def altered(name, factor):
    """The candidate `name` with error maps that are multiplied."""
    (candidate,) = libraries.chosen(onnx_profile.CPU, [name])

    def build(model, noise, device):
        maps = candidate.build(model, noise, device)
        return lambda x: (maps(x)[0] * factor, maps(x)[1])

    return peers.Candidate(name, "for the test", build)


def test_every_operator_of_both_graphs_has_its_time(report):
    json.dumps(report, allow_nan=False)
    assert report["schema_version"] == 1
    assert report["environment"]["onnxruntime"] == ort.__version__
    assert report["input"] == {"images": 1, "draws": 2, "height": 32, "width": 32}
    for graph in report["graphs"].values():
        nodes = {row["operator"]: row["nodes"] for row in graph["operators"]}
        assert nodes["Conv"] == 19
        assert nodes["InstanceNormalization"] == 18
        assert (nodes["Concat"], nodes["MaxPool"]) == (4, 4)
        assert all(row["ms"] > 0 for row in graph["operators"])
    folded, plain = (
        {row["operator"]: row["nodes"] for row in graph["operators"]} for graph in report["graphs"].values()
    )
    # the anomaly map
    assert (folded["MatMul"], folded["Resize"], plain["AveragePool"], plain["Resize"]) == (2, 4, 1, 5)


def test_shares_are_those_of_a_call(report):
    for graph in report["graphs"].values():
        assert sum(row["percent"] for row in graph["operators"]) == pytest.approx(100)
        assert sum(row["ms"] for row in graph["operators"]) == pytest.approx(graph["profiled_ms"])
        assert graph["operators"][-1]["operator"] == onnx_profile.REST
        assert graph["operators"][-1]["percent"] < 50  # operators are most of a call


def test_the_call_that_warms_up_does_not_count():
    """Two operators in a call of 10 ms, two calls after a slow first one."""

    def node(name, operator, start, duration):
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "ts": start,
            "dur": duration,
            "args": {"op_name": operator},
        }

    calls = [
        {"cat": "Session", "name": "model_run", "ts": start, "dur": length}
        for start, length in ((0, 99_000), (1e5, 1e4), (2e5, 1e4))
    ]
    nodes = [node("a", "Conv", start, duration) for start, duration in ((1, 90_000), (1e5, 6_000), (2e5, 8_000))]
    nodes += [node(name, "Add", start, 1_000) for start in (95_000, 108_500, 208_500) for name in ("b", "c")]
    found = onnx_profile._rows([*nodes, *calls])
    assert found["profiled_ms"] == 10
    assert found["operators"] == [
        {"operator": "Conv", "nodes": 1, "ms": pytest.approx(7), "percent": pytest.approx(70)},
        {"operator": "Add", "nodes": 2, "ms": pytest.approx(2), "percent": pytest.approx(20)},
        {"operator": onnx_profile.REST, "nodes": None, "ms": pytest.approx(1), "percent": pytest.approx(10)},
    ]


def test_times_of_both_are_compared_within_a_turn(report):
    for graph in report["graphs"].values():
        speed = graph["ms_per_image"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert {graph["candidate"] for graph in report["graphs"].values()} == {"onnx_plan", "onnx_unfolded"}
    assert report["ratio"]["min"] <= report["ratio"]["median"] <= report["ratio"]["max"]
    assert report["largest_difference"] <= 1e-5
    assert report["passed"]


def test_the_table_fits_a_terminal(report):
    console = Console(file=io.StringIO(), width=80)
    console.print(onnx_profile.table(report))
    text = console.file.getvalue()
    assert "…" not in text
    assert "32x32, 2 draws" in text
    (line,) = (line for line in text.splitlines() if line.strip().startswith("Conv "))
    assert line.split()[1] == "19"
    assert "largest relative difference of their maps: " in text


def test_the_command_prints_a_table_or_json(model_path, monkeypatch, capsys):
    assert onnx_profile.main([str(model_path), "--calls", "1", "--size", "48", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["calls"], found["input"]["height"]) == (1, 48)
    monkeypatch.setattr(onnx_profile, "measure", lambda *given: found)
    assert onnx_profile.main([str(model_path)]) == 0
    assert "InstanceNormalization" in capsys.readouterr().out


def test_maps_that_differ_do_not_pass(small_model, monkeypatch):
    chosen, wrong = libraries.chosen, altered("onnx_plan", 1 + 1e-4)
    monkeypatch.setattr(
        libraries, "chosen", lambda device, names: [wrong] if names == [wrong.name] else chosen(device, names)
    )
    found = onnx_profile.measure(small_model, 32, 1)
    assert found["largest_difference"] == pytest.approx(1e-4, rel=0.1)
    assert not found["passed"]


def test_a_map_that_is_not_a_number_has_no_difference():
    right, wrong = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), torch.nan)
    assert onnx_profile._largest_difference((right, right), (right, right)) == 0
    for given in ((right, wrong), (wrong, right)):
        assert math.isnan(onnx_profile._largest_difference(given, (right, right)))


@pytest.mark.parametrize(
    ("difference", "said"), [(1e-4, "differ by 1.0e-04, allowed 1e-05"), (None, "differ by not a number")]
)
def test_a_difference_is_a_failure_with_the_report(difference, said, report, model_path, monkeypatch, capsys):
    monkeypatch.setattr(
        onnx_profile, "measure", lambda *given: report | {"largest_difference": difference, "passed": False}
    )
    assert onnx_profile.main([str(model_path), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is False
    assert said in printed.err


def test_bad_input_is_one_line(model_path, capsys):
    for arguments, names in (
        ([str(model_path), "--calls", "0"], "--calls: 0"),
        ([str(model_path), "--size", "15"], "--size: 15"),
        (["absent.safetensors"], "absent.safetensors"),
    ):
        assert onnx_profile.main(arguments) == 2
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert names in printed.err


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_told(module, model_path, monkeypatch, capsys):
    monkeypatch.setitem(onnx_profile.sys.modules, module, None)
    assert onnx_profile.main([str(model_path), "--calls", "1"]) == 3
    assert f"needs {module}, not installed here: run pip install" in capsys.readouterr().err
