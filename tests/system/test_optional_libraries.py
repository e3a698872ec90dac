"""Libraries that are not part of the core install: what is missing says what to install, wherever
it is asked for.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.errors import BackendError
from sprfast.kernels.cpu import library
from sprfast.line import drift
from sprfast.system.libraries import TRAIN, missing, require
from support import ROOT

# What setup.py's `install_requires` brings, and the only files that may import anything else but
# `TRAIN` at their beginning or as it comes: they are imported by who has asked whether it is there.
CORE = {"numpy", "safetensors", "PIL", "simplejpeg", "typer", "click", "rich", "tomli"}
ASKED = {
    "backends/sessions/cuda.py": {"pycuda", "cuda"},  # by `open_device`
    "deploy/triton_server/model.py": {"triton_python_backend_utils"},  # there is one inside the server only
    "line/station/server.py": {"starlette", "uvicorn"},  # by the command, before it imports this
    "line/telemetry.py": {"prometheus_client"},
    "system/environment.py": {"pynvml"},
}


def imported(path):
    """Modules that a file imports, other than for types alone."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_whatever_is_optional_is_imported_in_the_one_way():
    others = {}
    for path in sorted((ROOT / "sprfast").rglob("*.py")):
        name = str(path.relative_to(ROOT / "sprfast"))
        found = {*imported(path)} - CORE - {*TRAIN} - {"sprfast", "__future__", *sys.stdlib_module_names}
        if found - ASKED.get(name, set()):
            others[name] = found
    assert others == {}


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match=r"onnx cannot be imported \(.*\): pip install 'sprfast\[onnx\]'") as caught:
        require("onnx", "onnx")
    assert caught.value.exit_code == 3


def test_a_library_that_does_not_load_says_so_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise OSError('libfoo.so: cannot open\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=r"cannot be imported \(libfoo.so: cannot open\): pip"):
        require("broken_library", "line")


def test_whether_a_library_is_there_is_found_out_without_importing_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert missing("numpy", "train") is None
    assert missing("torch", "train") == "needs torch, not installed here: run pip install 'sprfast[train]'"


# Each line of stdin is the arguments of a command, or a name of the package; what is printed of
# each: exit code, stdout, stderr.
PLAIN_INSTALL = f"""
import contextlib, io, json, sys
sys.modules |= dict.fromkeys({TRAIN})  # importing one of them fails
import sprfast
from sprfast.cli import app
for line in sys.stdin:
    given = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if isinstance(given, str):
                getattr(sprfast, given)
            else:
                sys.argv = ["sprfast", *given, "--quiet"]
                app.main()
        except SystemExit as stop:
            code = stop.code or 0
        except sprfast.errors.BackendError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def plain_install(*given):
    """What commands do where nothing of `TRAIN` is installed."""
    lines = "".join(json.dumps([*map(str, each)] if isinstance(each, tuple) else each) + "\n" for each in given)
    command = [sys.executable, "-c", PLAIN_INSTALL]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(library.unavailable() is not None, reason="needs the CPU kernels")
def test_a_plain_install_scores_exports(small_model, pictures, tmp_path):
    plan = tmp_path / "a.plan"
    export.export(small_model, plan, Request("plan"))
    answers = plain_install(
        ("predict", plan, *pictures, "-o", tmp_path / "out", "--json"),
        ("calibrate", plan, pictures[0].parent, "--false-reject-rate", 0.3, "--json"),
        ("info", plan, "--json"),
        ("doctor", "--json"),
    )
    assert [(code, err) for code, _, err in answers] == [(0, "")] * 4
    predicted, _, _, found = (json.loads(out) for _, out, _ in answers)
    assert predicted["backend"] == "cpu"
    results = sprfast.load(plan).predict(pictures)
    assert [row["pred_score"] for row in predicted["results"]] == [result.pred_score for result in results]
    assert all("pip install 'sprfast[figures]'" in row["note"] for row in predicted["results"])
    assert found["exports"]["cpu"] == "can run"
    assert "pip install 'sprfast[train]'" in found["backends"]["cpu"]
    assert found["torch"] is found["backend_auto"] is None


def test_a_plain_install_says_of_everything_else_what_to_install(model_path, pictures, tmp_path):
    good, new = pictures[0].parent, tmp_path / "new"
    answers = plain_install(
        ("train", good, "--time-limit", "1s", "-o", new),
        ("evaluate", model_path, good),
        ("import", model_path, "-o", new),
        ("info", model_path),
        ("calibrate", model_path, good),
        ("parity", model_path),
        ("predict", model_path, good),
        ("export", model_path, "--to", "plan", "-o", new),
        ("soak", model_path, "--frames", 9),
        ("kernels",),
        ("demo",),
        ("bench", model_path),
        ("bench", "show", model_path),
        ("study", good, model_path),
        "Engine",
        "train",
    )
    assert {code for code, _, _ in answers} == {3}
    assert [
        err for _, _, err in answers if "pip install 'sprfast[train]'" not in err or len(err.splitlines()) > 1
    ] == []


def test_a_line_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(BackendError, match=r"scipy.stats cannot be imported .*pip install 'sprfast\[line\]'"):
        drift.Drift([float(score) for score in range(500)])


@pytest.mark.parametrize("to", ["onnx", "tensorrt", "triton-repository"])
def test_exporting_without_onnx_says_what_to_install(run, model_path, tmp_path, monkeypatch, to):
    source = model_path
    if to == "triton-repository":
        source = tmp_path / "made.onnx"
        assert run("export", model_path, "--to", "onnx", "-o", source)[0] == 0
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = run("export", source, "--to", to, "-o", tmp_path / "out")
    assert (code, out) == (3, "")
    assert len(err.splitlines()) == 1
    assert "pip install 'sprfast[onnx]'" in err
    assert not Path(tmp_path / "out").exists()
