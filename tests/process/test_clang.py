"""The engine as clang compiles it: what Python computes here, up to the order of sums."""

import shutil
import sys

import pytest

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from support.checkouts import build, run

pytestmark = pytest.mark.build


@pytest.fixture(scope="module")
def plan(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    export.export(small_model, path, Request("plan"))
    return path


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
