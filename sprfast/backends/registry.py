"""The backends by name; only what is chosen is imported.

Every backend gives the maps of `scoring.error_map` for the same images and noise. It sees arrays
only: no files, no thresholds, no clock. Some are sessions on numpy arrays (`sessions`), the others
take torch tensors on a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, get_args

from sprfast.backends.sessions import session
from sprfast.backends.sessions.session import Session, TensorRtOptions
from sprfast.config import Precision
from sprfast.errors import BackendError, InputError
from sprfast.kernels.cpu import library
from sprfast.system import libraries

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprfast.formats.model import Model

NAMES = ("eager", "cpu", "onnxruntime", "triton", "cuda_graph", "tensorrt", "tensorrt_rtx")
_TORCH = {"eager": "EagerBackend", "triton": "TritonBackend", "cuda_graph": "CudaGraphBackend"}
_OWN = ("cpu", *_TORCH)  # the others take an ONNX graph


class Backend(Protocol):
    """Maps of one model on one device; safe to call from several threads."""

    device: torch.device

    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps of a batch, in memory of their own.

        Args:
            x: (B, 3, H, W) float32 images in [-1, 1].
            noise: one (K, 1 or B, 3, H, W) float32 tensor of draws a level. Not to be written to
                afterwards: a backend may keep what follows from draws that all images share, and
                recognise them in its next call.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256), float32 on the backend's device.
        """
        ...


def create(
    name: str, model: Model, device: str | torch.device | None = None, precision: Precision = "float32"
) -> Backend:
    """The backend `name` for `model`, on tensors.

    Args:
        name: one of `NAMES`, or "auto" for what `choose` gives.
        device: a torch device; None takes CUDA where there is one, else the CPU.
        precision: of stored feature maps and of the convolutions; the 16-bit ones change scores by
            the error that `sprfast parity --precision` reports.

    Raises:
        InputError: no backend or precision has this name.
        BackendError: the backend or device cannot run here.
    """
    name, resolved = _checked(name, device, precision)
    if name in _TORCH:
        return _class(name)(model, resolved, precision)  # type: ignore[no-any-return]
    from sprfast.backends.tensors import SessionBackend

    return SessionBackend(open_session(name, model, resolved, precision), resolved)


def open_session(
    name: str,
    model: Model,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    tensorrt: TensorRtOptions | None = None,
) -> Session:
    """The backend `name` for `model`, on numpy arrays; arguments and errors as of `create`.

    Args:
        tensorrt: how TensorRT builds and runs; None: `TensorRtOptions()`.
    """
    name, resolved = _checked(name, device, precision)
    if name in _TORCH:
        from sprfast.backends.tensors import TorchSession

        return TorchSession(_class(name)(model, resolved, precision), name, model.schedule)
    from sprfast.backends import model_sessions

    return model_sessions.open_session(name, model, resolved, precision, tensorrt)


def choose(name: str, device: str | torch.device | None = None, precision: Precision = "float32") -> str:
    """The backend that `name` stands for: "auto" is cpu in float32 on a CPU where its kernels are
    built, else eager; others are themselves.

    Raises:
        InputError, BackendError: of the device, as `create`.
    """
    if name != "auto":
        return name
    from sprfast.system import devices

    own = precision == "float32" and devices.resolve(device).type == "cpu" and library.built()
    return "cpu" if own else "eager"


def unavailable(name: str) -> str | None:
    """None where the backend can run on this machine, else the reason.

    Raises:
        InputError: no backend has this name.
    """
    if name not in NAMES:
        raise InputError(f"backend: {name!r} is not known, choose from auto, {', '.join(NAMES)}")
    if reason := libraries.missing("torch", "train") or (None if name in _OWN else libraries.missing("onnx", "onnx")):
        return reason
    if name in _TORCH:
        return _class(name).unavailable()  # type: ignore[no-any-return]
    return session.unavailable(name)


def _checked(name: str, device: str | torch.device | None, precision: Precision) -> tuple[str, torch.device]:
    """The backend that can run here under this name, and the device."""
    from sprfast.system import devices

    chosen = choose(name, device, precision)
    if reason := unavailable(chosen):
        raise BackendError(f"backend {chosen}: {reason}")
    if precision not in get_args(Precision):
        raise InputError(f"precision: {precision!r} is not known, choose from {', '.join(get_args(Precision))}")
    return chosen, devices.resolve(device)


def _class(name: str) -> Any:
    return getattr(importlib.import_module(f"sprfast.backends.{name}"), _TORCH[name])
