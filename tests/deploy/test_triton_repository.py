"""Repositories for Triton Inference Server: what is in them, and what its python backend runs;
tests/scale has the server itself.
"""

import importlib
import json
import sys

import numpy as np
import PIL.Image
import pytest

from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.deploy.triton_server import model as triton_model
from sprfast.deploy.triton_server import repository as triton_repository
from sprfast.deploy.triton_server.repository import Serving, write
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError, ModelFileError
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from support.pbtxt import config
from support.scoring_mode_cases import field, with_mode, with_settings

ort = pytest.importorskip("onnxruntime")
FILES = ["screw/1/model.py", "screw/1/model.sprfast", "screw/config.pbtxt", "screw/warmup/image"]
needs_kernels = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_model_becomes_a_folder_with_all_that_the_server_needs(source, tmp_path):
    repository = tmp_path / "models"
    assert write(repository, source, Serving()) == ["screw"]
    assert listed(repository) == FILES
    assert (repository / "screw/1/model.sprfast").read_bytes() == source.read_bytes()
    namespace = {}
    exec((repository / "screw/1/model.py").read_text(), namespace)
    assert namespace["TritonPythonModel"] is triton_model.TritonPythonModel
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "screw.safetensors"]
    assert repository.stat().st_mode == (repository / "screw").stat().st_mode


def test_the_configuration_says_what_was_asked_for(source, tmp_path):
    serving = Serving(
        max_batch=4, queue=7, queue_timeout=0.25, instances=2, device="cuda:1", backend="triton", setting="quick"
    )
    write(tmp_path / "models", source, serving)
    written = config(tmp_path / "models")
    assert written["name"] == ['"screw"']
    assert written["backend"] == ['"python"']
    assert written["max_batch_size"] == [4]
    assert written["input"] == [
        {"name": ['"IMAGE"'], "data_type": ["TYPE_UINT8"], "dims": [-1], "allow_ragged_batch": ["true"]}
    ]
    outputs = {output["name"][0]: (output["data_type"][0], output["dims"]) for output in written["output"]}
    assert outputs == {
        '"pred_score"': ("TYPE_FP64", [1]),
        '"verdict"': ("TYPE_UINT8", [-1]),
        '"reason"': ("TYPE_UINT8", [-1]),
        '"anomaly_map"': ("TYPE_FP32", [256, 256]),
    }
    (policy,) = written["dynamic_batching"][0]["default_queue_policy"]
    assert (policy["timeout_action"], policy["max_queue_size"], policy["default_timeout_microseconds"]) == (
        ["REJECT"],
        [7],
        [250000],
    )
    assert written["instance_group"] == [{"kind": ["KIND_GPU"], "count": [2], "gpus": [1]}]
    given = {entry["key"][0]: entry["value"][0]["string_value"][0] for entry in written["parameters"]}
    assert given == {'"backend"': '"triton"', '"precision"': '"float32"', '"setting"': '"quick"'}
    assert [sample["batch_size"] for sample in written["model_warmup"]] == [[1], [4]]
    (sample,) = written["model_warmup"][0]["inputs"][0]["value"]
    assert sample["dims"] == [(tmp_path / "models/screw/warmup/image").stat().st_size]


@pytest.mark.parametrize(
    ("device", "group"),
    [(None, {"kind": ["KIND_AUTO"]}), ("cpu", {"kind": ["KIND_CPU"]}), ("cuda", {"kind": ["KIND_GPU"]})],
)
def test_where_it_runs(source, tmp_path, device, group):
    write(tmp_path / "models", source, Serving(device=device))
    assert config(tmp_path / "models")["instance_group"] == [group | {"count": [1]}]


def test_texts_are_written_so_that_no_character_ends_them():
    assert triton_repository.text({"name": 'a"\\\n{ä'}) == 'name: "a\\042\\134\\012{\\303\\244"\n'
    assert triton_repository.text({"name": 'x"} name: "y'}) == 'name: "x\\042} name: \\042y"\n'


