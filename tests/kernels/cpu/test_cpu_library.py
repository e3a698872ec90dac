"""The loader of the CPU kernels: what it loads, what it refuses, and what a machine without them
sees.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sprfast.kernels.cpu import library
from support import ROOT, cpu_operators

FOLDER = ROOT / "kernels" / "cpu"
INTERFACE = re.sub(r"//.*", "", (FOLDER / "interface.h").read_text())
STRUCTURES = {
    "spr_source": library.Source,
    "spr_conv3x3": cpu_operators.Conv3x3,
    "spr_perturb_conv3x3": cpu_operators.PerturbConv3x3,
    "spr_head": cpu_operators.Head,
    "spr_layer": library.Layer,
}
TABLES = {"spr_operators": cpu_operators.Operators, "spr_interface": library.Interface}
VALUES = {"void": None, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "double": ctypes.c_double}
DOCTOR = "import sys; from sprfast.cli import app as cli; sys.argv = ['sprfast', 'doctor', '--json', '-q']; cli.main()"
REASON = "from sprfast.kernels.cpu import library; print(library.unavailable())"
needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


def body(name):
    return re.search(rf"struct {name} {{(.*?)\n}};", INTERFACE, re.DOTALL)[1]


def run(code, path=ROOT, **environment):
    """What a fresh Python prints, with the package of `path`."""
    given = {name: value for name, value in os.environ.items() if name != library.VARIABLE}
    given |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(path), **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def unbuilt(tmp_path):
    """A checkout whose library was never built."""
    shutil.copytree(
        ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("libsprfast.*", "__pycache__")
    )
    (tmp_path / "sprfast").symlink_to(ROOT / "sprfast")
    return tmp_path


def kind_of(declared):
    """What ctypes has for a type of C, which may have a name behind it."""
    if "(*" in declared:
        return library.OBSERVER
    words = declared.replace("const", " ").replace("*", " * ").split()
    if "*" not in words:
        return VALUES[words[0]]
    if words[0] == "struct" and words[1] in STRUCTURES:
        return ctypes.POINTER(STRUCTURES[words[1]])
    return ctypes.c_char_p if (words[0], words.count("*")) == ("char", 1) else ctypes.c_void_p


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_those_of_the_interface(name):
    fields = []
    for declaration in body(name).split(";")[:-1]:
        kind, names = re.fullmatch(r"((?:const )?(?:struct )?\w+)(.*)", declaration.strip(), re.DOTALL).groups()
        fields += [(field.strip(" *"), kind_of(kind + field)) for field in names.split(",")]
    assert list(STRUCTURES[name]._fields_) == fields


@pytest.mark.parametrize("table", TABLES)
def test_functions_are_those_of_the_interface(table):
    functions = re.findall(r"([\w *]+) \(\*(\w+)\)\((.*?)\);", body(table), re.DOTALL)
    fields = [field for field in TABLES[table]._fields_ if field[0] != "version"]
    assert fields
    for (returned, name, parameters), (known, function) in zip(functions, fields, strict=table == "spr_interface"):
        assert name == known
        expected = () if parameters == "void" else tuple(map(kind_of, parameters.split(",")))
        assert (function._restype_, function._argtypes_) == (kind_of(returned), expected), name


@needs_library
def test_every_available_instruction_set_computes(monkeypatch):
    x = np.linspace(-80, 80, 1001, dtype=np.float32)
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    assert library.available()[-1] == "generic"
    assert set(library.available()) <= set(library.INSTRUCTION_SETS)
    for name in library.available():
        monkeypatch.setattr(library, "operators", lambda precision="float32", name=name: library.load(name, precision))
        np.testing.assert_allclose(cpu_operators.swish(x), exact, rtol=1e-6, err_msg=name)


@needs_library
def test_the_best_instruction_set_is_in_use_unless_the_variable_names_another():
    code = (
        "from sprfast.kernels.cpu import library as l; print(l.instruction_set(), l.operators() == "
        "l.load(l.instruction_set()))"
    )
    assert run(code) == f"{library.available()[0]} True\n"
    assert run(code, **{library.VARIABLE: ""}) == f"{library.available()[0]} True\n"
    assert run(code, **{library.VARIABLE: "generic"}) == "generic True\n"


@needs_library
def test_an_unknown_instruction_set_is_refused_in_one_sentence():
    choice = f"choose from {', '.join(library.available())}"
    with pytest.raises(ValueError, match=f"^instruction set 'sse9' is not known: {choice}$"):
        library.load("sse9")
    assert run(REASON, **{library.VARIABLE: "sse9"}) == f"{library.VARIABLE} is 'sse9', which is not known: {choice}\n"


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_importing_loads_nothing():
    code = """
