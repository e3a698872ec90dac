import sys
import tempfile

import pytest
import torch

from sprfast import unet
from sprfast.bench import cases, libraries, peers
from sprfast.bench.libraries import graph
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError
from sprfast.model_file import Model
from sprfast.noise import noise_bank

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CANDIDATES = {candidate.name: candidate for candidate in libraries.CANDIDATES}
RUNNERS = {
    "onnxruntime": libraries.OnnxRuntime,
    "openvino": libraries.OpenVino,
    "ncnn": libraries.Ncnn,
    "mnn": libraries.Mnn,
}


@pytest.fixture(scope="module")
def model():
    """Two levels with different numbers of draws and weights."""
    config = NetworkConfig(32, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = unet.ScoreUNet(config).state_dict()
    return Model(config, Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0))), Preprocessing(size=32), weights, noise_seed=5)


def _needs(name):
    reason = libraries.unavailable(name, CPU)
    if reason:
        pytest.skip(reason)


def _images(size):
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _check(name, model, size):
    """Maps of one and of three images are the definition's, one image's the same alone and among others."""
    noise = noise_bank(model.schedule, size, size, model.noise_seed)
    before, x = model.sha256, _images(size)
    truth = peers.plain(model, noise, CPU, torch.contiguous_format)(x)
    maps = CANDIDATES[name].build(model, noise, CPU)
    many, single = maps(x), maps(x[1:2])
    check = cases.parity(many, truth, peers.TOLERANCES[CANDIDATES[name].precision])
    assert check["passed"], check
    assert max(max(errors.values()) for errors in (check["error_map"], check["anomaly_map"])) < 1e-5
    assert all(torch.equal(a[1:2], b) for a, b in zip(many, single, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(many, maps(x), strict=True))  # nothing of the first answer was overwritten or kept
    assert model.sha256 == before


@pytest.mark.parametrize("size", [32, 35])  # 35: the decoder pads
@pytest.mark.parametrize("name", RUNNERS)
def test_library_computes_the_definition_and_leaves_nothing_behind(name, size, model, tmp_path, monkeypatch, capfd):
    _needs(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _check(name, model, size)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_torch_compile_computes_the_definition(model):
    _needs("torch_compile")
    # One level is half as much to compile.
    one_level = Model(model.network, Schedule((Level(1e-3, 2),)), model.preprocessing, model.weights, noise_seed=5)
    _check("torch_compile", one_level, 32)


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_library_takes_the_threads_that_torch_has(name, threads, model):
    _needs(name)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runner = RUNNERS[name](model, noise_bank(model.schedule, 32, 32, 0))
    finally:
        torch.set_num_threads(before)
    assert runner.threads == threads


@pytest.mark.parametrize(("name", "module"), [("onnxruntime", "onnxruntime"), ("openvino", "onnx"), ("ncnn", "pnnx"), ("mnn", "MNN")])
def test_library_that_is_not_installed_is_listed_with_what_to_install(name, module, model, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # so that it cannot be found
    reason = libraries.unavailable(name, CPU)
    assert module in reason
    assert "pip install 'sprfast[peers]'" in reason
    with pytest.raises(BackendError) as raised:
        CANDIDATES[name].build(model, noise_bank(model.schedule, 32, 32, 0), CPU)
    assert str(raised.value) == reason


def test_torch_compile_without_a_compiler_says_so(model, monkeypatch):
    monkeypatch.setenv("CXX", "absent-compiler")
    assert "absent-compiler" in libraries.unavailable("torch_compile", CPU)
    assert libraries.unavailable("torch_compile", CUDA) is None
    with pytest.raises(BackendError, match="absent-compiler"):
        CANDIDATES["torch_compile"].build(model, noise_bank(model.schedule, 32, 32, 0), CPU)


def test_all_libraries_are_listed_and_but_for_torch_compile_run_on_the_cpu_only():
    assert list(CANDIDATES) == ["torch_compile", *RUNNERS]
    assert {candidate.precision for candidate in CANDIDATES.values()} == {"float32"}
    for name in RUNNERS:
        assert libraries.unavailable(name, CUDA) == f"{name} is measured on the CPU only, not on cuda:0"


def test_failed_conversion_is_an_error_with_what_the_converter_printed(tmp_path):
    with pytest.raises(BackendError, match="ended with 1: operator is unknown"):
        graph.convert([sys.executable, "-c", "raise SystemExit('operator is unknown')"], tmp_path)
