"""A process that forks after an engine was made: the child is told so in one sentence, and does not
hang; spawned ones work.
"""

import multiprocessing
import os
import subprocess
import sys

import pytest

import sprfast
from sprfast.backends import registry as backends
from sprfast.backends.sessions import session
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library

# Backends of an Engine, then exports for a Runner.
OPENERS = (
    "cpu",
    pytest.param("eager", marks=pytest.mark.process),
    pytest.param("onnxruntime", marks=pytest.mark.process),
    "plan",
    "onnx",
)

CHILD = """
import os, signal, sys
import numpy as np
import sprfast
from sprfast.errors import BackendError

path, name, source = sys.argv[1:]
loaded = sprfast.load(path) if name in ("plan", "onnx") else sprfast.load(path, name, "cpu")
direct = lambda: loaded.maps(np.zeros((1, 3, 32, 32), np.float32))
before = loaded.predict(source).pred_score  # its threads have run
prepared = [loaded.prepare(source)]

child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that hangs
    refused = 0
    uses = [lambda: loaded.predict(source), lambda: loaded.predict([source]), lambda: loaded.score(prepared)]
    for use in (*uses, loaded.self_test, direct):
        try:
            use()
        except BackendError as error:
            refused += "was made in" in str(error) and len(str(error).splitlines()) == 1
    os._exit(refused)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
assert loaded.predict(source).pred_score == before  # the parent goes on
"""


def unavailable(name):
    """Why this cannot run here, if so."""
    if name in ("cpu", "plan"):
        return library.unavailable()
    return session.unavailable("onnxruntime") if name == "onnx" else backends.unavailable(name)


@pytest.fixture(scope="module")
def files(small_model, tmp_path_factory):
    """A model file, which engines open, and the exports."""
    folder = tmp_path_factory.mktemp("fork")
    model_file.save(folder / "model", small_model)
    paths = dict.fromkeys(("cpu", "eager", "onnxruntime"), folder / "model")
    for name in ("plan", "onnx"):
        if unavailable(name) is None:
            paths[name] = folder / name
            export.export(small_model, paths[name], Request(name))
    return paths


@pytest.fixture(params=OPENERS)
def name(request):
    if reason := unavailable(request.param):
        pytest.skip(reason)
    return request.param


def test_a_forked_child_is_refused_and_the_parent_goes_on(name, files, pictures):
    command = [sys.executable, "-c", CHILD, str(files[name]), name, str(pictures[0])]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def score(path, name, source):
    """What a spawned process does."""
    opened = sprfast.load(path) if name in ("plan", "onnx") else sprfast.load(path, name, "cpu")
    return opened.predict(source).pred_score


def test_a_spawned_process_scores_alike(name, files, pictures):
    expected = score(files[name], name, pictures[0])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(score, (files[name], name, pictures[0])).get(timeout=120) == pytest.approx(
            expected, rel=1e-6
        )
