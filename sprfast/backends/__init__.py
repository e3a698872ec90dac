"""The ways to compute error maps, one file a backend; this registry imports only what is chosen.

Every backend gives the maps of `scoring.error_map` for the same images and noise. A backend sees
tensors only: no files, no thresholds, no clock.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sprfast import devices
from sprfast.errors import BackendError, InputError
from sprfast.model_file import Model

_CLASSES = {"eager": "EagerBackend"}
NAMES = tuple(_CLASSES)


class Backend(Protocol):
    """Error maps of one model on one device; safe to call from several threads."""

    device: torch.device

    def __init__(self, model: Model, device: torch.device) -> None: ...

    @staticmethod
    def unavailable() -> str | None:
        """None where this backend can run, else why not and what to install."""
        ...

    def error_map(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """(B, 3, H, W) float32 images in [-1, 1] and one (K, 1 or B, 3, H, W) tensor of draws a level to (B, 1, H, W) float32."""
        ...


def create(name: str, model: Model, device: str | torch.device | None = None) -> Backend:
    """The backend `name` ("auto": the fastest that can run) for `model`.

    Args:
        device: a torch device; None takes CUDA where there is one, else the CPU.

    Raises:
        InputError: no backend has this name.
        BackendError: the backend or device cannot run here.
    """
    chosen = "eager" if name == "auto" else name
    reason = unavailable(chosen)
    if reason:
        raise BackendError(f"backend {chosen}: {reason}")
    return _class(chosen)(model, devices.resolve(device))


def unavailable(name: str) -> str | None:
    """None where the backend can run on this machine, else the reason.

    Raises:
        InputError: no backend has this name.
    """
    return _class(name).unavailable()


def _class(name: str) -> type[Backend]:
    if name not in _CLASSES:
        raise InputError(f"backend: {name!r} is not known, choose from auto, {', '.join(NAMES)}")
    return getattr(importlib.import_module(f"sprfast.backends.{name}"), _CLASSES[name])  # type: ignore[no-any-return]
