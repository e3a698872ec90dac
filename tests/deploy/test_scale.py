"""Past one process, as far as it goes without Ray; tests/scale has the rest, with the real one."""

import asyncio
import importlib.util
import itertools
import math
import os
import pickle
import types

import pytest
import torch

import sprfast
from sprfast.data import images
from sprfast.deploy.ray import data as ray_data
from sprfast.deploy.ray import serve as ray_serve
from sprfast.deploy.ray.device import device_under_ray
from sprfast.deploy.ray.results import COLUMNS
from sprfast.errors import BackendError, InputError, ModelFileError

without_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")


@without_ray
def test_without_ray_the_command_says_what_to_install(run, model_path, pictures, tmp_path):
    code, out, err = run("predict", model_path, *pictures, "--ray", "local", "-o", tmp_path / "out")
    assert (code, out) == (3, "")
    assert len(err.splitlines()) == 1
    assert "pip install 'sprfast[ray]'" in err
    assert not (tmp_path / "out").exists()
    with pytest.raises(BackendError, match=r"ray\.serve cannot be imported .*pip install 'sprfast\[ray\]'"):
        ray_serve.app({"model": str(model_path)})


class Request:
    """Of Starlette, as far as it is read; says how much of its body was taken."""

    def __init__(self, parts, **headers):
        self.headers, self._parts, self.taken = headers, parts, 0

    async def stream(self):
        for part in self._parts:
            self.taken += len(part)
            yield part


def test_a_body_is_read_up_to_its_limit_only():
    assert asyncio.run(ray_serve.read_body(Request([b"abc", b"de", b""]), 5)) == b"abcde"
    endless = Request(itertools.repeat(b"x" * 100))
    with pytest.raises(InputError, match="more than max_bytes, 1000"):
        asyncio.run(ray_serve.read_body(endless, 1000))
    assert endless.taken == 1100


@pytest.mark.parametrize("length", ["1001", "9" * 5000])
def test_a_body_that_says_it_is_too_long_is_not_read(length):
    request = Request([b"abc"], **{"content-length": length})
    with pytest.raises(InputError, match=f"{length[:15]} bytes are more than max_bytes, 1000"):
        asyncio.run(ray_serve.read_body(request, 1000))
    assert request.taken == 0


@pytest.fixture
def inspector(model_path, monkeypatch):
    """A replica without Ray: what waits for its batch is scored by `_score`, answers are (JSON,
    status).
    """
    fakes = {
        "ray.serve": types.SimpleNamespace(batch=lambda **options: lambda score: score),
        "starlette.responses": types.SimpleNamespace(JSONResponse=lambda document, status=200: (document, status)),
    }
    monkeypatch.setattr(ray_serve, "require", fakes.__getitem__)
    return ray_serve.Inspector(ray_serve.Options(str(model_path), "eager", "cpu", max_bytes=10**6))


def test_a_replica_answers_413_without_reading_on(inspector):
    endless = Request(itertools.repeat(b"x" * 10**5))
    endless.method, endless.url = "POST", types.SimpleNamespace(path="/")
    document, status = asyncio.run(inspector(endless))
    assert (status, document["verdict"], document["pred_score"]) == (413, "ERROR", None)
    assert endless.taken == 1_100_000


def test_one_image_without_memory_fails_none_beside_it_over_http(inspector, pictures, monkeypatch):
    bodies = [path.read_bytes() for path in pictures]
    expected = [result.pred_score for result in asyncio.run(inspector._score(bodies))]
    load = images.load_image

    def scarce(source, *args, **options):
        if source.getvalue() == bodies[1]:
            raise MemoryError
        return load(source, *args, **options)

    monkeypatch.setattr(images, "load_image", scarce)
    got = asyncio.run(inspector._score(bodies))
    assert [result.verdict.value == "ERROR" for result in got] == [index == 1 for index in range(len(bodies))]
    assert [result.pred_score for result in got[:1] + got[2:]] == expected[:1] + expected[2:]


@pytest.mark.parametrize("option", [("--workers", "2"), ("--worker-gpus", "1")])
def test_options_of_ray_are_refused_without_it(run, model_path, pictures, option):
    code, out, err = run("predict", model_path, *pictures, *option)
    assert (code, out) == (2, "")
    assert err == "sprfast: --workers and --worker-gpus are for --ray\n"


def test_a_pool_begins_with_no_more_than_all_its_workers():
    with pytest.raises(InputError, match="least: 3 is not allowed, expected 1 to 2"):
        ray_data.Pool(workers=2, least=3)


@pytest.mark.parametrize(
    ("option", "why"), [("--workers", "workers: 0 is not"), ("--worker-gpus", "gpus: -1.0 is not allowed")]
)
def test_a_pool_is_checked(run, model_path, pictures, tmp_path, option, why):
    value = why.split()[1].removesuffix(".0")
    code, out, err = run("predict", model_path, *pictures, "--ray", "local", "-o", tmp_path / "out", option, value)
    assert (code, out) == (2, "")
    assert why in err