from sprfast.kernels.cpu import library
loaded = lambda: "libsprfast" in open("/proc/self/maps").read()
before = loaded()
library.operators()
print(before, loaded())
"""
    assert run(code) == "False True\n"


def test_without_the_library_doctor_says_what_to_install(unbuilt):
    reason = json.loads(run(DOCTOR, unbuilt))["cpu_kernels"]
    assert "are not built" in reason
    assert f"{unbuilt / 'kernels/cpu/libsprfast.so'} is missing" in reason
    assert "`apt install g++`" in reason
    assert "\n" not in reason
    assert json.loads(run(DOCTOR, unbuilt))["backend_auto"] == "eager"


def test_the_builds_own_reason_is_repeated(unbuilt):
    (unbuilt / "kernels/cpu/libsprfast.txt").write_text("c++: error: no such option: -O9")
    assert "(c++: error: no such option: -O9): install" in run(REASON, unbuilt)


def test_a_library_that_does_not_load_is_told_from_one_that_is_not_there(unbuilt):
    (unbuilt / "kernels/cpu/libsprfast.so").write_bytes(b"no library at all")
    reason = run(REASON, unbuilt)
    assert "do not load" in reason
    assert "file too short" in reason or "invalid" in reason.lower()
    assert reason.count("\n") == 1


def test_constants_are_the_headers():
    assert re.search(r"SPR_INTERFACE_VERSION (\d+)", INTERFACE)[1] == str(library.INTERFACE_VERSION)
    assert re.search(r"SPR_ERROR_SIZE (\d+)", INTERFACE)[1] == str(library.ERROR_SIZE)


@needs_library
def test_a_library_of_another_interface_is_refused_before_it_is_called():
    reason = run(REASON.replace(";", "; library.INTERFACE_VERSION += 1;", 1))
    assert "were built from other sources: install sprfast again" in reason


@needs_library
def test_doctor_names_the_instruction_set():
    kernels = json.loads(run(DOCTOR, **{library.VARIABLE: "generic"}))["cpu_kernels"]
    assert kernels == {
        "instruction_set": "generic",
        "available": list(library.available()),
        "bfloat16": "generic",
        "threads": 1,
    }


@needs_library
@pytest.mark.skipif(library.amx_missing() is None, reason="has AMX")
def test_bfloat16_without_amx_is_refused_in_one_sentence_unless_a_set_is_named():
    reason = json.loads(run(DOCTOR))["cpu_kernels"]["bfloat16"]
    assert reason == (
        f"precision bfloat16 is for processors with AMX, and {library.amx_missing()}; {library.VARIABLE} set to one "
        f"of {', '.join(library.available('bfloat16'))} computes it in plain loops, more slowly than float32"
    )
    assert "amx" not in library.available("bfloat16")
    with pytest.raises(ValueError, match=r"^instruction set 'amx' does not run float32"):
        library.load("amx")


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_library_exports_its_interface_alone():
    names = subprocess.run(
        ["nm", "-D", "--defined-only", library._PATH], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1] for line in names.splitlines()}
    assert {name for name in exported if not name.startswith("sprfast_")} == {"spr_interface"}
