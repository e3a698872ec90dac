"""The real Ray Serve over HTTP: the engine's verdicts, batches, and what overload and bad requests
come to.
"""

import asyncio
import concurrent.futures
import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import ray
import torch
from ray import serve

import sprfast
from sprfast.deploy.ray import serve as ray_serve
from sprfast.formats import model as model_file

PORT = 18231


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def saved(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "screw.safetensors"
    model_file.save(path, small_model)
    return path


@pytest.fixture
def served(cluster, saved):
    serve.run(
        ray_serve.app({"model": str(saved), "backend": "cpu", "device": "cpu", "max_queued": "200"}), route_prefix="/"
    )
    yield
    serve.delete("default")


def health():
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=60) as response:
        assert response.status == 200
        return json.loads(response.read())


def post(body, method="POST"):
    """(status, document) of the answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{PORT}/", body, method=method), timeout=60
        ) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else text.decode()


def until_settled(count):
    """Wait until a number has not changed for five seconds."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 5:
        time.sleep(0.1)
        if (now := count()) != last:
            last, since = now, time.monotonic()


def png(seed, size=32):
    file = io.BytesIO()
    random = np.random.default_rng(seed)
    PIL.Image.fromarray((random.random((size, size, 3)) * 255 * random.uniform(0.2, 1.0)).astype(np.uint8)).save(
        file, "PNG"
    )
    return file.getvalue()


def test_answers_are_the_engines(served, saved):
    predictor = sprfast.load(saved, "cpu", "cpu")
    files = [png(seed) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, files))
    for body, (status, document) in zip(files, answers, strict=True):
        expected = predictor.predict(io.BytesIO(body))
        assert status == 200
        assert (document["pred_score"], document["verdict"]) == (expected.pred_score, expected.verdict.value)
        assert document["model"] == predictor.model_sha256
    assert {document["verdict"] for _, document in answers} == {"PASS", "REJECT"}


def test_what_is_no_image_is_an_error_and_disturbs_nobody(served):
    bodies = [png(1), b"no image", png(2), b"", png(3)[:50]]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(post, bodies))
    assert [status for status, _ in answers] == [200, 422, 200, 422, 422]
    for status, document in answers:
        assert (document["verdict"] == "ERROR") == (status == 422)
        assert bool(document.get("reason")) == (status == 422)
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=60)


def test_health_says_what_is_served(served, small_model):
    before = health()
    assert {name: before[name] for name in ("status", "model", "backend", "precision")} == {
        "status": "OK",
        "model": small_model.sha256,
        "backend": "cpu",
        "precision": "float32",
    }
    post(png(1))
    assert health() == before | {"images": before["images"] + 1, "batches": before["batches"] + 1}


def test_a_file_above_the_limit_is_not_looked_at(cluster, saved):
    serve.run(ray_serve.app({"model": str(saved), "backend": "cpu", "max_bytes": "1000"}), route_prefix="/")
    try:
        status, document = post(png(1))
        assert (status, document["verdict"], document["pred_score"]) == (413, "ERROR", None)
        assert "more than max_bytes, 1000" in document["reason"]
        assert post(b"no image")[0] == 422
        assert health()["images"] == 1
    finally:
        serve.delete("default")


def test_a_replica_whose_weights_rot_in_memory_is_replaced(cluster, saved, monkeypatch):
    class Rotting(ray_serve.Inspector):
        async def __call__(self, request):
            if request.method == "PUT":
                with torch.no_grad():
                    next(self._predictor._session.backend.network.parameters()).add_(1.0)
            return await super().__call__(request)

    monkeypatch.setattr(ray_serve, "Inspector", Rotting)
    serve.run(ray_serve.app({"model": str(saved), "backend": "eager", "health_period": "0.5"}), route_prefix="/")
    try:
        right = post(png(1))
        assert right[0] == 200
        assert post(png(1), method="PUT")[0] == 405
        assert post(png(1))[1]["pred_score"] != right[1]["pred_score"]
        deadline = time.monotonic() + 60
        while (answer := post(png(1)))[0] != 200 or answer[1]["pred_score"] != right[1]["pred_score"]:
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
    finally:
        serve.delete("default")


@pytest.fixture
def gated(cluster, saved, tmp_path, monkeypatch):
    """Serves with given options a replica that scores nothing before the file that this gives
    exists.
    """
    gate = tmp_path / "gate"

    class Gated(ray_serve.Inspector):
        async def _score(self, bodies):
            while not gate.exists():
                await asyncio.sleep(0.01)
            return await super()._score(bodies)

    def serving(**options):
        monkeypatch.setattr(ray_serve, "Inspector", Gated)
        serve.run(ray_serve.app({"model": str(saved), "backend": "cpu", **options}), route_prefix="/")
        return gate

    yield serving
    serve.delete("default")


def test_beyond_the_bound_requests_are_refused_and_what_was_taken_is_answered(gated, saved):
    gate = gated(max_batch=2, max_queued=3)
    bodies = [png(seed) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        waiting = [pool.submit(post, body) for body in bodies]
        until_settled(lambda: sum(future.done() for future in waiting))
        gate.touch()
        answers = [future.result() for future in waiting]
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    # a replica has two batches of two; as many may be on their way to it
    assert 3 <= statuses.count(200) <= 4 + 3 + 4, statuses
    predictor = sprfast.load(saved, "cpu", "cpu")
    for body, (status, answer) in zip(bodies, answers, strict=True):
        if status == 200:
            assert answer["pred_score"] == predictor.predict(io.BytesIO(body)).pred_score
        else:
            assert "backpressure" in answer
    assert post(bodies[0])[0] == 200


def test_what_comes_together_is_scored_together(cluster, saved):
    given = {"model": str(saved), "backend": "cpu", "max_batch": 8, "batch_wait": 2}
    serve.run(ray_serve.app(given), route_prefix="/")
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert {status for status, _ in pool.map(post, [png(seed) for seed in range(16)])} == {200}
        served = health()
        assert served["images"] == 16
        assert 2 <= served["batches"] <= 4
    finally:
        serve.delete("default")


def test_serve_run_takes_options_as_text_and_refuses_wrong_ones(saved):
    command = [Path(sys.executable).with_name("serve"), "run", "--non-blocking", "sprfast.deploy.ray.serve:app"]
    done = subprocess.run(
        [*command, f"model={saved}", "max_batch=many"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert "max_batch: 'many' is not a number" in done.stderr
