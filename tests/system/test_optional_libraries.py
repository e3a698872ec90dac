"""Libraries that are not part of the core install: what is missing says what to install, wherever
it is asked for.
"""

import ast
import sys
from pathlib import Path

import pytest

from sprfast.errors import BackendError
from sprfast.system.libraries import require
from support import ROOT

# What setup.py's `install_requires` brings, and the only files that may import anything else at
# their beginning or as it comes: they are imported by who has asked whether it is there.
CORE = {
    "torch",
    "numpy",
    "safetensors",
    "PIL",
    "simplejpeg",
    "sklearn",
    "scipy",
    "matplotlib",
    "typer",
    "click",
    "rich",
    "jinja2",
}
ASKED = {
    "backends/sessions/cuda.py": {"pycuda", "cuda"},  # by `open_device`
    "deploy/triton_server/model.py": {"triton_python_backend_utils"},  # there is one inside the server only
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
        found = {*imported(path)} - CORE - {"sprfast", "__future__", *sys.stdlib_module_names}
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
