"""An exported repository in the real Triton Inference Server: the engine's answers, and what
overload and bad requests come to.
"""

import concurrent.futures
import dataclasses
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import triton_server
from google.protobuf import text_format
from triton_server import Server
from tritonclient import grpc, http
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

import sprfast
from sprfast.config import Preprocessing
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.deploy.triton_server.repository import Serving, write
from sprfast.engine.engine import Engine
from sprfast.formats import model as model_file

pytestmark = pytest.mark.skipif(triton_server.unavailable() is not None, reason=str(triton_server.unavailable()))
PATIENCE = 60.0  # seconds that a request may wait
QUEUE = 3  # requests that may wait for the model slow
REFUSED = ("503", "StatusCode.UNAVAILABLE")


@pytest.fixture(scope="module")
def source(small_model, tmp_path_factory):
    """A model file named screw."""
    path = tmp_path_factory.mktemp("model") / "screw.safetensors"
    model_file.save(path, small_model)
    return path


@pytest.fixture(scope="module")
def large_model(small_model):
    """Takes long enough for an image that requests pile up."""
    return dataclasses.replace(small_model, preprocessing=Preprocessing(size=192))


@pytest.fixture(scope="module")
def server(source, small_model, large_model, tmp_path_factory):
    """A server on a CPU with the models screw, slow, lid, which is a plan, and seal, an ONNX graph
    that sprfast runs.
    """
    folder = tmp_path_factory.mktemp("server")
    write(folder / "1", source, Serving(max_batch=8, queue=64, queue_timeout=PATIENCE))
    model_file.save(folder / "slow.safetensors", large_model)
    write(
        folder / "2",
        folder / "slow.safetensors",
        Serving(max_batch=1, queue=QUEUE, queue_timeout=PATIENCE, device="cpu"),
    )
    export.export(small_model, folder / "lid.plan", Request("plan"))
    write(folder / "3", folder / "lid.plan", Serving(instances=2, device="cpu"))
    export.export(small_model, folder / "seal.onnx", Request("onnx"))
    write(folder / "4", folder / "seal.onnx", Serving(instances=2, device="cpu"))
    shutil.rmtree(folder / "4/seal-onnx")  # this server has no backend for it
    with Server([folder / each for each in "1234"], folder / "run") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(request, server):
    module = {"http": http, "grpc": grpc}[request.param]
    with module.InferenceServerClient(getattr(server, request.param)) as connected:
        yield connected


def ask(client, *contents, name="screw", **options):
    """The answer to a request with these image files, which have one length."""
    module = http if isinstance(client, http.InferenceServerClient) else grpc
    tensor = module.InferInput("IMAGE", [len(contents), len(contents[0])], "UINT8")
    tensor.set_data_from_numpy(np.stack([np.frombuffer(content, np.uint8) for content in contents]))
    return client.infer(name, [tensor], **options)


def text(answer, name, row=0):
    return bytes(answer.as_numpy(name)[row]).rstrip(b"\0").decode()


def check(answer, row, result):
    """The row of an answer is the engine's result, bit for bit."""
    assert answer.as_numpy("pred_score").dtype == np.float64
    assert answer.as_numpy("pred_score")[row, 0] == result.pred_score
    assert text(answer, "verdict", row) == result.verdict.value
    assert text(answer, "reason", row) == (result.reason or "")
    assert answer.as_numpy("anomaly_map").dtype == np.float32
    np.testing.assert_array_equal(answer.as_numpy("anomaly_map")[row], result.anomaly_map)


def at_once(server, requests, **options):
    """What becomes of requests, lists of contents, that are sent together by both protocols:
    answers, or the errors raised.
    """

    def one(index):
        module, address = ((http, server.http), (grpc, server.grpc))[index % 2]
        with module.InferenceServerClient(address) as client:
            try:
                return ask(client, *requests[index], **options)
            except InferenceServerException as error:
                return error

    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, range(len(requests))))


def test_answers_are_the_engines_bit_for_bit(client, small_model, pictures):
    engine = Engine(small_model, device="cpu")
    for path, result in zip(pictures, engine.predict(pictures), strict=True):
        check(ask(client, path.read_bytes()), 0, result)


def test_a_request_of_several_images(client, small_model, pictures, tmp_path):
    paths = [tmp_path / f"{index}.bmp" for index in range(4)]
    for path, picture in zip(paths, pictures, strict=True):
        PIL.Image.open(picture).save(path)
    answer = ask(client, *(path.read_bytes() for path in paths))
    for row, result in enumerate(Engine(small_model, device="cpu").predict(paths)):
        check(answer, row, result)


def test_only_the_outputs_that_are_asked_for_are_sent(client, pictures):
    module = http if isinstance(client, http.InferenceServerClient) else grpc
    answer = ask(client, pictures[0].read_bytes(), outputs=[module.InferRequestedOutput("verdict")])
    assert text(answer, "verdict") == "REJECT"
    assert answer.as_numpy("anomaly_map") is None


