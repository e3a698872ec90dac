"""Every call of TensorRT against the signatures of versions 10.13 and 11.4, which cannot be
installed where there is no GPU.
"""

import os
import shutil
import subprocess
import sys

import pytest

from support import ROOT

TYPINGS = ROOT / "tests" / "typings"
VERSIONS = ("10.13", "11.4")
MODULES = ("tensorrt", "tensorrt_build", "tensorrt_session")
SETTINGS = """
[mypy]
strict = true
warn_unreachable = true
follow_imports = silent
[mypy-cuda.*,pycuda.*]
ignore_missing_imports = true
"""


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs mypy on our modules, in one of which `old` became `new`: (exit code, what it said)."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "mypy.ini").write_text(SETTINGS)

    def call(version, module="tensorrt", old="", new=""):
        tree = folder / "tree" / "sprfast"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        for path in (ROOT / "sprfast").iterdir():
            if path.name != "backends":
                (tree / path.name).symlink_to(path)
        (tree / "kernels").symlink_to(ROOT / "kernels")
        shutil.copytree(ROOT / "sprfast" / "backends", tree / "backends", ignore=shutil.ignore_patterns("__pycache__"))
        changed = tree / "backends" / "sessions" / f"{module}.py"
        text = changed.read_text("utf-8")
        assert old in text
        changed.write_text(text.replace(old, new), "utf-8")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "--config-file", folder / "mypy.ini", "--cache-dir", folder / "cache"),
                *(part for name in MODULES for part in ("-m", f"sprfast.backends.sessions.{name}")),
            ],
            cwd=tree.parent,
            env={**os.environ, "MYPYPATH": str(TYPINGS / f"tensorrt-{version}")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return call


@pytest.mark.parametrize("version", VERSIONS)
def test_our_calls_are_those_of_both_versions(check, version):
    assert check(version) == (0, f"Success: no issues found in {len(MODULES)} source files\n")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("module", "old", "new", "call"),
    [
        ("tensorrt_build", "trt.OnnxParser(network, logger(flavour)[0])", "trt.OnnxParser(network)", "OnnxParser"),
        (
            "tensorrt_build",
            "set_shape(IMAGE, smallest, optimal, largest)",
            "set_shape(IMAGE, smallest, optimal)",
            "set_shape",
        ),
        ("tensorrt", "trt.Runtime(log)", "trt.Runtime()", "Runtime"),
        ("tensorrt_session", "set_tensor_address(name, address)", "set_tensor_address(address)", "set_tensor_address"),
        ("tensorrt_session", "execute_async_v3(self._device.stream)", "execute_async_v3()", "execute_async_v3"),
    ],
)
def test_a_call_that_lacks_an_argument_is_named(check, version, module, old, new, call):
    code, said = check(version, module, old, new)
    assert code == 1
    assert f'"{call}"' in said
    assert f"sprfast/backends/sessions/{module}.py" in said


def test_what_version_11_removed_is_noticed(check):
    arguments = ("tensorrt_build", "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16")
    assert check("10.13", *arguments)[0] == 0
    code, said = check("11.4", *arguments)
    assert code == 1
    assert 'error: "type[BuilderFlag]" has no attribute "FP16"' in said
