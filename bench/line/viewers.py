"""What the pages of a station cost its line: latency with viewers and without, in turns.

python -m sprfast.bench.line.viewers screw.safetensors good-parts/ --viewers 10

The viewers run in a process of their own on the same machine. Each does what the page does: it
reads the events and fetches each picture that it is told of, and those of rejects.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sprfast.config import require
from sprfast.engine.load import load
from sprfast.errors import InputError, SprfastError
from sprfast.line.answer import Answer

LIMIT = 1.05  # of p99 with viewers over p99 without
CONNECTING = 60.0  # seconds
SETTLING = 1.0  # seconds after which a turn's answers count


class Latencies:
    """Listens to a station, and keeps the seconds of each answer of the turn."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def deliver(self, answer: Answer) -> None:
        """Keep it."""
        self.seconds.append(answer.seconds)

    def fault(self) -> str:
        """There is none."""
        return ""

    def close(self, timeout: float = 2.0) -> None:
        """Nothing is open."""


def measure(model: Path, folder: Path, viewers: int, turns: int, seconds: float, period: float) -> dict[str, Any]:
    """Percentiles in milliseconds of each turn, of all with and of all without viewers, and the
    ratio of these two.

    Raises:
        SprfastError: a number is not positive, the model does not serve, a picture cannot be read,
            or the line does not keep pace without viewers.
    """
    from sprfast.data import datasets, images
    from sprfast.line import sources
    from sprfast.line.station import Station
    from sprfast.line.station.server import Server
    from sprfast.system import environment

    for name, value in (("viewers", viewers), ("turns", turns), ("seconds", seconds), ("period", period)):
        require(value > 0, name, value, "a positive number")
    predictor, latencies = load(model), Latencies()
    shown = [images.read_rgb(path, predictor.preprocessing) for path in datasets.image_files([folder])]
    stream = sources.Stream(sources.SimulatedLine(shown, "rgb", period=period).open)
    measured: list[dict[str, Any]] = []
    together: dict[bool, list[float]] = {True: [], False: []}  # by whether there were viewers
    taken: list[float]
    with tempfile.TemporaryDirectory(prefix="sprfast-") as good:
        station = Station(
            model, predictor, stream, opened=load, calibrated=_refuse, good=Path(good), listeners=[latencies]
        )
        with station, Server(station) as server:
            running = threading.Thread(target=station.run)
            running.start()
            station.line.wait_until_started()
            for turn in range(2 * turns):
                count = viewers if turn % 4 in (1, 2) else 0
                with _watching(server.url, count):
                    time.sleep(SETTLING)
                    latencies.seconds = taken = []
                    time.sleep(seconds)
                    latencies.seconds = []
                measured.append({"viewers": count, **_percentiles(taken)})
                together[count > 0] += taken
            stream.close()
            running.join()
    with_, without = _percentiles(together[True]), _percentiles(together[False])
    if without["p50_ms"] > period * 1e3:
        raise InputError(f"the line does not keep pace with a trigger each {period:g} s; give a longer --period")
    ratio = {name: round(with_[name] / without[name], 4) for name in ("p50_ms", "p90_ms", "p99_ms")}
    return {
        "environment": environment.describe(None),
        "model_sha256": predictor.model_sha256,
        "backend": predictor.backend,
        "picture": list(shown[0].shape),
        "period_s": period,
        "turns": measured,
        "with_viewers": with_,
        "without": without,
        "ratio": ratio,
        "limit": LIMIT,
        "passed": ratio["p99_ms"] <= LIMIT,
    }


def _percentiles(taken: list[float]) -> dict[str, Any]:
    values = np.percentile(taken, [50, 90, 99]) * 1e3
    return {"answers": len(taken), **dict(zip(("p50_ms", "p90_ms", "p99_ms"), values.round(3).tolist(), strict=True))}


def _refuse(*_: object) -> NoReturn:
    raise InputError("nothing is calibrated here")


@contextlib.contextmanager
def _watching(url: str, count: int) -> Iterator[None]:
    """So many viewers meanwhile, all of which have events by now."""
    if not count:
        yield
        return
    spawn = multiprocessing.get_context("spawn")
    connected = spawn.Barrier(count + 1)
    process = spawn.Process(target=_watch, args=(url, count, connected), daemon=True)
    process.start()
    try:
        connected.wait(CONNECTING)
        yield
        if not process.is_alive():
            raise InputError("the viewers have ended before the turn did")
    finally:
        process.kill()
        process.join()


def _watch(url: str, count: int, connected: Barrier) -> None:
    def seen(kind: str, _: Any) -> None:
        if kind == "history":
            connected.wait()

    threads = [threading.Thread(target=view, args=(url, seen)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def view(url: str, seen: Callable[[str, Any], object]) -> None:
    """One viewer, until the station ends.

    Args:
        url: of the page, with its token.
        seen: called with the kind and the data of each event.

    Raises:
        OSError, HTTPException: the station ended in the middle of something.
    """
    where = urllib.parse.urlsplit(url)
    events, pictures = (http.client.HTTPConnection(where.netloc, timeout=CONNECTING) for _ in range(2))
    events.request("GET", f"/events?{where.query}")
    kind, known = "", -1
    for line in events.getresponse():
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            data = json.loads(value)
            seen(kind, data)
            wanted = []
            if kind == "state" and data["picture"] not in (None, known):
                known = data["picture"]
                wanted = [(known, 640)]
            elif kind == "answers":
                wanted = [(each["number"], 160) for each in data if each["verdict"] != "PASS" and each["picture"]]
            for number, side in wanted:
                pictures.request("GET", f"/picture/{number}?side={side}&{where.query}")
                pictures.getresponse().read()


def main() -> int:
    """Measure as told, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="of images that a simulated camera shows")
    parser.add_argument("--viewers", type=int, default=10)
    parser.add_argument("--turns", type=int, default=4, help="with viewers, and as many without")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a turn")
    parser.add_argument("--period", type=float, default=0.1, help="seconds between two triggers")
    given = parser.parse_args()
    report = measure(given.model, given.folder, given.viewers, given.turns, given.seconds, given.period)
    print(json.dumps(report, indent=1))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SprfastError as error:
        sys.exit(f"viewers: {error}")
