"""Every call of TensorRT against the signatures of versions 10.13 and 11.4, which cannot be
installed where there is no GPU.
"""

import os
import re
import subprocess
import sys

import pytest

from support import ROOT

MODULES = ("tensorrt", "tensorrt_build", "tensorrt_session")
SETTINGS = """
[mypy]
strict = true
warn_unreachable = true
follow_imports = silent
[mypy-cuda.*,pycuda.*]
ignore_missing_imports = true
"""
# What is broken in copies of our modules, and what mypy must say of it.
BROKEN = [
    ("tensorrt_build", "trt.OnnxParser(network, logger(flavour)[0])", "trt.OnnxParser(network)", '"OnnxParser"'),
    (
        "tensorrt_build",
        "set_shape(IMAGE, smallest, optimal, largest)",
        "set_shape(IMAGE, smallest, optimal)",
        '"set_shape"',
    ),
    ("tensorrt", "trt.Runtime(log)", "trt.Runtime()", '"Runtime"'),
    ("tensorrt_session", "set_tensor_address(name, address)", "set_tensor_address(name)", '"set_tensor_address"'),
    ("tensorrt_session", "execute_async_v3(self._device.stream)", "execute_async_v3()", '"execute_async_v3"'),
    (
        "tensorrt_session",
        "set_device_memory(self._features, self._size_of_features)",
        "set_device_memory(self._features)",
        '"set_device_memory"',
    ),
    # which version 11 no longer has
    ("tensorrt_build", "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16", '"type[BuilderFlag]" has no attribute "FP16"'),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Our modules, with copies beside them in which calls are broken."""
    tree = tmp_path_factory.mktemp("typed")
    sessions = tree / "sprfast" / "backends" / "sessions"
    sessions.mkdir(parents=True)
    for there in (sessions, sessions.parent, tree / "sprfast"):
        for path in (ROOT / there.relative_to(tree)).iterdir():
            if not (there / path.name).exists():
                (there / path.name).symlink_to(path)
    (tree / "sprfast" / "kernels").symlink_to(ROOT / "kernels")
    for module in MODULES:
        text = (sessions / f"{module}.py").read_text("utf-8")
        for name, old, new, _ in BROKEN:
            if name == module:
                assert text.count(old) == 1
                text = text.replace(old, new)
        (sessions / f"broken_{module}.py").write_text(text, "utf-8")
    (tree / "mypy.ini").write_text(SETTINGS)
    return tree


@pytest.mark.parametrize(
    ("version", "expected"),
    [pytest.param("10.13", BROKEN[:-1], marks=pytest.mark.process), ("11.4", BROKEN)],
)
def test_our_calls_are_those_of_the_version_and_each_broken_one_is_named(version, expected, tree):
    names = [f"sprfast.backends.sessions.{prefix}{name}" for name in MODULES for prefix in ("", "broken_")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--hide-error-context", "--no-pretty"),
            *("--cache-dir", ".cache", *(part for name in names for part in ("-m", name))),
        ],
        cwd=tree,
        env={**os.environ, "MYPYPATH": str(ROOT / "tests" / "typings" / f"tensorrt-{version}")},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(expected), done.stdout + done.stderr
    for module, *_, said in expected:
        assert [line for line in errors if re.search(rf"/broken_{module}\.py:.*{re.escape(said)}", line)], said