def test_files_of_any_length_go_in_one_batch_and_a_bad_one_disturbs_none(server, small_model, pictures):
    requests = [[path.read_bytes()] for path in pictures * 6]
    bad = [[b"<p>404</p>"], [pictures[0].read_bytes()[:-30]], [b"\0"]]
    counts = ("nv_inference_count", "nv_inference_exec_count", "nv_inference_request_success")
    before = {name: server.settled(name, model="screw") for name in counts}
    answers = at_once(server, requests[:12] + bad + requests[12:])
    results = Engine(small_model, device="cpu").predict(pictures)
    for index, answer in enumerate(answers[:12] + answers[15:]):
        check(answer, 0, results[index % 4])
    for answer, match in zip(
        answers[12:15], ("not a PNG, JPEG", "damaged or truncated", "not a PNG, JPEG"), strict=True
    ):
        assert text(answer, "verdict") == "ERROR"
        assert match in text(answer, "reason")
        assert np.isnan(answer.as_numpy("pred_score")).all()
        assert np.isnan(answer.as_numpy("anomaly_map")).all()
    images, batches, successes = (server.settled(name, model="screw") - before[name] for name in counts)
    assert images == successes == 27
    assert batches < 27  # some went together


@pytest.mark.parametrize(
    ("name", "target", "computes"), [("lid", "plan", "libsprfast.so"), ("seal", "onnx", "onnxruntime")]
)
def test_an_export_is_served_without_pytorch(server, small_model, pictures, tmp_path, name, target, computes):
    export.export(small_model, tmp_path / "export", Request(target))
    answers = at_once(server, [[path.read_bytes()] for path in pictures], name=name)
    for answer, result in zip(answers, sprfast.load(tmp_path / "export").predict(pictures), strict=True):
        check(answer, 0, result)
    maps = [
        Path(f"/proc/{number}/maps").read_text()
        for number, line in server.model_processes().items()
        if f"/{name}/" in line
    ]
    assert len(maps) == 2  # instances
    for loaded in maps:
        assert computes in loaded
        assert "libtorch" not in loaded


@pytest.mark.parametrize(
    ("shape", "dtype", "name", "match"),
    [
        ([1, 9], "FP32", "IMAGE", "inference input 'IMAGE' data-type is 'FP32', but model 'screw' expects 'UINT8'"),
        ([1, 3, 3], "UINT8", "IMAGE", "unexpected shape for input 'IMAGE'"),
        ([3], "UINT8", "IMAGE", "unexpected shape for input 'IMAGE'"),
        ([9, 1], "UINT8", "IMAGE", "inference request batch-size must be <= 8"),
        ([1, 9], "UINT8", "image", "unexpected inference input 'image'"),
    ],
)
def test_a_malformed_request_is_refused_with_what_was_expected(client, pictures, shape, dtype, name, match):
    module = http if isinstance(client, http.InferenceServerClient) else grpc
    tensor = module.InferInput(name, shape, dtype)
    tensor.set_data_from_numpy(np.zeros(shape, {"FP32": np.float32, "UINT8": np.uint8}[dtype]))
    with pytest.raises(InferenceServerException, match=match) as caught:
        client.infer("screw", [tensor])
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert text(ask(client, pictures[0].read_bytes()), "verdict") == "REJECT"


