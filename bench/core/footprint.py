"""Memory of a candidate on a CPU: what it holds once it is built, and the peaks of building and of
calls.

Each figure comes from a fresh process in which the candidate has been built before for a tiny
model, so that code loaded on first use does not count.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sprfast.bench.core import libraries
from sprfast.bench.core.peers import Candidate, Maps
from sprfast.bench.core.work import random_images
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError, SprfastError
from sprfast.formats import model as model_file
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode

CALLS = 3
CPU = torch.device("cpu")
FIGURES = ("built_mib", "build_peak_mib", "calls_peak_mib")


def fresh(model: Model, name: str, images: int) -> dict[str, Any]:
    """`measure` in a process of its own, for a candidate by its name.

    Returns:
        `images`, the figures of `measure`, and the `reason` why they are null.
    """
    row: dict[str, Any] = {"images": images, **dict.fromkeys(FIGURES), "reason": None}
    with tempfile.TemporaryDirectory(prefix="sprfast-") as folder:
        path = Path(folder, "model")
        model_file.save(path, model)
        command = [sys.executable, "-m", "sprfast.bench.core.footprint", str(path), name, str(images)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        return row | {"reason": f"its process ended with {done.returncode}: {said[-1].removeprefix('error: ')}"}
    row |= json.loads(done.stdout.splitlines()[-1])  # libraries print too
    return row


def measure(model: Model, candidate: Candidate, images: int) -> dict[str, float]:
    """Build the candidate and call it `CALLS` times, in a process that has done nothing else.

    Conversion to a library's format is part of building. What the process has freed may be taken
    again without being seen, so figures are good to some ten MiB.

    Args:
        model: its size is that of the images.
        candidate: for the CPU.
        images: of a call.

    Returns:
        MiB of memory in use, above what it was with torch, the candidate's code, the model, images
        and noise loaded: `built_mib` after building, `build_peak_mib` and `calls_peak_mib` at most
        during building and calls.

    Raises:
        BackendError: the candidate cannot run here, or this system does not tell a process's
            memory.
    """
    if sys.platform != "linux":
        raise BackendError("memory is read from /proc, which only Linux has: measure it on a Linux machine")
    size = model.preprocessing.size
    x, noise = random_images(images, size).pixels, noise_bank(model.schedule, size, size, model.noise_seed)
    rehearsed = _rehearsed(candidate)  # kept, as its memory would be taken again
    _settle()
    before = _mib("VmRSS")
    maps = candidate.on(x).build(model, noise, CPU)
    build_peak = _mib("VmHWM")
    _settle()
    built = _mib("VmRSS")
    for _ in range(CALLS):
        maps(x)
    del rehearsed
    return dict(zip(FIGURES, (built - before, build_peak - before, _mib("VmHWM") - before), strict=True))


def _rehearsed(candidate: Candidate) -> Maps:
    """The candidate for a tiny model, after a call."""
    config, mode, size = NetworkConfig(base_width=32, embedding_dim=8), ScoringMode(Schedule((Level(1e-3, 2),))), 32
    model = Model(config, mode, Preprocessing(size=size), unet.ScoreUNet(config).state_dict())
    x = torch.zeros(1, 3, size, size)
    maps = candidate.on(x).build(model, noise_bank(model.schedule, size, size, 0), CPU)
    maps(x)
    return maps


def _settle() -> None:
    """Give back what is free, and let the peak begin anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise BackendError(
            f"peaks of memory need a Linux that lets /proc/self/clear_refs be written ({error.strerror})"
        ) from error


def _mib(field: str) -> float:
    """A field of /proc/self/status that is in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _main(arguments: Sequence[str]) -> int:
    """Print the figures of the candidate as JSON; the exit code."""
    path, name, images = arguments
    try:
        (candidate,) = libraries.chosen(CPU, [name])
        print(json.dumps(measure(model_file.load(path), candidate, int(images))))
    except SprfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
