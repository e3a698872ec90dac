"""A wheel made from the sdist holds the CPU kernels; without a compiler there is one without
them.
"""

import re
import shutil
import sys
import tarfile
import zipfile

import pytest

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.kernels.cpu.library import INSTRUCTION_SETS
from support import ROOT
from support.checkouts import LIBRARY, PIP, copy, needs_compiler, run


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What the sdist unpacks to, with the wheel made of it in `dist`."""
    checkout, folder = copy(tmp_path_factory.mktemp("checkout")), tmp_path_factory.mktemp("sdist")
    run([sys.executable, "setup.py", "--quiet", "sdist"], checkout)
    with tarfile.open(next((checkout / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(folder.iterdir())
    run([*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", "."], unpacked)
    return unpacked


@pytest.fixture(scope="module")
def wheel(sources):
    return next((sources / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def objects(sources, wheel):
    return {path.stem: path for path in sources.glob("build/temp*/*.o")}


@pytest.mark.build
@needs_compiler
def test_the_wheel_is_of_its_platform_and_for_every_python(wheel):
    name, _, python, abi, platform = wheel.stem.split("-")
    assert (name, python, abi) == ("sprfast", "py3", "none")
    assert platform != "any"
    names = zipfile.ZipFile(wheel).namelist()
    assert LIBRARY in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sprfast").rglob("*.py")}
    assert {"sprfast/kernels/cpu/library.py", "sprfast/bench/__init__.py", "sprfast/py.typed", *modules} <= set(names)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".txt", ".o")) and "dist-info" not in name]


@pytest.mark.build
@needs_compiler
@pytest.mark.parametrize("instruction_set", ["", "generic"])
def test_the_installed_wheel_scores_an_export_without_torch(wheel, small_model, pictures, tmp_path, instruction_set):
    exported = tmp_path / "model"
    export.export(small_model, exported, Request("plan"))
    run([*PIP, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel], tmp_path)
    code = f"""
import sys
sys.modules["torch"] = None  # importing it fails
import sprfast
assert sprfast.__file__.startswith({str(tmp_path)!r}), sprfast.__file__
print(sprfast.load({str(exported)!r}).predict({str(pictures[0])!r}).pred_score)
"""
    given = {"PYTHONPATH": str(tmp_path / "site"), "SPRFAST_INSTRUCTION_SET": instruction_set}
    score = float(run([sys.executable, "-c", code], tmp_path, **given))
    expected = sprfast.load(exported).predict(pictures[0]).pred_score
    assert score == (pytest.approx(expected, rel=1e-5) if instruction_set else expected)


@pytest.mark.build
@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_function_can_be_merged_across_instruction_sets(objects):
    """A weak symbol in two objects is linked once: code for one instruction set could then run in
    another's place.
    """
    assert "generic" in objects
    for name, compiled in objects.items():
        if name in INSTRUCTION_SETS:
            symbols = [line.split()[-2:] for line in run(["nm", "--defined-only", compiled], "/").splitlines()]
            assert [symbol for kind, symbol in symbols if kind in "WwVvu"] == [], name
            tables = {f"spr_{precision}_{name}" for precision in ("float32", "bfloat16")} - {"spr_float32_amx"}
            assert {symbol for kind, symbol in symbols if kind.isupper()} == tables


@pytest.mark.build
@needs_compiler
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_what_every_processor_runs_has_no_instruction_of_avx(objects):
    for name in objects.keys() - {"avx2", "avx512", "amx"}:
        code = run(["objdump", "--disassemble", objects[name]], "/")
        assert "ret" in code, name
        assert not re.search(r"%[yz]mm|\tv[a-z]+ps", code), name


def test_without_a_compiler_the_build_succeeds_and_says_what_to_install(tmp_path):
    checkout = copy(tmp_path)
    stale = checkout / "kernels/cpu/libsprfast.so"
    stale.write_bytes(b"of an older build")
    output = run([sys.executable, "setup.py", "build_ext", "--inplace"], checkout, CXX="/nonexistent/c++")
    (said,) = [line for line in output.splitlines() if line.startswith("sprfast:")]
    assert "CPU kernels were not built" in said
    assert "/nonexistent/c++" in said
    assert "apt install g++" in said
    assert not stale.exists()
    code = "from sprfast.kernels.cpu import library; print(library.unavailable())"
    assert "/nonexistent/c++" in run([sys.executable, "-c", code], "/", PYTHONPATH=str(checkout))