def test_an_overload_is_refused_at_once_and_what_was_taken_is_answered(server, large_model, pictures):
    counts = {"nv_inference_request_success": 0.0, "nv_inference_request_failure": 0.0}
    before = {name: server.settled(name, model="slow") for name in counts}
    waiting, done = [], threading.Event()

    def watch():
        while not done.is_set():
            waiting.append(server.metric("nv_inference_pending_request_count", model="slow"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    answers = at_once(server, [[path.read_bytes()] for path in pictures * 6], name="slow")
    done.set()
    watcher.join()
    refused = [answer for answer in answers if isinstance(answer, InferenceServerException)]
    assert {answer.status() for answer in refused} == set(REFUSED)
    assert all("Exceeds maximum queue size" in answer.message() for answer in refused)
    results = Engine(large_model, device="cpu").predict(pictures)
    for index, answer in enumerate(answers):
        if answer not in refused:
            check(answer, 0, results[index % 4])
    assert QUEUE < len(answers) - len(refused) < len(answers)
    assert 0 < max(waiting) <= QUEUE + 1  # and the one on its way to the model
    counts = {name: server.settled(name, model="slow") - before[name] for name in counts}
    # the server counts no request that it has not taken
    assert counts == {"nv_inference_request_success": len(answers) - len(refused), "nv_inference_request_failure": 0}
    (answer,) = at_once(server, [[pictures[0].read_bytes()]], name="slow")
    check(answer, 0, results[0])


def test_a_request_that_waits_longer_than_it_may_is_refused(server, large_model, pictures):
    before = server.settled("nv_inference_request_failure", model="slow", reason="REJECTED")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(at_once, server, [[pictures[0].read_bytes()]], name="slow")
        time.sleep(0.1)
        late = at_once(server, [[pictures[1].read_bytes()]] * 2, name="slow", timeout=1000)  # microseconds
        check(first.result()[0], 0, Engine(large_model, device="cpu").predict(pictures[0]))
    assert {answer.status() for answer in late} == set(REFUSED)
    assert all("Request timeout expired" in answer.message() for answer in late)
    assert server.settled("nv_inference_request_failure", model="slow", reason="REJECTED") - before == 2


def test_it_starts_warm_and_stops_without_a_trace_as_often_as_you_like(source, pictures, tmp_path):
    write(tmp_path / "models", source, Serving(max_batch=4, device="cpu"))
    shared = set(os.listdir("/dev/shm"))
    for index in range(2):
        server = Server([tmp_path / "models"], tmp_path / f"{index}")
        processes = server.model_processes()
        assert len(processes) == 1
        assert server.settled("nv_inference_count", model="screw") == 1 + 4  # the smallest batch and the largest
        (answer,) = at_once(server, [[pictures[0].read_bytes()]])
        assert text(answer, "verdict") == "REJECT"
        assert server.stop() == 0, server.log()
        assert "Traceback" not in server.log()
        assert [number for number in processes if Path(f"/proc/{number}").exists()] == []
        assert set(os.listdir("/dev/shm")) <= shared


def test_a_damaged_model_is_never_served(source, tmp_path):
    write(tmp_path / "models", source, Serving(device="cpu"))
    kept = tmp_path / "models/screw/1/model.sprfast"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"stopped with 1") as caught:
        Server([tmp_path / "models"], tmp_path / "run")
    assert re.search(r"ModelFileError: .*model.sprfast: tensor .* the file is damaged", str(caught.value))


def test_a_server_without_the_onnxruntime_backend_says_so(small_model, tmp_path):
    export.export(small_model, tmp_path / "seal.onnx", Request("onnx"))
    write(tmp_path / "models", tmp_path / "seal.onnx", Serving(device="cpu"))
    with pytest.raises(RuntimeError, match=r"failed to load 'seal-onnx' .*onnxruntime"):
        Server([tmp_path / "models"], tmp_path / "run")


def test_a_model_whose_process_dies_answers_with_errors_only(source, pictures, tmp_path):
    write(tmp_path / "models", source, Serving(device="cpu"))
    with Server([tmp_path / "models"], tmp_path / "run", "--exit-timeout-secs=1") as server:
        (number,) = server.model_processes()
        os.kill(number, signal.SIGKILL)
        for answer in at_once(server, [[path.read_bytes()] for path in pictures]):
            assert isinstance(answer, InferenceServerException)
            assert answer.status() in ("500", "StatusCode.INTERNAL")
        with http.InferenceServerClient(server.http) as client:
            assert client.is_model_ready("screw")  # whatever it says: who runs a server has to watch the metric
        assert server.settled("nv_inference_request_failure", model="screw", reason="BACKEND") == len(pictures)


def test_configurations_are_what_the_servers_own_parser_reads(small_model, tmp_path):
    name = 'odd "\\\n{ä'
    path = tmp_path / "screw.safetensors"
    model_file.save(path, dataclasses.replace(small_model, scoring_modes={name: small_model.scoring_mode}))
    write(tmp_path / "1", path, Serving(setting=name, max_batch=5, queue=6, queue_timeout=0.5, device="cuda:3"))
    export.export(small_model, tmp_path / "screw.onnx", Request("onnx"))
    write(tmp_path / "2", tmp_path / "screw.onnx", Serving())
    images, tensors = (
        text_format.Parse((tmp_path / each / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for each in ("1/screw", "2/screw-onnx")
    )
    assert {key: value.string_value for key, value in images.parameters.items()} == {
        "backend": "auto",
        "precision": "float32",
        "setting": name,
    }
    policy = images.dynamic_batching.default_queue_policy
    assert (images.max_batch_size, policy.max_queue_size, policy.default_timeout_microseconds) == (5, 6, 500_000)
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    (group,) = images.instance_group
    assert (group.kind, group.count, group.gpus) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1, [3])
    assert [sample.batch_size for sample in images.model_warmup] == [1, 5]
    assert [list(each.dims) for each in (*tensors.input, *tensors.output)] == [[3, 32, 32], [1, 32, 32], [1, 256, 256]]
    assert tensors.model_warmup[0].inputs["image"].zero_data
