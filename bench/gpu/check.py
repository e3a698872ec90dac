"""One command for a machine with a GPU: is it correct, and how fast is it. From a bare checkout,
nothing installed, in calls of ten minutes.

`python -m sprfast.bench.gpu.check OUT --call 1` runs the steps of a call one after another, each in
a process of its own with a time limit, so that neither a crash nor a hang takes the others along.
What a step finds is in OUT a few seconds later, whatever happens then; a short table comes last.
`--dry-run` does the same on the CPU in Triton's interpreter, at a tiny size.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sprfast.bench.core import report_file
from sprfast.bench.gpu import carried, clocks, steps
from sprfast.bench.gpu import report as gpu_report
from sprfast.bench.gpu.steps import Job, Step
from sprfast.errors import InputError, SprfastError
from sprfast.system import devices, environment

SECONDS = 565.0  # of the 580 of a call; the rest is this program's start
MARGIN = 8.0  # seconds between the end that a step is asked to keep and the one it is made to
SAVED_EVERY = 5.0  # seconds
RESERVED = 15.0  # seconds at the end, to pack what compilers have cached


def main(argv: Sequence[str] | None = None) -> int:
    """Run a call; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m sprfast.bench.gpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the results, new or empty")
    parser.add_argument("--call", type=int, choices=steps.CALLS, default=1, help="which steps (default: 1)")
    parser.add_argument("--from", dest="earlier", type=Path, help="OUT of an earlier call: its truth and compile cache")
    parser.add_argument("--steps", type=_words, default=[], help=f"these alone, of {', '.join(steps.KNOWN)}")
    parser.add_argument("--images", type=_numbers, default=[], help="numbers of images in place of the steps' own")
    parser.add_argument("--turn", type=int, default=steps.TURN, help="calls of a turn at one image (default: 50)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default: 565)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at a tiny size")
    given = parser.parse_args(argv)
    try:
        if given.turn < 1:
            raise InputError(f"--turn: {given.turn} is not allowed, expected a positive number")
        planned = steps.planned(given.call, given.steps, given.images)
        if given.dry_run:  # the shares are those of a GPU
            planned = [dataclasses.replace(step, seconds=steps.REST) for step in planned]
        with _ended_by_sigterm():
            return check(given.out, planned, given.turn, given.seconds, given.earlier, given.dry_run)
    except SprfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Leave by SystemExit at a SIGTERM, so that the step that runs is ended too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check(folder: Path, planned: Sequence[Step], turn: int, seconds: float, earlier: Path | None, dry_run: bool) -> int:
    """The steps, then the table; summary.json and reports.tar.gz grow with every step.

    Raises:
        InputError: the folder cannot be written to, or has something in it; or there is nothing to
            take in the earlier one.
        BackendError: there is no CUDA device, and this is no dry run.
    """
    deadline = time.monotonic() + seconds
    if not dry_run and any(step.name != "truth" for step in planned):
        devices.resolve("cuda")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(
                f"{folder}: is not empty; name a new folder, so that old results are not taken for new ones"
            )
    except OSError as error:
        raise InputError(f"{folder}: cannot be used as a folder ({error.strerror})") from error
    document: dict[str, Any] = {
        "schema_version": 2,
        "environment": environment.describe(),
        "dry_run": dry_run,
        "seconds": seconds,
        "steps": [],
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        before = carried.take(earlier, work) if earlier else None
        for step in planned:
            limit = min(step.seconds, deadline - RESERVED - time.monotonic())
            job = Job(step.name, str(work), time.monotonic() + limit - MARGIN, step.images, turn, dry_run)
            document["steps"].append(_run(job, limit, folder))
            carried.leave_results(folder, work)
            document |= gpu_report.summary(work, before)
            report_file.write(document, folder / carried.SUMMARY)
        if not dry_run:
            carried.leave_cache(folder)
    gpu_report.show(document)
    return int(any(each["status"] == "failed" for each in document["steps"]))


def _run(job: Job, limit: float, folder: Path) -> dict[str, Any]:
    """One step in a process group of its own, ended after `limit` seconds; while it runs, what it
    has written so far goes to `folder`.
    """
    work, name = Path(job.folder), job.step
    record: dict[str, Any] = {"step": name, "images": job.images, "limit_s": limit, "seconds": 0.0, "clocks": None}
    if name in ("memcheck", "racecheck") and shutil.which("compute-sanitizer") is None:
        return record | {"status": "skipped", "reason": "compute-sanitizer is not on the PATH"}
    if limit < 2 * MARGIN:
        return record | {"status": "failed", "reason": "no time was left"}
    log, watch = work / f"{name}.log", work / f"{name}.clocks.csv"
    started = time.monotonic()
    with log.open("wb") as output, clocks.watched(watch, not job.dry_run):
        process = subprocess.Popen(
            steps.command(job),
            cwd=steps.ROOT,
            env=_surroundings(job),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _waited(process, started + limit, folder, work)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its children too, such as compilers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    record |= {"seconds": time.monotonic() - started, "clocks": clocks.under_load(watch)}
    if name == "tests" and code == 0:
        record["counts"] = counts = gpu_report.counts(work / "tests.xml")
        if not job.dry_run and counts["tests"] == counts["skipped"]:
            return record | {"status": "failed", "reason": "every test was skipped"}
    if code == 0:
        return record | {"status": "passed", "reason": None}
    lines = log.read_text(errors="replace").strip().splitlines()
    why = f"stopped after {limit:.0f} s" if code is None else f"exit code {code}"
    return record | {"status": "failed", "reason": f"{why}: {lines[-1][:300]}" if lines else why}


def _waited(process: subprocess.Popen[bytes], deadline: float, folder: Path, work: Path) -> int | None:
    """The exit code; None where the time is up."""
    while True:
        left = deadline - time.monotonic()
        try:
            return process.wait(max(0.0, min(SAVED_EVERY, left)))
        except subprocess.TimeoutExpired:
            if left <= 0:
                return None
            carried.leave_results(folder, work)


def _surroundings(job: Job) -> dict[str, str]:
    """The environment of a step."""
    if job.dry_run:
        return {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    given = {**os.environ, **carried.variables()}
    # a tensor then is an allocation, and an access beyond it is seen; graphs cannot be captured so
    if job.step == "memcheck":
        given["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if job.step == "timeline":  # else CUPTI forgets the graphs between two profiles
        given |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    return given


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in _words(text)]
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError("expected positive numbers with commas between them")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
