"""Repositories for Triton Inference Server: what is in them, and what its python backend runs;
tests/scale has the server itself.
"""

import dataclasses
import importlib
import json
import re
import sys
import types

import numpy as np
import PIL.Image
import pytest

from sprfast.data import images
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.deploy.triton_server import model as triton_model
from sprfast.deploy.triton_server import repository as triton_repository
from sprfast.deploy.triton_server.repository import Serving, write
from sprfast.engine.engine import Engine
from sprfast.engine.runner import Runner
from sprfast.errors import BackendError, InputError, ModelFileError
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from support.scoring_mode_cases import field, with_mode, with_settings

ort = pytest.importorskip("onnxruntime")
FILES = ["screw/1/model.py", "screw/1/model.sprfast", "screw/config.pbtxt", "screw/warmup/image"]
needs_kernels = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


@pytest.fixture
def source(small_model, tmp_path):
    """A model file named screw, with settings."""
    path = tmp_path / "screw.safetensors"
    model_file.save(path, with_settings(small_model))
    return path


@pytest.fixture
def graph(small_model, tmp_path):
    """An ONNX export named screw, of 32x48."""
    path = tmp_path / "screw.onnx"
    export.export(small_model, path, Request("onnx", size=(32, 48)))
    return path


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def config(folder, name="screw"):
    """The configuration as mappings of names to lists of values."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}]|[^\s{}"]+', (folder / name / "config.pbtxt").read_text("ascii"))

    def message(depth=0):
        fields = {}
        while tokens and tokens[0] != "}":
            key = tokens.pop(0)
            if key.endswith(":"):
                value = tokens.pop(0)
                value = int(value) if re.fullmatch(r"-?\d+", value) else value
            else:
                assert tokens.pop(0) == "{"
                value = message(depth + 1)
                assert tokens.pop(0) == "}"
            fields.setdefault(key.rstrip(":"), []).append(value)
        return fields

    fields = message()
    assert not tokens
    return fields


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
    odd.write_bytes(source.read_bytes())
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(source.read_bytes()[:-1])
    for path, serving, kind, match in (
        (fixed, Serving(), InputError, "fixed to batches of 2"),
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


# --- what the python backend runs, with a stand-in for the module that the server brings


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name, capsule):
        producer = types.SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
        return cls(name, np.from_dlpack(producer))

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.error, self.tensors = error, {tensor.name: tensor.array for tensor in output_tensors}

    def text(self, name, row=0):
        return bytes(self.tensors[name][row]).rstrip(b"\0").decode()


@pytest.fixture
def serve(monkeypatch):
    """Open a repository's model as the server does."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, str
    module.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def opened(repository, name="screw"):
        given = {
            entry["key"][0][1:-1]: entry["value"][0]["string_value"][0][1:-1]
            for entry in config(repository, name)["parameters"]
        }
        document = {"parameters": {key: {"string_value": value} for key, value in given.items()}}
        model = triton_model.TritonPythonModel()
        place = {"model_repository": str(repository / name), "model_version": "1"}
        model.initialize(
            {"model_config": json.dumps(document), "model_instance_kind": "CPU", "model_instance_device_id": "0"}
            | place,
        )
        return model

    return opened


def request(*contents):
    return {"IMAGE": Tensor("IMAGE", np.stack([np.frombuffer(content, np.uint8) for content in contents]))}


def test_one_image_without_memory_fails_no_request_beside_it(
    small_model, source, pictures, tmp_path, serve, monkeypatch
):
    write(tmp_path / "models", source, Serving(backend="eager", device="cpu"))
    model = serve(tmp_path / "models")
    contents, load = [path.read_bytes() for path in pictures], images.load_image
    expected = [result.pred_score for result in Engine(small_model, "eager", "cpu").predict(pictures)]

    def scarce(file, *args, **options):
        if file.getvalue() == contents[1]:
            raise MemoryError
        return load(file, *args, **options)

    monkeypatch.setattr(images, "load_image", scarce)
    responses = model.execute([request(content) for content in contents])
    assert [response.error for response in responses] == [None] * len(contents)
    assert responses[1].text("verdict") == "ERROR"
    got = [float(response.tensors["pred_score"][0, 0]) for response in responses]
    assert got[:1] + got[2:] == expected[:1] + expected[2:]


