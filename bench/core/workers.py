"""Several processes of one thread against one process of several, on the same machine, model and
images, in turns.

Each way has processes of its own, which hold their engine and wait while the others are measured. A
turn ends when the last process of the way is done, so that an uneven pair counts as slow as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from sprfast.errors import BackendError, InputError, SprfastError
from sprfast.method.threshold import CLEARANCE
from sprfast.system import environment

SCHEMA_VERSION = 1
ROUNDS = 5  # at least
PATIENCE = 300.0  # seconds for a process to start, or to answer a turn


@dataclasses.dataclass(frozen=True)
class Way:
    """So many processes, each of so many threads."""

    processes: int
    threads: int

    @property
    def name(self) -> str:
        """For people and reports."""
        return f"{self.processes} x {self.threads}"


def ways(count: int) -> tuple[Way, ...]:
    """One process of `count` threads, which the others are compared with, one of one, and `count`
    of one.
    """
    return tuple(dict.fromkeys((Way(1, count), Way(1, 1), Way(count, 1))))


def measure(model: Path, backend: str, pictures: Sequence[Path] | None, count: int, seconds: float) -> dict[str, Any]:
    """The report.

    Args:
        model: a model file or an export.
        backend: that runs on a CPU.
        pictures: images, decoded beforehand; None: 16 random ones.
        count: threads or processes.
        seconds: for everything but the start.

    Returns:
        Plain values; `ways` by name, each with `images_per_s`, `ratio` (to the first way, within
        rounds) and `ms` (of one image in a process while the others of its way work too), each
        median, min and max; and `equal_scores`, whether they are the first way's within `tolerance`
        (relative), with backend cpu bit for bit.

    Raises:
        InputError: a value or file cannot be used.
        BackendError: a process ended or did not answer.
    """
    if not 1 <= count <= 256:
        raise InputError(f"--workers {count}: expected 1 to 256")
    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    chosen = ways(count)
    with contextlib.ExitStack() as stack:
        teams = {way: stack.enter_context(_team(way, model, backend, pictures)) for way in chosen}
        opened = {way: [_heard(each) for each in team] for way, team in teams.items()}
        rounds = _rounds(teams, seconds)
    used, first = opened[chosen[0]][0]
    # PyTorch may add up in another order with another number of threads
    tolerance = 0.0 if used == "cpu" else CLEARANCE
    found = {}
    for way in chosen:
        rates = [each[way]["images_per_s"] for each in rounds]
        ratios = [each[way]["images_per_s"] / each[chosen[0]]["images_per_s"] for each in rounds]
        found[way.name] = {
            **dataclasses.asdict(way),
            "images_per_s": _spread(rates),
            "ratio": _spread(ratios),
            "ms": _spread([each[way]["ms"] for each in rounds]),
            "equal_scores": all(
                bool((abs(scores - first) <= tolerance * abs(first)).all()) for _, scores in opened[way]
            ),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(),
        "model": str(model),
        "backend": used,
        "tolerance": tolerance,
        "images": len(first),
        "rounds": len(rounds),
        "ways": found,
    }


def table(report: dict[str, Any]) -> RenderableType:
    """The same for a person."""
    base = next(iter(report["ways"]))
    heads = ("processes", "threads each", "images/s", f"x {base} (min-max)", "ms an image", "equal scores")
    rows = Table(*(Column(head, justify="right") for head in heads), box=box.SIMPLE_HEAD)
    for each in report["ways"].values():
        ratio = each["ratio"]
        rows.add_row(
            f"{each['processes']}",
            f"{each['threads']}",
            f"{each['images_per_s']['median']:.4g}",
            f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
            f"{each['ms']['median']:.4g}",
            "yes" if each["equal_scores"] else "no",
        )
    machine = report["environment"]
    where = f"{machine['cpu']}, {machine['usable_cores']} cores, backend {report['backend']}"
    return Group(rows, Text(f"{where}, {report['rounds']} rounds in turns, one image a call"))


def _rounds(teams: dict[Way, list[Connection]], seconds: float) -> list[dict[Way, dict[str, float]]]:
    """Turns of about half a second each, as many rounds as fit."""
    calls = {way: max(1, round(0.5 / _turn(team, 1)["ms"] * 1e3)) for way, team in teams.items()}
    rounds: list[dict[Way, dict[str, float]]] = []
    until = time.monotonic() + seconds
    while len(rounds) < ROUNDS or time.monotonic() < until:
        rounds.append({way: _turn(team, calls[way]) for way, team in teams.items()})
    return rounds


def _turn(team: list[Connection], calls: int) -> dict[str, float]:
    """So many images by each process of a team, all at once."""
    started = time.perf_counter()
    for connection in team:
        with _ended():
            connection.send(calls)
    medians = [_heard(connection) for connection in team]
    elapsed = time.perf_counter() - started
    return {"images_per_s": len(team) * calls / elapsed, "ms": 1e3 * statistics.median(medians)}


def _heard(connection: Connection) -> Any:
    with _ended():
        if not connection.poll(PATIENCE):
            raise BackendError(f"a process did not answer within {PATIENCE:g} s")
        answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    """A connection that breaks is an error of the process at its other end."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise BackendError(
            "a process ended; its own output says why, or it was killed, as for want of memory"
        ) from error


@contextlib.contextmanager
def _team(way: Way, model: Path, backend: str, pictures: Sequence[Path] | None) -> Iterator[list[Connection]]:
    """The processes of a way, each with its engine; first each of them says its scores."""
    context = multiprocessing.get_context("spawn")
    started, team = [], []
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(way.threads)  # read when the libraries of the new process start
    try:
        for _ in range(way.processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, str(model), backend, pictures, way.threads), daemon=True
            )
            process.start()
            theirs.close()
            started.append(process)
            team.append(ours)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    try:
        yield team
    finally:
        for connection in team:
            connection.close()
        for process in started:
            process.join(10)
            process.kill()


def _work(connection: Connection, model: str, backend: str, pictures: Sequence[Path] | None, threads: int) -> None:
    """What a process does: say its backend and its scores, then so many images a turn, until the
    other side hangs up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that measures
    import torch

    from sprfast.engine.load import load

    try:
        torch.set_num_threads(threads)
        predictor = load(model, backend, "cpu")
        inputs = _inputs(predictor, pictures)
        connection.send((predictor.backend, np.array([predictor.predict(each, "rgb").pred_score for each in inputs])))
    except Exception as error:  # told to the other side, which raises it
        connection.send(error if isinstance(error, SprfastError) else BackendError(f"{type(error).__name__}: {error}"))
        return
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            times = []
            for index in range(connection.recv()):
                started = time.perf_counter()
                predictor.predict(inputs[index % len(inputs)], "rgb")
                times.append(time.perf_counter() - started)
            connection.send(statistics.median(times))


def _inputs(predictor: Any, pictures: Sequence[Path] | None) -> list[npt.NDArray[np.uint8]]:
    """Decoded images, RGB."""
    from sprfast.data import images

    if pictures:
        return [images.read_rgb(path, predictor.preprocessing) for path in pictures[:64]]
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*predictor.input_size, 3), dtype=np.uint8) for _ in range(16)]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
