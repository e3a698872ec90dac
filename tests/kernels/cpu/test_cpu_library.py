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
from support import ROOT

FOLDER = ROOT / "kernels" / "cpu"
INTERFACE = re.sub(r"//.*", "", (FOLDER / "interface.h").read_text())
STRUCTURES = {
    "spr_source": library.Source,
    "spr_conv3x3": library.Conv3x3,
    "spr_perturb_conv3x3": library.PerturbConv3x3,
    "spr_head": library.Head,
}
NUMBERS = {"void": None, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
DOCTOR = "import sys; from sprfast.cli import app as cli; sys.argv = ['sprfast', 'doctor', '--json']; cli.main()"
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


def swish(operators, x):
    y = np.empty_like(x)
    operators.swish(x.ctypes.data, y.ctypes.data, x.size)
    return y


@pytest.fixture
def unbuilt(tmp_path):
    """A checkout whose library was never built."""
    shutil.copytree(
        ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("libsprfast.*", "__pycache__")
    )
    (tmp_path / "sprfast").symlink_to(ROOT / "sprfast")
    return tmp_path


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_those_of_the_interface(name):
    fields = []
    for declaration in body(name).split(";")[:-1]:
        kind, names = re.fullmatch(r"(?:const )?(float|int32_t)(.*)", declaration.strip(), re.DOTALL).groups()
        pointers = {field.strip(" *"): "*" in (kind + field) for field in names.replace("* ", " *").split(",")}
        assert all(pointers.values()) == any(pointers.values()) == (kind == "float")
        fields += [(field, ctypes.c_void_p if kind == "float" else ctypes.c_int32) for field in pointers]
    assert list(STRUCTURES[name]._fields_) == fields


def test_operators_are_those_of_the_interface():
    functions = re.findall(r"(\w+) \(\*(\w+)\)\((.*?)\);", body("spr_operators"), re.DOTALL)
    assert [name for _, name, _ in functions] == [name for name, _ in library.Operators._fields_]
    for (returned, _, parameters), (name, function) in zip(functions, library.Operators._fields_, strict=True):
        expected = []
        for parameter in parameters.split(","):
            words = parameter.replace("const ", "").replace("*", " * ").split()
            if words[0] == "struct":
                expected.append(ctypes.POINTER(STRUCTURES[words[1]]))
            else:
                expected.append(ctypes.c_void_p if "*" in words else NUMBERS[words[0]])
        assert (function._restype_, function._argtypes_) == (NUMBERS[returned], tuple(expected)), name


@needs_library
def test_every_available_instruction_set_computes():
    x = np.linspace(-80, 80, 1001, dtype=np.float32)
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    assert library.available()[-1] == "generic"
    assert set(library.available()) <= set(library.INSTRUCTION_SETS)
    for name in library.available():
        np.testing.assert_allclose(swish(library.load(name), x), exact, rtol=1e-6, err_msg=name)
        assert library.load(name) is library.load(name)


@needs_library
def test_the_best_instruction_set_is_in_use_unless_the_variable_names_another():
    code = (
        "from sprfast.kernels.cpu import library as l; print(l.instruction_set(), l.operators() is "
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


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("order", ["library.operators(); import torch", "import torch; library.operators()"])
def test_torch_and_the_library_share_one_openmp(order):
    code = f"""
import pathlib, re
from sprfast.kernels.cpu import library
{order}
found = re.findall(r"/.*/libgomp\\.so.*", pathlib.Path("/proc/self/maps").read_text())
print(torch.ones(3).sum().item(), library.unavailable(), len(set(found)))
"""
    assert run(code) == "3.0 None 1\n"


def test_without_the_library_doctor_says_what_to_install(unbuilt):
    reason = json.loads(run(DOCTOR, unbuilt))["cpu_kernels"]
    assert "are not built" in reason
    assert f"{unbuilt / 'kernels/cpu/libsprfast.so'} is missing" in reason
    assert "`apt install g++`" in reason
    assert "\n" not in reason
    assert json.loads(run(DOCTOR, unbuilt))["backend_auto"] == "eager"


def test_the_builds_own_reason_is_repeated(unbuilt):
    (unbuilt / "kernels/cpu/libsprfast.txt").write_text("c++: error: no such option: -fopenmp")
    assert "(c++: error: no such option: -fopenmp): install" in run(REASON, unbuilt)


def test_a_library_that_does_not_load_is_told_from_one_that_is_not_there(unbuilt):
    (unbuilt / "kernels/cpu/libsprfast.so").write_bytes(b"no library at all")
    reason = run(REASON, unbuilt)
    assert "do not load" in reason
    assert "file too short" in reason or "invalid" in reason.lower()
    assert reason.count("\n") == 1


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="changes an ELF file")
def test_a_missing_openmp_is_named_with_its_package(unbuilt):
    (unbuilt / "kernels/cpu/libsprfast.so").write_bytes(
        library._PATH.read_bytes().replace(b"libgomp.so.1", b"libgomp.so.0")
    )
    reason = run(REASON, unbuilt)
    assert "libgomp.so.0: cannot open shared object file" in reason
    assert "install `libgomp1` (apt)" in reason


def test_the_interface_version_is_the_headers():
    assert re.search(r"SPR_INTERFACE_VERSION (\d+)", INTERFACE)[1] == str(library.INTERFACE_VERSION)


@needs_library
def test_a_library_of_another_interface_is_refused_before_it_is_called():
    reason = run(REASON.replace(";", "; library.INTERFACE_VERSION += 1;", 1))
    assert "were built from other sources: install sprfast again" in reason


@needs_library
def test_doctor_names_the_instruction_set():
    kernels = json.loads(run(DOCTOR, **{library.VARIABLE: "generic"}))["cpu_kernels"]
    assert kernels == {"instruction_set": "generic", "available": list(library.available()), "threads": 1}


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_library_exports_its_interface_alone():
    names = subprocess.run(
        ["nm", "-D", "--defined-only", library._PATH], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[-1] for line in names.splitlines()] == ["spr_interface_version", "spr_operators"]