@pytest.mark.parametrize("setting", ["published", "quick"])
def test_what_warms_up_is_a_picture_of_the_networks_size(small_model, source, tmp_path, setting):
    write(tmp_path / "models", source, Serving(setting=setting))
    engine = Engine(with_settings(small_model).using(setting), "eager", "cpu")
    image = tmp_path / "models/screw/warmup/image"
    assert engine.prepare(image).pixels.shape[1:] == engine.input_size
    assert engine.predict(image).reason is None


def test_an_onnx_export_is_served_as_tensors_too(graph, tmp_path):
    assert write(tmp_path / "models", graph, Serving(max_batch=2)) == ["screw", "screw-onnx"]
    assert listed(tmp_path / "models") == ["screw-onnx/1/model.onnx", "screw-onnx/config.pbtxt", *FILES]
    written = config(tmp_path / "models", "screw-onnx")
    assert (written["name"], written["backend"]) == (['"screw-onnx"'], ['"onnxruntime"'])
    assert written["input"] == [{"name": ['"image"'], "data_type": ["TYPE_FP32"], "dims": [3, 32, 48]}]
    assert {output["name"][0]: output["dims"] for output in written["output"]} == {
        '"error_map"': [1, 32, 48],
        '"anomaly_map"': [1, 256, 256],
    }
    assert written["dynamic_batching"] == config(tmp_path / "models")["dynamic_batching"]
    with PIL.Image.open(tmp_path / "models/screw/warmup/image") as image:
        assert image.size == (48, 32)


def test_the_graph_with_its_noise_in_it_gives_the_maps_of_the_engine(small_model, graph, tmp_path):
    write(tmp_path / "models", graph, Serving())
    session = ort.InferenceSession(tmp_path / "models/screw-onnx/1/model.onnx", providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("image", ["batch", 3, 32, 48])]
    x = np.random.default_rng(5).uniform(-1, 1, (3, 3, 32, 48)).astype(np.float32)
    errors, maps = session.run(["error_map", "anomaly_map"], {"image": x})
    for backend, tolerance in (("onnxruntime", 1e-6), ("eager", 1e-5)):
        expected = Engine(small_model, backend, "cpu").maps(x)
        for got, wanted in zip((errors, maps), expected, strict=True):
            assert got.shape == wanted.shape
            assert np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(wanted)


@needs_kernels
def test_a_plan_is_served_as_images_only(small_model, tmp_path):
    export.export(small_model, tmp_path / "screw.plan.safetensors", Request("plan"))
    assert write(tmp_path / "models", tmp_path / "screw.plan.safetensors", Serving()) == ["screw"]
    assert listed(tmp_path / "models") == FILES


def test_a_folder_that_exists_is_left_alone(source, tmp_path):
    taken = tmp_path / "models"
    taken.mkdir()
    for path in (taken, source, tmp_path / "link"):
        (tmp_path / "link").symlink_to("nowhere") if path.name == "link" else None
        with pytest.raises(InputError, match=f"{path}: exists already; name a folder that does not"):
            write(path, source, Serving())
    with pytest.raises(InputError, match=r"cannot be written \(No such file"):
        write(tmp_path / "nosuch" / "models", source, Serving())
    assert list(taken.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "models", "screw.safetensors"]


def test_a_repository_that_is_not_finished_leaves_nothing(source, tmp_path, monkeypatch):
    written = []

    def full_at_the_third(path, content):
        written.append(path)
        if len(written) == 3:
            raise InputError(f"{path}: cannot be written (No space left on device)")
        path.write_bytes(content)

    monkeypatch.setattr(triton_repository, "write_bytes", full_at_the_third)
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path / "models", source, Serving())
    assert [path.name for path in tmp_path.iterdir()] == ["screw.safetensors"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_batch": 0}, "max_batch: 0 is not allowed, expected 1 to 1024"),
        ({"queue": 0}, "queue: 0 is not allowed, expected 1 to 65536"),
        ({"queue": True}, "queue: True is not allowed"),
        ({"instances": 65}, "instances: 65 is not allowed, expected 1 to 64"),
        ({"queue_timeout": 0.0}, "queue_timeout: 0.0 is not allowed, expected a millisecond to a day"),
        ({"queue_timeout": float("nan")}, "queue_timeout: nan is not allowed"),
        ({"precision": "fp8"}, "precision: 'fp8' is not known, choose from float32, bfloat16, float16"),
        ({"device": "tpu"}, "device: 'tpu' is not known, choose cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "device: 'cuda:x' is not known"),
    ],
)
def test_what_cannot_be_asked_for(options, match):
    with pytest.raises(InputError, match=match):
        Serving(**options)


