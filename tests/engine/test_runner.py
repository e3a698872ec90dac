"""Exports scored without PyTorch: the same verdicts, and every refusal in one sentence."""

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

import sprfast
from sprfast.backends.sessions import onnxruntime as onnxruntime_runtime
from sprfast.backends.sessions.session import default_threads
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError, ModelFileError, OutOfMemoryError
from sprfast.formats import export as export_file
from sprfast.kernels.cpu import library
from sprfast.method import threshold
from sprfast.method.threshold import Verdict
from support.scoring_mode_cases import with_mode

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))

TARGETS = ("onnx", "tensorrt", "plan")


@pytest.fixture(scope="module")
def exports(small_model, tmp_path_factory):
    """A file for each target."""
    folder = tmp_path_factory.mktemp("exports")
    paths = {target: folder / f"model.{target}" for target in TARGETS}
    for target, path in paths.items():
        export.export(small_model, path, Request(target))
    return paths


@pytest.fixture(params=TARGETS)
def path(request, exports):
    return exports[request.param]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Pictures of other sizes than the network's: a large one, a small one, grey, JPEG."""
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(5)
    coarse = PIL.Image.fromarray(random.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    coarse.resize((301, 301)).save(folder / "large.png")
    coarse.resize((20, 20)).save(folder / "small.png")
    coarse.convert("L").resize((64, 64)).save(folder / "grey.png")
    coarse.resize((100, 100)).save(folder / "lossy.jpg")
    return sorted(folder.iterdir())


def outside(code, *arguments, **variables):
    """Run code in a process of its own: what it prints."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_file_to_verdict_like_eager(path, small_model, sources):
    expected = Engine(small_model, "eager", "cpu").predict(sources)
    got = sprfast.load(path).predict(sources)
    assert [result.pred_score for result in got] == pytest.approx([result.pred_score for result in expected], rel=1e-5)
    assert [result.verdict for result in got] == [result.verdict for result in expected]
    assert {result.verdict for result in expected} == {Verdict.PASS, Verdict.REJECT}  # or the line above says little
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.source_size == theirs.source_size
        np.testing.assert_allclose(ours.error_map, theirs.error_map, rtol=0, atol=1e-5 * theirs.error_map.max())
        np.testing.assert_array_equal(ours.pred_mask, theirs.pred_mask)


def test_frames_are_taken_as_declared(path, sources):
    loaded = sprfast.load(path)
    picture = np.asarray(PIL.Image.open(sources[1]).convert("RGB"))
    frames = [picture, picture.astype(np.float32) / np.float32(255), np.asfortranarray(picture)]
    scores = [result.pred_score for result in loaded.predict(frames, channel_order="rgb")]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-2)  # a float frame is not resized as 8 bits
    assert loaded.predict(np.ascontiguousarray(picture[:, :, ::-1]), channel_order="bgr").pred_score == scores[0]
    assert "channel_order" in loaded.predict(picture).reason


def test_a_bad_image_disturbs_no_other(path, sources, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(sources[0].read_bytes()[:200])
    loaded = sprfast.load(path)
    results = loaded.predict([sources[0], bad, sources[1]])
    assert results[1].verdict is Verdict.ERROR
    assert "bad.png" in results[1].reason
    assert [results[0].pred_score, results[2].pred_score] == [loaded.predict(each).pred_score for each in sources[:2]]


def test_the_same_bits_alone_together_and_from_several_threads(path, sources):
    loaded = sprfast.load(path)
    alone = [loaded.predict(each).pred_score for each in sources]
    assert [result.pred_score for result in loaded.predict(sources)] == alone
    with ThreadPoolExecutor(4) as pool:
        assert [result.pred_score for result in pool.map(loaded.predict, sources * 3)] == alone * 3


def test_the_whole_path_without_torch(path, sources):
    code = """
import json, sys
import sprfast
loaded = sprfast.load(sys.argv[1])
results = loaded.predict(sys.argv[2:])
assert not {"torch", "matplotlib", "sklearn", "scipy", "typer"} & set(sys.modules), sorted(sys.modules)
print(json.dumps([[result.verdict.value, result.pred_score] for result in results]))
"""
    expected = [[result.verdict.value, result.pred_score] for result in sprfast.load(path).predict(sources)]
    assert json.loads(outside(code, path, *sources)) == expected


def test_the_command_scores_a_folder_without_torch(path, sources):
    code = """
import sys
from sprfast.cli import app as cli
sys.argv = ["sprfast", "predict", *sys.argv[1:], "--json"]
try:
    cli.main()
finally:
    assert not {"torch", "sklearn"} & set(sys.modules)
"""
    document = json.loads(outside(code, path, sources[0].parent))
    assert len(document["results"]) == len(sources)
    assert document["counts"]["ERROR"] == 0


def test_without_a_threshold_nothing_passes(small_model, sources, tmp_path):
    export.export(with_mode(small_model, threshold=None), tmp_path / "a", Request("plan"))
    result = sprfast.load(tmp_path / "a").predict(sources[0])
    assert result.verdict is Verdict.ERROR
    assert np.isfinite(result.pred_score)
    assert "calibrate" in result.reason


def test_a_network_that_computes_something_else_is_refused(path, tmp_path):
    """One number of the probe's map is wrong, with hashes to match: as if the backend had computed
    it wrongly.
    """
    stored = export_file.read(path)
    wrong = stored.metadata.probe.error_map.copy()
    wrong[3, 4] += 0.01 * np.abs(wrong).max()
    probe = dataclasses.replace(stored.metadata.probe, error_map=wrong)
    metadata = dataclasses.replace(stored.metadata, probe=probe)
    export_file.write(tmp_path / "a", dataclasses.replace(stored, metadata=metadata))
    with pytest.raises(BackendError, match="probe image is off by"):
        sprfast.load(tmp_path / "a")


def test_another_threshold_needs_no_new_export(path, tmp_path, sources):
    stored = export_file.read(path)
    strict = with_mode(stored.metadata, threshold=threshold.manual(1e-9))
    export_file.write(tmp_path / "a", dataclasses.replace(stored, metadata=strict))
    again = export_file.read(tmp_path / "a")
    assert again.graph == stored.graph
    assert {result.verdict for result in sprfast.load(tmp_path / "a").predict(sources)} == {Verdict.REJECT}


def test_images_of_another_size_are_errors_where_the_graph_is_fixed(exports, tmp_path):
    PIL.Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "wide.png")
    result = sprfast.load(exports["onnx"]).predict(tmp_path / "wide.png")
    assert result.verdict is Verdict.ERROR
    assert (
        "wide.png: 32x64 pixels (height x width) at the network's input, this export takes 32x32 only" in result.reason
    )
    assert sprfast.load(exports["plan"]).predict(tmp_path / "wide.png").error_map.shape == (32, 64)


def test_a_fixed_batch_is_filled_up(small_model, sources, tmp_path):
    export.export(small_model, tmp_path / "a", Request("onnx", batch=3))
    got = sprfast.load(tmp_path / "a").predict(sources)  # four: one call of three, and one
    expected = Engine(small_model, "eager", "cpu").predict(sources)
    assert [result.pred_score for result in got] == pytest.approx([result.pred_score for result in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("target", "options", "kind", "match"),
    [
        ("plan", {"backend": "onnxruntime"}, InputError, "a plan runs on cpu, not onnxruntime"),
        ("onnx", {"backend": "cpu"}, InputError, "cpu takes a plan"),
        ("onnx", {"backend": "eager"}, InputError, "'eager' is not known for an export, choose from auto, cpu"),
        ("onnx", {"threads": 0}, InputError, "threads: 0 is not allowed"),
        ("plan", {"threads": 99999}, InputError, "threads: 99999 is not allowed, expected 1 to 1024"),
        ("plan", {"device": "cuda"}, BackendError, "backend cpu: cannot run on cuda"),
        ("onnx", {"device": "tpu"}, BackendError, "device 'tpu' is not known, use cpu, cuda or cuda:N"),
        ("onnx", {"device": "cuda:x"}, BackendError, "device 'cuda:x' is not known"),
    ],
)
def test_what_does_not_fit_is_refused(exports, target, options, kind, match):
    with pytest.raises(kind, match=match):
        sprfast.load(exports[target], **options)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers(), reason="there is a CUDA provider"
)
def test_an_absent_provider_is_an_error_not_a_fallback(exports):
    with pytest.raises(
        BackendError, match=r"has no CUDAExecutionProvider, only .*CPUExecutionProvider; .*pip install onnxruntime-gpu"
    ):
        sprfast.load(exports["onnx"], device="cuda")


def test_a_provider_that_falls_back_is_an_error(exports):
    """Azure's provider is in every wheel, and its sessions compute on the CPU."""
    graph = export_file.read(exports["onnx"]).graph
    providers = {"azure": "AzureExecutionProvider"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_runtime, "PROVIDERS", providers)
        patch.setattr(onnxruntime_runtime, "_REMEDY", {"azure": "use the CPU"})
        with pytest.raises(BackendError, match="onnxruntime"):
            onnxruntime_runtime.OnnxRuntimeSession(graph, "azure", 1, None, "float32")


def test_what_the_cpu_provider_cannot_compute_is_said(small_model, tmp_path):
    export.export(small_model, tmp_path / "a", Request("onnx", precision="bfloat16"))
    with pytest.raises(BackendError, match="has no bfloat16 convolution on a CPU; use float16 or float32"):
        sprfast.load(tmp_path / "a")


def test_missing_libraries_say_what_to_install(exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(onnxruntime_runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"needs onnxruntime, not installed here: run pip install 'sprfast\[onnx\]'"):
        sprfast.load(exports["onnx"])


def test_a_model_file_is_not_an_export(model_path):
    with pytest.raises(ModelFileError, match="is a model file, not an export; run `sprfast export`"):
        export_file.read(model_path)


def test_damage_is_found(path, tmp_path):
    content = path.read_bytes()
    damaged = tmp_path / "damaged"
    step = len(content) // 40
    for at in range(11, len(content), step):
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(ModelFileError, match="damaged"):
            sprfast.load(damaged)
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match="damaged"):
            sprfast.load(damaged)


def test_threads_are_those_of_the_environment_or_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    for useless in ("", "0", "many", "99999", "9" * 5000, "-3", "²"):
        monkeypatch.setenv("OMP_NUM_THREADS", useless)
        assert default_threads() == len(os.sched_getaffinity(0))


def test_a_batch_for_which_there_is_no_memory_goes_in_halves(exports, sources, monkeypatch):
    loaded = sprfast.load(exports["plan"])
    expected = [result.pred_score for result in loaded.predict(sources)]
    maps = loaded._session.maps

    def scarce(x, z):
        if len(x) > 1:
            raise MemoryError
        return maps(x, z)

    monkeypatch.setattr(loaded._session, "maps", scarce)
    assert [result.pred_score for result in loaded.predict(sources)] == expected
    assert loaded.batch_limit == 1
    monkeypatch.setattr(loaded._session, "maps", lambda x, z: scarce(np.concatenate([x, x]), z))
    with pytest.raises(OutOfMemoryError, match="backend cpu: no memory"):
        loaded.predict(sources)