def test_a_worker_answers_as_the_engine_and_each_bad_file_with_error(model_path, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = [pictures[0], tmp_path / "broken.png", *pictures[1:], tmp_path / "absent.png"]
    scorer = ray_data.Scorer(pickle.loads(pickle.dumps(ray_data.Model(str(model_path), "eager", "cpu"))))
    answers = scorer({"path": [path.name for path in files], "file": [os.fsencode(path) for path in files]})
    assert tuple(answers) == COLUMNS
    rows = [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]
    for path, row, result in zip(
        files, rows, sprfast.load(model_path, "eager", "cpu").predict(list(files)), strict=True
    ):
        assert row["path"] == path.name
        assert (row["verdict"], row["reason"]) == (result.verdict.value, result.reason)
        assert row["pred_score"] == (result.pred_score if math.isfinite(result.pred_score) else None)
    assert [row["path"] for row in rows if row["verdict"] == "ERROR"] == ["broken.png", "absent.png"]


def test_a_worker_takes_files_in_memory_and_leaves_further_columns_alone(model_path, pictures):
    model = ray_data.Model(str(model_path), "eager", "cpu")
    scorer = ray_data.Scorer(model)
    names = [f"s3://{path.name}" for path in pictures]
    answers = scorer({"path": names, "bytes": [path.read_bytes() for path in pictures], "camera": [1, 2, 3, 4]})
    assert (answers["path"], answers["camera"]) == (names, [1, 2, 3, 4])
    assert set(answers) == {*COLUMNS, "camera"}
    alone = scorer({"path": [str(path) for path in pictures]})
    assert answers["pred_score"] == alone["pred_score"]
    assert alone["path"] == [str(path) for path in pictures]


def test_a_worker_with_another_file_refuses(model_path):
    with pytest.raises(ModelFileError, match="this worker has another file there"):
        ray_data.Scorer(ray_data.Model(str(model_path), "eager", "cpu"), sha256="0" * 64)


@pytest.mark.parametrize(
    ("device", "gpus", "chosen"),
    [
        (None, 0.0, "cpu"),
        (None, 0.5, "cuda"),
        ("cuda", 1.0, "cuda"),
        ("cpu", 1.0, "cpu with 1 GPUs a worker: cuda needs a number above 0, and cpu none"),
        ("cuda", 0.0, "cuda with 0 GPUs a worker: cuda needs a number above 0, and cpu none"),
        ("cuda:1", 1.0, "'cuda:1' is not allowed, expected cpu or cuda; Ray chooses the GPU"),
    ],
)
def test_a_worker_uses_the_gpus_that_ray_counts(device, gpus, chosen):
    if chosen in ("cpu", "cuda"):
        assert device_under_ray(device, gpus) == chosen
    else:
        with pytest.raises(InputError, match=chosen):
            device_under_ray(device, gpus)


def test_what_is_opened_is_an_engine_or_a_runner(run, model_path, pictures, tmp_path):
    assert run("export", model_path, "--to", "plan", "-o", tmp_path / "screw.plan")[0] == 0
    of_model = sprfast.load(model_path, "cpu", "cpu")
    of_export = sprfast.load(tmp_path / "screw.plan", "auto", "cpu")
    assert type(of_model).__name__ == "Engine"
    assert type(of_export).__name__ == "Runner"
    scores = [[result.pred_score for result in each.predict(list(pictures))] for each in (of_model, of_export)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    for precision, setting, named in (
        ("float16", "published", "precision float16"),
        ("float32", "single", "setting single"),
    ):
        with pytest.raises(InputError, match=f"{named}: an export has the"):
            sprfast.load(tmp_path / "screw.plan", "auto", "cpu", precision, setting)


def test_threads_of_a_worker_are_its_own_affair(model_path):
    before = torch.get_num_threads()
    try:
        sprfast.load(model_path, "eager", "cpu", "float32", "published", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "model: name a model file"),
        ({"model": "m", "max_batch": "many"}, "max_batch: 'many' is not a number"),
        ({"model": "m", "max_batch": "0"}, "max_batch: 0 is not allowed"),
        ({"model": "m", "queue": "3"}, "queue: not known, choose from model, backend"),
        ({"model": "m", "min_replicas": "3"}, "min_replicas: 3 is more than max_replicas"),
        ({"model": "m", "gpus": "-1"}, "gpus: -1.0 is not allowed"),
        ({"model": "m", "health_period": "nan"}, "health_period: nan is not allowed"),
        ({"model": "m", "max_bytes": "0"}, "max_bytes: 0 is not allowed, expected 1 to 2147483648"),
    ],
)
def test_options_of_the_application_are_checked(given, why):
    with pytest.raises(InputError, match=why):
        ray_serve.app(given)