def test_requests_of_any_lengths_have_the_engines_answers_and_their_own(small_model, source, pictures, tmp_path, serve):
    write(tmp_path / "models", source, Serving(backend="eager", device="cpu"))
    model = serve(tmp_path / "models")
    contents = [path.read_bytes() for path in pictures]
    expected = Engine(small_model, "eager", "cpu").predict(pictures)
    same = tmp_path / "same.bmp"
    PIL.Image.open(pictures[3]).save(same)
    other = tmp_path / "other.bmp"
    PIL.Image.open(pictures[0]).save(other)
    pair = request(same.read_bytes(), other.read_bytes())
    responses = model.execute(
        [request(contents[0]), request(b"<p>404</p>"), pair, request(contents[1]), request(contents[2][:-30])]
    )
    assert len(responses) == 5
    for response, row, result in (
        (responses[0], 0, expected[0]),
        (responses[2], 0, expected[3]),
        (responses[2], 1, expected[0]),
        (responses[3], 0, expected[1]),
    ):
        assert response.tensors["pred_score"][row, 0] == result.pred_score
        assert response.text("verdict", row) == result.verdict.value
        assert response.text("reason", row) == ""
        np.testing.assert_array_equal(response.tensors["anomaly_map"][row], result.anomaly_map)
    for response, match in ((responses[1], "not a PNG, JPEG"), (responses[4], "damaged or truncated")):
        assert response.text("verdict") == "ERROR"
        assert match in response.text("reason")
        assert np.isnan(response.tensors["pred_score"]).all()
        assert np.isnan(response.tensors["anomaly_map"]).all()


def test_exports_are_served_as_runners_score(graph, pictures, tmp_path, serve):
    picture = tmp_path / "wide.png"
    PIL.Image.open(pictures[0]).resize((48, 32)).save(picture)
    write(tmp_path / "models", graph, Serving(device="cpu"))
    (response, small) = serve(tmp_path / "models").execute(
        [request(picture.read_bytes()), request(pictures[0].read_bytes())]
    )
    assert response.tensors["pred_score"][0, 0] == Runner(export_file.read(graph)).predict(picture).pred_score
    assert small.text("verdict") == "ERROR"
    assert "this export takes 32x48 only" in small.text("reason")


def test_a_backend_that_fails_is_an_error_for_each_request(source, pictures, tmp_path, serve, monkeypatch):
    write(tmp_path / "models", source, Serving(backend="eager", device="cpu"))
    model = serve(tmp_path / "models")
    monkeypatch.setattr("os.getpid", lambda: 1)  # an engine refuses to work in a fork of its process
    responses = model.execute([request(pictures[0].read_bytes())] * 2)
    assert len(responses) == 2
    for response in responses:
        assert response.error.startswith("sprfast: this engine was made in process")
        assert response.tensors == {}


def test_what_computes_something_else_does_not_get_ready(small_model, graph, tmp_path, serve):
    other = dataclasses.replace(
        small_model, weights={name: 1.01 * value for name, value in small_model.weights.items()}
    )
    export.export(other, tmp_path / "other.onnx", Request("onnx", size=(32, 48)))
    mixed = dataclasses.replace(export_file.read(graph), graph=export_file.read(tmp_path / "other.onnx").graph)
    export_file.write(graph, mixed)
    write(tmp_path / "models", graph, Serving(device="cpu"))
    with pytest.raises(BackendError, match="the error map of the probe image is off by"):
        serve(tmp_path / "models")


def test_a_field_says_what_size_warms_up(small_model, tmp_path):
    path = tmp_path / "screw.safetensors"
    model_file.save(path, with_mode(small_model, error_field=field(32, 64)))
    write(tmp_path / "models", path, Serving())
    with PIL.Image.open(tmp_path / "models/screw/warmup/image") as image:
        assert image.size == (64, 32)


def test_the_name_that_repositories_of_version_0_1_0_import_is_still_there():
    old = importlib.import_module("sprfast.scale.triton_model")
    assert old.TritonPythonModel is triton_model.TritonPythonModel
