"""Which torch device to run on."""

from __future__ import annotations

import platform
import resource
import sys

import torch

from sprfast.errors import BackendError, InputError
from sprfast.system import torchrun


def resolve(device: str | torch.device | None) -> torch.device:
    """`device` as a torch device that exists here.

    Args:
        device: "cpu", "cuda", "cuda:N", a torch device, or None for CUDA where there is one; a CUDA
            device without a number is the first, or under torchrun this process's own.

    Raises:
        InputError: the name is not known.
        BackendError: there is no such device here.
    """
    try:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(default if device is None else device)
    except RuntimeError as error:
        raise InputError(f"device: {device!r} is not known, use cpu, cuda or cuda:N") from error
    if chosen.type == "cpu":
        return chosen
    if chosen.type != "cuda":
        raise InputError(f"device: {device!r} is not supported, use cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise BackendError(f"device {chosen}: no CUDA device here; install NVIDIA's driver and CUDA torch, or use cpu")
    chosen = torch.device("cuda", torchrun.local_rank() if chosen.index is None else chosen.index)
    if chosen.index >= torch.cuda.device_count():
        raise BackendError(f"device {chosen}: there are {torch.cuda.device_count()} CUDA devices here")
    return chosen


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply bfloat16 numbers; without, PyTorch converts
    them to float32 and back.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported()  # which a CPU with AMX has too


def peak_memory_mib(device: torch.device) -> int:
    """The most memory that this process has had, in MiB: tensors on a CUDA device, or resident
    memory for a CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of what getrusage counts
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
