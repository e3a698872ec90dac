"""Copies of the sources as in a fresh checkout, and commands that run in them."""

import os
import shutil
import subprocess
import sys

import pytest

from support import ROOT

LIBRARY = "sprfast/kernels/cpu/libsprfast.so"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
COMPILER_VARIABLES = {"CC", "CXX", "CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS"}
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def run(command, folder, **environment):
    given = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", *COMPILER_VARIABLES}
    } | environment
    done = subprocess.run(
        command, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy(folder):
    """The sources as in a fresh checkout."""
    for name in ("sprfast", "kernels", "bench", "include"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("libsprfast.*", "__pycache__", "results")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy2(ROOT / name, folder)
    return folder


def build(folder, **environment):
    """Build a copy of the package in `folder`: the folder to import it from."""
    checkout = copy(folder / "checkout")
    output = run([sys.executable, "setup.py", "--quiet", "build", "--build-lib", "../lib"], checkout, **environment)
    assert (folder / "lib" / LIBRARY).exists(), output
    return folder / "lib"
