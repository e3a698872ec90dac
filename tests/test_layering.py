"""Imports point down only: each module may import from lower layers, and from its own group."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From low to high. A name stands for the module and, where it is a package, for all that is in it;
# modules of one layer do not import each other, those of one package do.
LAYERS = (
    ("errors", "signals", "redaction", "kernels"),
    ("ranks",),
    ("files", "config", "devices", "manifest", "protobuf"),
    ("sde", "images", "archive", "threshold", "metrics", "environment", "processes", "draws", "smoothing", "plan"),
    ("error_field",),
    ("setting",),
    ("unet", "prediction", "frames", "drift", "cpu_network", "contract", "onnx_file"),
    ("scoring", "noise", "figure", "data", "scenes", "graph", "runtimes", "export_file", "health", "cascade"),
    ("calibration", "model_file", "loader", "checkpoint", "runner", "quantization", "line", "telemetry", "sources"),
    ("folding", "probes"),
    ("backends",),
    ("engine",),
    ("training", "soak"),
    ("parity", "evaluation"),
    ("export", "scale"),
    ("bench",),
    ("console", "options"),
    ("predict_commands", "export_commands", "bench_commands", "kernel_report"),
    ("commands", "calibrate_commands", "soak_commands", "study_commands", "scale_commands"),
    ("demo",),
    ("cli_bench", "cli_predict", "cli_study"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LIGHT = (
    *("sprfast", "errors", "config", "files", "images", "data", "metrics", "threshold", "figure", "scenes", "cli"),
    *("error_field", "setting", "cascade", "calibration"),
    *("runner", "predict_commands", "cpu_network", "export_file", "graph", "quantization"),
    *("line", "sources", "sources.stream", "sources.folder", "sources.simulated", "sources.opencv", "sources.harvesters"),
    *("scale.triton_repository", "scale.triton_model", "scale.ray_data", "scale.ray_serve", "scale.results", "scale_commands"),
    *("telemetry", "signals", "ranks", "drift", "health", "frames", "soak"),
    *("runtimes", "runtimes.cpu", "runtimes.onnxruntime"),
    *("runtimes.cuda", "runtimes.plan_cache", "runtimes.tensorrt", "runtimes.tensorrt_build", "runtimes.tensorrt_session"),
)


def modules():
    """Dotted names below sprfast, such as "backends.eager", with their files."""
    sources = {}
    for folder, prefix in ((ROOT / "sprfast", ()), (ROOT / "kernels", ("kernels",)), (ROOT / "bench", ("bench",))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    sources.pop("")  # sprfast/__init__.py names public modules lazily; it is tested by importing it
    return sources


MODULES = modules()


def imported(path, name):
    """Names below sprfast that the module imports anywhere, in functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("sprfast.") for alias in node.names if alias.name.startswith("sprfast.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}, write `from sprfast...`"
            if node.module == "sprfast":
                found |= {alias.name for alias in node.names if alias.name in MODULES}
            elif (node.module or "").startswith("sprfast."):
                found.add(node.module.removeprefix("sprfast."))
    return found


def group(name):
    return name.partition(".")[0]


def test_modules_are_found():
    assert {"errors", "unet", "backends.eager", "engine"} <= MODULES.keys()
    assert imported(MODULES["backends.eager"], "backends.eager") >= {"scoring", "unet", "model_file"}
    assert "parity" in imported(MODULES["commands"], "commands")  # inside a function


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down_only(name):
    assert group(name) in RANK, f"{name} has no layer yet: add it to LAYERS in tests/test_layering.py"
    for target in imported(MODULES[name], name):
        assert group(target) in RANK, f"{name} imports {target}, which has no layer: add it to LAYERS in tests/test_layering.py"
        down = RANK[group(target)] < RANK[group(name)]
        assert down or group(target) == group(name), f"{name} imports {target}, which is not in a lower layer"


@pytest.mark.parametrize("name", LIGHT)
def test_importing_does_not_import_torch(name):
    module = name if name == "sprfast" else f"sprfast.{name}"
    heavy = "'torch', 'matplotlib', 'sklearn', 'skimage', 'scipy'"
    assert output_of(f"import sys, {module}; print(sorted({{{heavy}}} & set(sys.modules)))", ROOT) == "[]\n"


def test_the_cpu_kernels_need_neither_torch_nor_triton():
    names = ", ".join(f"sprfast.{name}" for name in sorted(MODULES) if name.startswith("kernels.cpu") and name != "kernels.cpu.reference")
    assert "sprfast.kernels.cpu.library" in names
    assert output_of(f"import sys, {names}; print(sorted({{'torch', 'triton', 'scipy'}} & set(sys.modules)))", ROOT) == "[]\n"


def test_importing_has_no_side_effects(tmp_path):
    """No output, no file, no thread, and torch's settings as they were."""
    names = ", ".join(f"sprfast.{name}" for name in sorted(MODULES) if name != "__main__")
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
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"this package is sprfast.{name}, it cannot be imported as '{name}'" in done.stderr


def output_of(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
