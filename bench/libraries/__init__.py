"""What else a bench compares: the same network through torch.compile, onnxruntime, OpenVINO, ncnn and MNN, all in float32.

Each library gets what a competent user gives it: the time embedding folded into constants, an image with
all its draws as one batch (ncnn knows no batches: one draw after the other), as many threads as torch
uses. On a CPU a batch of images is worked off image by image. Everything is converted while a candidate
is built, and the files of the conversion are deleted again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sprfast.bench.libraries.mnn import Mnn
from sprfast.bench.libraries.ncnn import Ncnn
from sprfast.bench.libraries.onnxruntime import OnnxRuntime
from sprfast.bench.libraries.openvino import OpenVino
from sprfast.bench.libraries.torch_compile import TorchCompile, compiler_missing
from sprfast.bench.peers import Candidate, Maps
from sprfast.errors import BackendError
from sprfast.model_file import Model

# What is imported for each library, beside torch.
_MODULES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "ncnn": ("ncnn", "pnnx"),
    "mnn": ("onnx", "onnxscript", "MNN"),
}


class Runner(Protocol):
    """One model in one library, for images of the noise's size, with the threads that torch has when it is made."""

    threads: int  # as the library itself tells

    def __init__(self, model: Model, noise: Sequence[Tensor]) -> None: ...

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) float32 to the error map (1, 1, H, W) and the anomaly map (1, 1, 256, 256)."""
        ...


def unavailable(name: str, device: torch.device) -> str | None:
    """None where the library can run on `device`, else one sentence: why not, and what to install where that helps."""
    if name == "torch_compile":
        return None if device.type == "cuda" else compiler_missing()
    if device.type != "cpu":
        return f"{name} is measured on the CPU only, not on {device}"
    missing = [module for module in _MODULES[name] if importlib.util.find_spec(module) is None]
    return f"{name} needs {', '.join(missing)}, not installed here: run pip install 'sprfast[peers]'" if missing else None


def _candidate(name: str, description: str, runner: type[Runner]) -> Candidate:
    """A candidate whose `build` raises BackendError with the reason where the library cannot run."""

    def build(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
        reason = unavailable(name, device)
        if reason:
            raise BackendError(reason)
        run = runner(model, noise)

        @torch.inference_mode()
        def maps(x: Tensor) -> tuple[Tensor, Tensor]:
            if device.type == "cuda":
                return run(x)
            errors, anomalies = zip(*(run(x[i : i + 1]) for i in range(len(x))), strict=True)
            return torch.cat(errors), torch.cat(anomalies)

        return maps

    return Candidate(name, description, build)


CANDIDATES = (
    _candidate("torch_compile", "torch.compile of the plain definition in channels-last, default mode", TorchCompile),
    _candidate("onnxruntime", "onnxruntime, CPU provider, one graph from image to maps", OnnxRuntime),
    _candidate("openvino", "OpenVINO, CPU plugin, latency hint, one graph from image to maps", OpenVino),
    _candidate("ncnn", "ncnn, Winograd convolutions, one draw after the other", Ncnn),
    _candidate("mnn", "MNN, high precision, one graph from image to maps", Mnn),
)
