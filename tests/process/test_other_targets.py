"""The engine as clang compiles it, and as compiled for aarch64 and run by an emulator: what Python
computes here, up to the order of sums.
"""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from support import ROOT
from support.checkouts import LIBRARY, build, run
from support.emulated_operators import COMPILER, EMULATOR, missing

pytestmark = pytest.mark.build
SYSROOT = "/usr/aarch64-linux-gnu"
# smaller than the network's input, larger, square or not
SIZES = ((32, 32), (33, 47), (20, 61), (97, 45), (150, 32), (3, 5), (131, 300))


@pytest.fixture(scope="module")
def plan(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    export.export(small_model, path, Request("plan"))
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Arrays of several sizes and depths, grey and colour, by the PNM files that they are in."""
    folder, random, written = tmp_path_factory.mktemp("frames"), np.random.default_rng(1), {}
    for index, (height, width) in enumerate(SIZES):
        for channels in ((), (3,)):
            for kind in (np.uint8, np.uint16):
                contrast = (0.3 + 0.35 * (index % 3)) * np.iinfo(kind).max
                array = (random.random((height, width, *channels)) * contrast).astype(kind)
                path = folder / f"{len(written):02}.pnm"
                header = f"P{6 if channels else 5}\n{width} {height}\n{np.iinfo(kind).max}\n"
                path.write_bytes(header.encode() + array.astype(array.dtype.newbyteorder(">")).tobytes())
                written[path] = array
    return written


def test_aarch64_gives_the_same_verdicts(plan, frames, tmp_path):
    if reason := missing():
        pytest.skip(reason)
    library = (build(tmp_path, CXX=COMPILER, CXXFLAGS="-Werror") / LIBRARY).parent
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/include", f"-L{library}", "-lsprfast"]
    compiler = COMPILER.replace("g++", "gcc")
    run([compiler, ROOT / "examples/c/station.c", *flags, "-o", "station"], tmp_path)
    command = [EMULATOR, "-L", SYSROOT, "-E", f"LD_LIBRARY_PATH={library}", tmp_path / "station", plan, *frames]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    runner, verdicts = sprfast.load(plan), set()
    for line, (path, array) in zip(done.stdout.splitlines(), frames.items(), strict=True):
        verdict, score, name = re.match(r"(\w+) (\S+) (.*?):", line).groups()
        expected = runner.predict(array, channel_order="rgb" if array.ndim == 3 else None)
        assert (name, verdict) == (str(path), expected.verdict.value)
        assert float(score) == pytest.approx(expected.pred_score, rel=1e-5)
        verdicts.add(verdict)
    assert verdicts == {"PASS", "REJECT"}


@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++: apt install clang")
def test_clang_gives_the_same_scores_without_a_warning(plan, pictures, tmp_path):
    folder = build(tmp_path, CXX="clang++", CXXFLAGS="-Werror")
    code = """
import sys
import sprfast
from sprfast.kernels.cpu import library
assert library.__file__.startswith(sys.argv[1])
print(library.available())
for result in sprfast.load(sys.argv[2]).predict(sys.argv[3:]):
    print(result.pred_score)
"""
    command = [sys.executable, "-c", code, folder, plan, *pictures]
    expected = [result.pred_score for result in sprfast.load(plan).predict(pictures)]
    for name in sprfast.kernels.cpu.library.available():
        said = run(command, tmp_path, PYTHONPATH=str(folder), SPRFAST_INSTRUCTION_SET=name).splitlines()
        assert said[0] == str(sprfast.kernels.cpu.library.available())
        assert [float(line) for line in said[1:]] == pytest.approx(expected, rel=1e-5)
