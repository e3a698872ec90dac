"""One command for a machine with a GPU: is it correct, and how fast is it. From a bare checkout,
nothing installed.

`python -m sprfast.bench.gpu.check OUT` runs its steps one after another, each in a process of its
own with a time limit, so that neither a crash nor a hang takes the others along. What a step finds
is written to OUT as soon as it is known; a short table comes last. `--dry-run` does the same on the
CPU in Triton's interpreter, at a tiny size.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sprfast.bench.core import report_file
from sprfast.bench.gpu import report as gpu_report
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import InputError, SprfastError
from sprfast.evaluation import parity
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.scoring_mode import ScoringMode
from sprfast.system import devices, environment

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden" / "golden.json"
MARGIN = 20.0  # seconds for a step to start in, and between the end that it is asked to keep and the one it is made to
# For memcheck, which slows kernels down many times: odd sizes, and the smallest map of the network.
# No CUDA graphs: see `_run`.
SANITIZED = "test_operator_equals_its_reference and (2x64x199x150 or 1x512x12x12)"
# Of all the time, what a step may take at most; what it leaves is the next ones'.
SHARES = {"tests": 0.4, "memcheck": 0.12, "operators": 0.2, "roofline": 0.1, "waterfall": 1.0}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    size: int  # pixels, both sides
    given: dict[str, dict[str, Any]]  # what else `measure` is given, by step


FULL = Scale(
    "cuda",
    192,
    {
        "operators": {"images": 16},
        "roofline": {"batches": (1, 8, 16, 32)},
        "waterfall": {"batches": (32, 1, 8)},  # the most wanted first
    },
)
DRY = Scale(
    "cpu",
    16,
    {
        "operators": {"images": 1, "repeats": 1},
        "roofline": {"batches": (1, 2), "matrix": 64, "copied": 2**20, "repeats": 1},
        "waterfall": {"batches": (1, 2), "minimum": 1},
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, or one step of it; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m sprfast.bench.gpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the results, new or empty")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at a tiny size")
    parser.add_argument("--minutes", type=float, default=15.0, help="time for everything")
    parser.add_argument("--step", choices=FULL.given, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.step:
        return step(given.step, given.out, DRY if given.dry_run else FULL, given.seconds)
    try:
        return check(given.out, given.dry_run, given.minutes)
    except SprfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def check(folder: Path, dry_run: bool, minutes: float) -> int:
    """All steps, then summary.json and the table.

    Raises:
        InputError: the folder cannot be written to, or has something in it.
        BackendError: there is no CUDA device, and this is no dry run.
    """
    if not dry_run:
        devices.resolve("cuda")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(
                f"{folder}: is not empty; name a new folder, so that old results are not taken for new ones"
            )
    except OSError as error:
        raise InputError(f"{folder}: cannot be used as a folder ({error.strerror})") from error
    deadline = time.monotonic() + 60.0 * minutes
    document: dict[str, Any] = {
        "schema_version": 1,
        "environment": environment.describe(),
        "dry_run": dry_run,
        "minutes": minutes,
        "steps": [],
    }
    report_file.write(document, folder / "summary.json")
    for name, share in SHARES.items():
        limit = min(share * 60.0 * minutes, deadline - time.monotonic())
        document["steps"].append(_run(name, folder, dry_run, limit))
        report_file.write(document, folder / "summary.json")
    document |= gpu_report.summary(folder)
    report_file.write(document, folder / "summary.json")
    gpu_report.show(document)
    return int(any(each["status"] == "failed" for each in document["steps"]))


def step(name: str, folder: Path, scale: Scale, seconds: float) -> int:
    """One measurement in this process; its report goes to `folder`/`name`.json."""
    module = importlib.import_module(f"sprfast.bench.gpu.{name}")
    save = functools.partial(report_file.write, path=folder / f"{name}.json")
    given = {"height": scale.size, "width": scale.size, "save": save, **scale.given[name]}
    if name != "roofline":
        given["seconds"] = seconds
    if name == "waterfall":
        ceilings = gpu_report.read(folder, "roofline")
        given["floor"] = ceilings["floor"]["us_per_image"] if ceilings and "floor" in ceilings else None
    document = module.measure(model(scale), torch.device(scale.device), **given)
    problems = [] if name == "roofline" else module.problems(document)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def model(scale: Scale) -> Model:
    """The network of the golden outputs; a narrow random one for a dry run."""
    preprocessing = Preprocessing(size=scale.size)
    if scale.device != "cpu":
        weights = parity.golden_weights(json.loads(GOLDEN.read_text()))
        return Model(NetworkConfig(), ScoringMode(), preprocessing, weights)
    torch.manual_seed(0)
    network = NetworkConfig(base_width=32, embedding_dim=8)
    weights = {name: value.detach() for name, value in unet.ScoreUNet(network).state_dict().items()}
    return Model(network, ScoringMode(Schedule((Level(draws=1),))), preprocessing, weights)


def _command(name: str, folder: Path, dry_run: bool, seconds: float) -> list[str]:
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    if name == "tests":
        return [*pytest, f"--junitxml={folder / 'tests.xml'}", "tests"]
    if name == "memcheck":
        sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "1"]
        return [*sanitizer, *pytest, "-k", SANITIZED, "tests/kernels/triton/test_kernels_gpu.py"]
    command = [sys.executable, "-m", "sprfast.bench.gpu.check", str(folder), "--step", name, "--seconds", str(seconds)]
    return [*command, "--dry-run"] if dry_run else command


def _run(name: str, folder: Path, dry_run: bool, limit: float) -> dict[str, Any]:
    """One step in a process group of its own, its output in `folder`/`name`.log, ended after
    `limit` seconds.
    """
    record: dict[str, Any] = {"step": name, "limit_s": limit, "seconds": 0.0}
    if name == "memcheck" and shutil.which("compute-sanitizer") is None:
        return record | {"status": "skipped", "reason": "compute-sanitizer is not on the PATH"}
    if limit < MARGIN:
        return record | {"status": "failed", "reason": "no time was left"}
    surroundings = dict(os.environ)
    if dry_run:
        surroundings |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # a tensor then is an allocation, and an access beyond it is seen; graphs cannot be captured so
    if name == "memcheck":
        surroundings |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    log = folder / f"{name}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        command = _command(name, folder.resolve(), dry_run, limit - MARGIN)
        process = subprocess.Popen(
            command, cwd=ROOT, env=surroundings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # its children too, such as compilers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    record["seconds"] = time.monotonic() - started
    if name == "tests" and code == 0:
        record["counts"] = counts = gpu_report.counts(folder / "tests.xml")
        if not dry_run and counts["tests"] == counts["skipped"]:
            return record | {"status": "failed", "reason": "every test was skipped"}
    if code == 0:
        return record | {"status": "passed", "reason": None}
    lines = log.read_text(errors="replace").strip().splitlines()
    why = f"stopped after {limit:.0f} s" if code is None else f"exit code {code}"
    return record | {"status": "failed", "reason": f"{why}: {lines[-1][:300]}" if lines else why}


if __name__ == "__main__":
    sys.exit(main())
