import platform
import sys

import pytest
import torch

from sprfast.backends import registry
from sprfast.bench.core import cases, libraries, peers
from sprfast.errors import BackendError
from sprfast.kernels.cpu import library
from sprfast.method.noise import noise_bank

CPU = torch.device("cpu")


@pytest.fixture
def model(two_levels):
    return two_levels


def test_on_cuda_the_kernels_are_compared_too_each_with_the_tolerance_of_its_precision():
    found = peers.candidates(torch.device("cuda"))
    assert [each.name for each in found[:3]] == ["published", "channels_last", "eager"]
    assert {each.precision for each in found} <= peers.TOLERANCES.keys()
    kernels = {name for name in ("triton", "cuda_graph") if registry.unavailable(name) is None}
    assert {(each.name, each.precision) for each in found[3:]} == {
        (f"{name}_{p}", p) for name in kernels for p in ("float32", "bfloat16")
    }
    assert [each.name for each in peers.candidates(CPU)] == [
        *(each.name for each in peers.CANDIDATES),
        *("cpu", "onnx_plan", "cpu_bf16", "torch_bf16"),
    ]


def test_bfloat16_by_torch_needs_a_processor_that_has_it(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    said = "torch_bf16 needs a processor with bfloat16 instructions, which this one has not"
    with pytest.raises(BackendError, match=said):
        peers.TORCH_BFLOAT16.build(model, noise_bank(model.schedule, 16, 16, 0), CPU)
    with pytest.raises(BackendError, match=said):
        peers.TORCH_BFLOAT16.network(model, peers.draw_times(model.schedule), CPU)


def test_backend_cpu_names_its_instruction_set():
    if library.unavailable():
        pytest.skip(library.unavailable())
    assert library.instruction_set() in peers.cpu().description
    assert peers.cpu().ours


def test_backend_cpu_is_listed_with_the_reason_where_it_cannot_run(model, without_cpu_kernels):
    document = cases.run(model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=[peers.cpu()])
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
    document = cases.run(model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu"), candidates=[peers.ONNX_PLAN])
    entry = document["candidates"]["onnx_plan"]
    reason = f"backend onnxruntime: needs {module}, not installed here: run pip install 'sprfast[onnx]'"
    assert (entry["status"], entry["reason"]) == ("unavailable", reason)
