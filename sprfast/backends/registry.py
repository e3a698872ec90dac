"""The ways to compute error maps, one file a backend; this registry imports only what is chosen.

Every backend gives the maps of `scoring.error_map` for the same images and noise. A backend sees
tensors only: no files, no thresholds, no clock.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, get_args

import torch
from torch import Tensor

from sprfast.config import Precision
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.system import devices

_CLASSES = {
    "eager": "EagerBackend",
    "cpu": "CpuBackend",
    "onnxruntime": "OnnxRuntimeBackend",
    "triton": "TritonBackend",
    "cuda_graph": "CudaGraphBackend",
    "tensorrt": "TensorRtBackend",
    "tensorrt_rtx": "TensorRtRtxBackend",
}
_FILES = {"tensorrt_rtx": "tensorrt"}  # where the module does not have the backend's name
NAMES = tuple(_CLASSES)


class Backend(Protocol):
    """Maps of one model on one device; safe to call from several threads."""

    device: torch.device

    def __init__(self, model: Model, device: torch.device, precision: Precision) -> None: ...

    @staticmethod
    def unavailable() -> str | None:
        """None where this backend can run, else why not and what to install."""
        ...

    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps of a batch, in memory of their own.

        Args:
            x: (B, 3, H, W) float32 images in [-1, 1].
            noise: one (K, 1 or B, 3, H, W) float32 tensor of draws a level.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256), float32 on the backend's device.
        """
        ...


def create(
    name: str, model: Model, device: str | torch.device | None = None, precision: Precision = "float32"
) -> Backend:
    """The backend `name` for `model`.

    Args:
        name: one of `NAMES`, or "auto" for what `choose` gives.
        device: a torch device; None takes CUDA where there is one, else the CPU.
        precision: of stored feature maps and of the convolutions; the 16-bit ones change scores by
            the error that `sprfast parity --precision` reports.

    Raises:
        InputError: no backend or precision has this name.
        BackendError: the backend or device cannot run here.
    """
    chosen = choose(name, device, precision)
    reason = unavailable(chosen)
    if reason:
        raise BackendError(f"backend {chosen}: {reason}")
    if precision not in get_args(Precision):
        raise InputError(f"precision: {precision!r} is not known, choose from {', '.join(get_args(Precision))}")
    return _class(chosen)(model, devices.resolve(device), precision)


def choose(name: str, device: str | torch.device | None = None, precision: Precision = "float32") -> str:
    """The backend that `name` stands for: "auto" is cpu in float32 on a CPU where its kernels are
    built, else eager; others are themselves.

    Raises:
        InputError, BackendError: of the device, as `create`.
    """
    if name != "auto":
        return name
    own = precision == "float32" and devices.resolve(device).type == "cpu" and library.built()
    return "cpu" if own else "eager"


def unavailable(name: str) -> str | None:
    """None where the backend can run on this machine, else the reason.

    Raises:
        InputError: no backend has this name.
    """
    return _class(name).unavailable()


def inputs(x: Tensor, noise: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), and the draws of all levels as one tensor (D, 1 or B, 3, H, W), as what
    runs a plan takes them.
    """
    shared = all(z.shape[1] == 1 for z in noise)
    draws = [z if shared else z.expand(-1, x.shape[0], -1, -1, -1) for z in noise]
    z = draws[0] if len(draws) == 1 else torch.cat(draws)
    return x.to(device).contiguous(), z.to(device).contiguous()


def _class(name: str) -> type[Backend]:
    if name not in _CLASSES:
        raise InputError(f"backend: {name!r} is not known, choose from auto, {', '.join(NAMES)}")
    return getattr(importlib.import_module(f"sprfast.backends.{_FILES.get(name, name)}"), _CLASSES[name])  # type: ignore[no-any-return]
