"""Imports point down the table of rooms only, and what promises to need no torch needs none."""

import subprocess
import sys

import pytest

from support import ROOT, rooms

MODULES = rooms.modules()

# Modules that import torch, or another heavy library, when they are imported; every other one must
# not.
HEAVY = {
    "system": {"devices", "environment", "process_group"},
    "method": {"scoring", "sde", "unet"},
    "formats": {"model"},
    "data": {"corruption"},
    "lowering": {"fold", "probe"},
    "backends": {
        "cuda_graph",
        "eager",
        "group_norm",
        "launch_list",
        "model_sessions",
        "tensors",
        "triton",
        "convolved_draws",
    },
    "engine": {"engine"},
    "evaluation": {"choice", "parity"},
    "training": {"checkpoint", "loader", "train"},
    "deploy": {"export"},
}


def test_modules_are_found():
    assert {"errors", "method.unet", "backends.eager", "kernels.cpu.library", "bench.core.timing"} <= MODULES.keys()
    assert rooms.imported(MODULES["backends.eager"], MODULES).keys() >= {
        "method.scoring",
        "method.unet",
        "formats.model",
    }
    assert "evaluation.parity" in rooms.imported(MODULES["cli.parity"], MODULES)  # inside a function


def test_every_module_is_in_a_room():
    assert {rooms.room_of(name) for name in MODULES} == {*rooms.ROOMS, *rooms.BESIDE}
    assert {path.name for path in (ROOT / "sprfast").iterdir()} - {"__pycache__"} == {
        *(f"{name}.py" for name in ("__init__", "__main__", *rooms.FACE)),
        *rooms.ROOMS[1:],
        "py.typed",
    }


@pytest.mark.parametrize("room", [*rooms.ROOMS, *rooms.BESIDE])
def test_imports_point_down_only(room):
    found = rooms.arrows().get(room, {})
    assert not [example for target, example in found.items() if target not in rooms.allowed(room)]


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_importing_does_not_import_torch(room):
    names = [
        f"sprfast.{name}"
        for name in MODULES
        if rooms.room_of(name) == room and name.rpartition(".")[2] not in HEAVY.get(room, ())
    ]
    names += [f"sprfast.{name}" for name in MODULES if name.startswith("backends.sessions.") and room == "backends"]
    heavy = "'torch', 'matplotlib', 'sklearn', 'skimage', 'scipy', 'triton', 'onnx', 'onnxruntime'"
    assert (
        output_of(f"import sys, sprfast, {', '.join(names)}; print(sorted({{{heavy}}} & set(sys.modules)))", ROOT)
        == "[]\n"
    )


def test_the_help_needs_no_numbers():
    """Users wait for `sprfast --help`: a command imports what computes when it runs."""
    code = "import sys, sprfast.cli.app; print(sorted({'numpy', 'PIL', 'safetensors', 'torch'} & set(sys.modules)))"
    assert output_of(code, ROOT) == "[]\n"


def test_the_cpu_kernels_need_neither_torch_nor_triton():
    names = ", ".join(
        f"sprfast.{name}" for name in MODULES if name.startswith("kernels.cpu") and name != "kernels.cpu.reference"
    )
    assert "sprfast.kernels.cpu.library" in names
    assert (
        output_of(f"import sys, {names}; print(sorted({{'torch', 'triton', 'scipy'}} & set(sys.modules)))", ROOT)
        == "[]\n"
    )


def test_importing_has_no_side_effects(tmp_path):
    """No output, no file, no thread, and torch's settings as they were."""
    names = ", ".join(f"sprfast.{name}" for name in MODULES)
    code = f"""
import sys, threading, torch
sys.path.insert(0, {str(ROOT)!r})
def state():
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(), threading.active_count())
before = state()
import {names}
assert state() == before
"""
    assert output_of(code, tmp_path) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["kernels", "bench"])
def test_folders_beside_sprfast_are_imported_as_parts_of_it_only(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"this package is sprfast.{name}, it cannot be imported as '{name}'" in done.stderr


def output_of(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
