import platform
import sys
import tempfile

import pytest
import torch

from sprfast.bench.core import libraries, peers, work
from sprfast.bench.core.libraries import graph
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CANDIDATES = {candidate.name: candidate for candidate in libraries.CANDIDATES}
RUNNERS = {
    "onnx_unfolded": lambda *given: libraries.OnnxRuntime(graph.unfolded_graph(*given)),
    "onnxruntime": lambda *given: libraries.OnnxRuntime(graph.maps_graph(*given)),
    "openvino": lambda *given: libraries.OpenVino(graph.maps_graph(*given)),
    "ncnn": libraries.NcnnMaps,
    "mnn": lambda *given: libraries.Mnn(graph.maps_graph(*given), "high", libraries.SMALL_TILES),
    "mnn_normal": lambda *given: libraries.Mnn(graph.maps_graph(*given), "normal", libraries.ALL_TILES),
}


@pytest.fixture(scope="module")
def model():
    """Two levels with different numbers of draws and weights."""
    config = NetworkConfig(32, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = unet.ScoreUNet(config).state_dict()
    return Model(
        config,
        ScoringMode(Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0)))),
        Preprocessing(size=32),
        weights,
        noise_seed=5,
    )


def _needs(name):
    reason = libraries.unavailable(name, CPU)
    if reason:
        pytest.skip(reason)


def _check(name, model, timed, size):
    """Results of one and of three images are the definition's, one image's the same alone and among
    others.
    """
    pixels = torch.rand(3, 3, size, size + 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    done = work.WORKS[timed](model, work.Images(pixels, "random"), CPU)
    before = model.sha256
    answer = done.build(CANDIDATES[name])
    truth = done.truth(range(3))
    many, single, again = (done.results(answer(done.take(indices))) for indices in (range(3), [1], range(3)))
    check = work.parity(many, truth, CANDIDATES[name].tolerance)
    assert check["passed"], check
    limit = {"maps": 1e-5, "network": 3e-5}[timed]  # maps have the noise added, which has no error
    if name == "mnn_normal":
        limit *= 100  # Winograd's largest tiles
    assert max(error for result in truth for error in check[result].values()) < limit
    for result in truth:
        assert torch.equal(many[result][1:2], single[result])
        assert torch.equal(many[result], again[result])  # nothing of the first answer was overwritten or kept
    assert model.sha256 == before


@pytest.mark.parametrize(("timed", "size"), [("maps", 32), ("maps", 35), ("network", 35)])  # 35: the decoder pads
@pytest.mark.parametrize("name", RUNNERS)
def test_library_computes_the_definition_and_leaves_nothing_behind(
    name, timed, size, model, tmp_path, monkeypatch, capfd
):
    _needs(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _check(name, model, timed, size)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.mark.compile
@pytest.mark.parametrize("timed", ["maps", "network"])
def test_torch_compile_computes_the_definition(timed, model):
    _needs("torch_compile")
    # One level is half as much to compile.
    one_level = Model(
        model.network, ScoringMode(Schedule((Level(1e-3, 2),))), model.preprocessing, model.weights, noise_seed=5
    )
    _check("torch_compile", one_level, timed, 32)


# the precision that each runs in on x86 processors; None: it depends on the processor
REDUCED = {"mnn_low": "float32", "ncnn_16bit": "bfloat16", "openvino_auto": None, "openvino_int8": "int8"}


@pytest.mark.parametrize("timed", ["maps", "network"])
@pytest.mark.parametrize("name", REDUCED)
def test_library_in_a_lower_precision_is_near_the_definition_and_tells_what_it_ran_in(name, timed, model, capfd):
    _needs(name)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    done = work.WORKS[timed](model, work.Images(pixels, "random"), CPU)
    candidate = done.calibrated(CANDIDATES[name])
    answer, truth = done.build(candidate), done.truth([0])
    found = done.results(answer(done.take([0])))
    check = work.parity(found, truth, candidate.tolerance)
    assert check["passed"], check
    ran = candidate.ran()
    if REDUCED[name] and platform.machine() == "x86_64":
        assert ran == REDUCED[name]
    error = max(check[next(iter(truth))].values())
    assert (error < 3e-4) is (ran == "float32"), (ran, error)
    assert capfd.readouterr().out == ""


def test_int8_is_calibrated_on_images_of_the_same_size_or_says_so(model):
    _needs("openvino_int8")
    given, others = (work.Images(torch.zeros(1, 3, size, size), "zeros") for size in (32, 48))
    done = work.Work(model, given, CPU, others)
    with pytest.raises(BackendError, match=r"size \(3, 32, 32\), not of \(3, 48, 48\)"):
        done.build(done.calibrated(CANDIDATES["openvino_int8"]))


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


@pytest.mark.parametrize(
    ("name", "module"),
    [
        *(("onnxruntime", "onnxruntime"), ("openvino", "onnx"), ("openvino_int8", "nncf")),
        *(("ncnn", "pnnx"), ("mnn", "MNN"), ("mnn_normal", "MNN")),
    ],
)
def test_library_that_is_not_installed_is_listed_with_what_to_install(name, module, model, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # so that it cannot be found
    reason = libraries.unavailable(name, CPU)
    assert module in reason
    assert "pip install 'sprfast[peers]'" in reason
    with pytest.raises(BackendError) as raised:
        CANDIDATES[name].build(model, noise_bank(model.schedule, 32, 32, 0), CPU)
    assert str(raised.value) == reason
    with pytest.raises(BackendError) as raised:
        CANDIDATES[name].network(model, peers.draw_times(model.schedule), CPU)
    assert str(raised.value) == reason


def test_torch_compile_without_a_compiler_says_so(model, monkeypatch):
    monkeypatch.setenv("CXX", "absent-compiler")
    assert "absent-compiler" in libraries.unavailable("torch_compile", CPU)
    assert libraries.unavailable("torch_compile", CUDA) is None
    with pytest.raises(BackendError, match="absent-compiler"):
        CANDIDATES["torch_compile"].build(model, noise_bank(model.schedule, 32, 32, 0), CPU)


def test_all_libraries_are_listed_and_but_for_torch_compile_run_on_the_cpu_only():
    assert list(CANDIDATES) == ["torch_compile", *RUNNERS, *REDUCED]
    assert {name for name, each in CANDIDATES.items() if each.precision != "float32"} == REDUCED.keys()
    loose = {name: each.tolerance for name, each in CANDIDATES.items() if each.tolerance > 1e-4}
    assert loose == {"mnn_normal": 3e-3, **dict.fromkeys(REDUCED, 3e-2), "openvino_int8": 0.2}
    on_cuda = {each.name: each.precision for each in libraries.candidates(CUDA)}
    assert on_cuda == {name: each.precision for name, each in CANDIDATES.items()} | {"torch_compile": "tf32"}
    for name in (*RUNNERS, *REDUCED):
        assert libraries.unavailable(name, CUDA) == f"{name} is measured on the CPU only, not on cuda:0"


def test_failed_conversion_is_an_error_with_what_the_converter_printed(tmp_path):
    with pytest.raises(BackendError, match="ended with 1: operator is unknown"):
        graph.convert([sys.executable, "-c", "raise SystemExit('operator is unknown')"], tmp_path)
