"""What a measurement or a complaint is about: machine, devices, versions."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprfast._version import __version__
from sprfast.errors import BackendError
from sprfast.kernels.cpu import library

if TYPE_CHECKING:
    import torch

_GIB = 2**30


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """The machine and the software as plain JSON values; what cannot be found out is null.

    Args:
        device: describe this device only; None describes the CPU and every CUDA device.
    """
    found = _torch(device) if importlib.util.find_spec("torch") else {}
    return {
        "date_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sprfast": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "torch": found.get("version"),
        "triton": version("triton"),
        "numpy": np.__version__,
        "cuda": found.get("cuda"),
        "cudnn": found.get("cudnn"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_mhz": _cpu_mhz(),  # now, mean of the cores
        "cpu_capability": found.get("cpu_capability"),
        "cpu_kernels": _cpu_kernels(found.get("threads")),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "load_average": round(os.getloadavg()[0], 2),  # processes wanting a core, last minute
        "torch_threads": found.get("threads"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "devices": found.get("devices") or {"cpu": _describe_cpu()},
    }


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def nvml(device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The module `pynvml`, ready, and its handle of a CUDA device, to ask the driver of NVIDIA.

    The device is found by its UUID: indices of CUDA and of the driver differ under
    CUDA_VISIBLE_DEVICES.

    Raises:
        BackendError: nvidia-ml-py is not installed, or the driver does not answer, here or in the
            body.
    """
    import torch

    try:
        import pynvml
    except ImportError:
        raise BackendError("nvidia-ml-py is not installed: run pip install 'sprfast[bench]'") from None
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise BackendError(f"the driver of {device} does not answer by NVML: {error}") from error


def _torch(device: torch.device | None) -> dict[str, Any]:
    """What PyTorch says, and the devices that it has."""
    import torch

    cuda_devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    devices = [torch.device("cpu"), *cuda_devices] if device is None else [device]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": {str(each): _describe_cuda(each) if each.type == "cuda" else _describe_cpu() for each in devices},
    }


def _describe_cpu() -> dict[str, Any]:
    return {"name": _cpu_name(), "memory_gib": _memory_gib()}


def _describe_cuda(device: torch.device) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / _GIB, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        **_from_driver(device),
    }


def _from_driver(device: torch.device) -> dict[str, Any]:
    def asked(question: Callable[[Any, Any], Any]) -> Any:
        try:
            with nvml(device) as (pynvml, handle):
                return question(pynvml, handle)
        except BackendError:
            return None

    def clock(kind: str) -> Any:
        return asked(lambda pynvml, handle: pynvml.nvmlDeviceGetClockInfo(handle, getattr(pynvml, kind)))

    return {
        "driver": asked(lambda pynvml, handle: pynvml.nvmlSystemGetDriverVersion()),
        # from milliwatts
        "power_limit_w": asked(lambda pynvml, handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        # now: of an idle device they are low
        "clocks_mhz": {"sm": clock("NVML_CLOCK_SM"), "memory": clock("NVML_CLOCK_MEM")},
    }


def _cpu_kernels(threads: int | None) -> dict[str, Any] | str:
    """How the CPU kernels run, or why they do not."""
    return library.unavailable() or {
        "instruction_set": library.instruction_set(),
        "available": list(library.available()),
        "bfloat16": library.unavailable("bfloat16") or library.instruction_set("bfloat16"),
        "threads": threads,
    }


def _cpu_name() -> str | None:
    names = _cpu_info("model name")
    return names[0] if names else platform.processor() or platform.machine() or None


def _cpu_mhz() -> int | None:
    clocks = [float(value) for value in _cpu_info("cpu MHz")]
    return round(sum(clocks) / len(clocks)) if clocks else None


def _cpu_info(field: str) -> list[str]:
    """What Linux says of each core; nothing elsewhere, or where the processor has no such field."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]


def _memory_gib() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB, 1)


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with "-dirty" where tracked files
    differ from it.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet
        return None
