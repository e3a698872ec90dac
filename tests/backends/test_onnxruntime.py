"""onnxruntime sends nothing of a production line."""

import os
import re
import subprocess
import sys

import pytest

from support import ROOT


def test_it_is_imported_in_one_place():
    sources = [*(ROOT / "sprfast").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    of_it = re.compile(r"^ *(import onnxruntime\b|from onnxruntime\b|.*require\(.onnxruntime.)", re.MULTILINE)
    importing = [path for path in sources if of_it.search(path.read_text("utf-8"))]
    assert importing == [ROOT / "sprfast" / "backends" / "sessions" / "onnxruntime.py"]


@pytest.mark.process
@pytest.mark.parametrize("home", [True, False])
def test_it_keeps_and_says_nothing(tmp_path, home):
    code = (
        "from sprfast.backends.sessions import onnxruntime as runtime; from onnx import TensorProto, helper;"
        "make = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,));"
        "graph = helper.make_graph([helper.make_node('Abs', ['x'], ['y'])], 'g', [make('x')], [make('y')]);"
        "content = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8);"
        "runtime.OnnxRuntimeSession(content.SerializeToString(), 'cpu', 1, None, 'float32')"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    if home:
        environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
