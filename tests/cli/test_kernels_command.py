"""The command `kernels`, in processes without Triton's interpreter."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from sprfast.backends import registry as backends
from support import ROOT


def compile_kernels(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sprfast", "kernels", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_kernels_compile_one_network_for_one_gpu(monkeypatch, run):
    """The smoke case of the test below, with the compiler's answers made up."""
    pytest.importorskip("triton")
    from sprfast.backends import triton
    from sprfast.kernels.triton import compile_report

    asked = []
    monkeypatch.setattr(triton, "missing_compiler", lambda: None)
    monkeypatch.setattr(
        compile_report,
        "compile_launches",
        lambda launches, capability: asked.append((capability, len([*launches]))) or [],
    )
    monkeypatch.setattr(compile_report, "problems", lambda compiled: ["a problem"])
    code, out, _ = run("kernels", "--arch", "sm_90,sm_80", "--precision", "bfloat16", "--json")
    document = json.loads(out)
    assert (code, document["problems"]) == (1, ["a problem"])
    assert document["launches"]["convolutions"] == 17
    assert sum(document["launches"].values()) <= 55
    assert [capability for capability, _ in asked] == [90, 80]
    assert all(count > 20 for _, count in asked)


@pytest.mark.compile
def test_kernels_are_compiled_without_a_gpu_and_reported():
    done = compile_kernels("--arch", "sm_90", "--precision", "bfloat16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert {"perturb_conv3x3", "affine_swish_up2", "matmul"} <= {each["kernel"] for each in report["compiled"]}
    assert all(each["capability"] == 90 and each["registers"] > 0 for each in report["compiled"])
    table = compile_kernels("--arch", "sm_90", "--precision", "bfloat16").stdout
    assert "affine_swish_head" in table  # of many images
    assert "norm_swish_head" in table  # of one
    assert re.search(r"^\d+ launches for one image: \d+ of these kernels, 17 convolutions\nno problems$", table, re.M)
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [("--arch", "sm_75"), ("--precision", "fp8"), ("--size", "8")])
def test_kernels_refuse_what_they_do_not_know(arguments):
    done = compile_kernels(*arguments, "--quiet")
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_kernels_are_not_compiled_in_the_interpreter(run, monkeypatch):
    if backends.unavailable("triton") or torch.cuda.is_available():
        pytest.skip("no interpreter here")
    code, out, err = run("kernels")
    assert (code, out) == (3, "")
    assert "TRITON_INTERPRET is set" in err
