"""What Triton's python backend runs, with a stand-in for the module that the server brings;
tests/scale has the server itself.
"""

import dataclasses
import json
import sys
import types

import numpy as np
import PIL.Image
import pytest

from sprfast.data import images
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.deploy.triton_server import model as triton_model
from sprfast.deploy.triton_server.repository import Serving, write
from sprfast.engine.engine import Engine
from sprfast.engine.runner import Runner
from sprfast.errors import BackendError
from sprfast.formats import export as export_file
from sprfast.kernels.cpu import library
from support.pbtxt import config

ort = pytest.importorskip("onnxruntime")
needs_kernels = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


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