def test_what_does_not_go_with_the_file_is_refused(small_model, source, graph, tmp_path):
    fixed, odd = tmp_path / "fixed.onnx", tmp_path / "ä b.safetensors"
    export.export(small_model, fixed, Request("onnx", batch=2))
    tiled = tmp_path / "tiled.onnx"
    export.export(with_mode(small_model, window=4, tile=32), tiled, Request("onnx"))
    odd.write_bytes(source.read_bytes())
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(source.read_bytes()[:-1])
    for path, serving, kind, match in (
        (fixed, Serving(), InputError, "fixed to batches of 2"),
        (tiled, Serving(), InputError, "works on tiles, which its graph alone does not"),
        (odd, Serving(), InputError, "needs a name of letters, digits"),
        (damaged, Serving(), ModelFileError, f"{damaged}: "),
        (source, Serving(backend="nosuch"), InputError, "backend: 'nosuch' is not known"),
        (source, Serving(setting="nosuch"), InputError, "setting 'nosuch': the model has published, quick;"),
        (graph, Serving(setting="quick"), InputError, "an export has those that it was exported with"),
        (graph, Serving(precision="float16"), InputError, "an export has those that it was exported with"),
        (graph, Serving(backend="cpu"), InputError, "cpu takes a plan"),
    ):
        with pytest.raises(kind, match=match):
            write(tmp_path / "models", path, serving)
        assert not (tmp_path / "models").exists()


def test_an_onnx_export_needs_onnx(graph, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match=r"pip install 'sprfast\[onnx\]'"):
        write(tmp_path / "models", graph, Serving())


def test_the_command(run, source, tmp_path):
    code, out, _ = run(
        *("export", source, "--to", "triton-repository", "-o", tmp_path / "models", "--setting", "quick"),
        *("--max-batch", 8, "--queue", 5, "--queue-timeout", "500ms", "--instances", 2, "--device", "cpu", "--json"),
    )
    assert code == 0
    assert json.loads(out) == {
        **{
            "repository": str(tmp_path / "models"),
            "models": ["screw"],
            "max_batch": 8,
            "queue": 5,
            "queue_timeout": 0.5,
        },
        **{"instances": 2, "device": "cpu", "backend": "auto", "precision": "float32", "setting": "quick"},
    }
    assert config(tmp_path / "models")["max_batch_size"] == [8]


def test_the_command_refuses_in_one_sentence(run, source, tmp_path):
    for arguments, match in (
        (("--to", "triton-repository", "--size", "64"), "--size: --to triton-repository has no such option"),
        (("--to", "triton-repository", "--queue-timeout", "soon"), "'soon' is not a duration"),
        (("--to", "triton-repository", "--queue", "0"), "queue: 0 is not allowed"),
        (("--to", "plan", "--max-batch", "4"), "--max-batch: --to plan has no such option"),
        (("--to", "triton"), "--to triton: not known, choose from onnx, tensorrt, plan, triton-repository"),
    ):
        code, out, err = run("export", source, "-o", tmp_path / "models", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert match in err
        assert not (tmp_path / "models").exists()


def test_a_field_says_what_size_warms_up(small_model, tmp_path):
    path = tmp_path / "screw.safetensors"
    model_file.save(path, with_mode(small_model, error_field=field(32, 64)))
    write(tmp_path / "models", path, Serving())
    with PIL.Image.open(tmp_path / "models/screw/warmup/image") as image:
        assert image.size == (64, 32)


def test_the_name_that_repositories_of_version_0_1_0_import_is_still_there():
    old = importlib.import_module("sprfast.scale.triton_model")
    assert old.TritonPythonModel is triton_model.TritonPythonModel
