"""A whole station for as long as it takes to see whether it loses, mixes up or leaks anything: the
command `sprfast station --simulate` in a process of its own, a controller behind pymodbus's server
in another one, whose connection is lost again and again, and a viewer of the page.

python -m sprfast.bench.line.station screw.safetensors good-parts/ --frames 100000 --drops 50

The controller's photo-eye and the simulated camera go by the same clock, so that each part has a
picture and most have a TRIGGER. Prints the report as JSON; exit 1 if a check did not hold.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import http.client
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from sprfast.bench.line import plant, viewers
from sprfast.bench.line.plant import Decision, Plant
from sprfast.bench.line.soak import samples
from sprfast.bench.line.soak.options import SoakOptions
from sprfast.bench.line.soak.report import Check, failures, memory_check
from sprfast.bench.line.soak.samples import ProcessSample
from sprfast.config import require
from sprfast.errors import CheckFailedError, SprfastError
from sprfast.formats import log_verification
from sprfast.system import environment

DEADLINE, WITHIN = 0.5, 0.2  # seconds, of the line and of the sink
PATIENCE = DEADLINE + WITHIN + 0.05  # seconds, of the controller
SKEW = 0.6  # of the period; with what the controller is late it is less than the period
SAMPLES = 100  # over the run
STARTING, ENDING = 120.0, 60.0  # seconds
ANSWERED = 0.1  # least share of the parts that results decide; a run with fewer shows little
HEAP = {  # as `samples.one_heap` has it in its own process
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
DECIDED = {"PASS": "OK", "REJECT": "NG", "ERROR": "ERROR"}  # by verdict


class Viewer(threading.Thread):
    """Sees the page as a browser does, until the station ends.

    Args:
        url: of the page, with its token.
        log: of verdicts.
    """

    def __init__(self, url: str, log: Path) -> None:
        super().__init__(daemon=True)
        self._url, self._log = url, log
        self.logged = 0  # answers that were in the log when the page had no more events
        self.answers = self.faults = self.taken = 0  # answers seen; states with a fault; frames taken by the station
        self.latency: dict[str, Any] = {}
        self.running = threading.Event()  # an answer was seen
        self._last = 0

    def run(self) -> None:
        """View; that the station ends in the middle of something is no error."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            viewers.view(self._url, self._seen)
        self.logged = log_verification.verify(self._log).answers

    def _seen(self, kind: str, data: Any) -> None:
        if kind == "state":
            self.taken, self.latency = data["counts"]["taken"], data["latency"]
            self.faults += bool(data["faults"])
            return
        new = [each["number"] for each in data if each["number"] > self._last]
        if new:
            self.answers, self._last = self.answers + len(new), new[-1]
            self.running.set()


class Command:
    """The station's process, from `with` until its end, and what it has said."""

    def __init__(self, model: Path, folder: Path, frames: int, period: float, port: int, log: Path) -> None:
        sink = f"modbus://127.0.0.1:{port}?within={WITHIN:g}&skew={SKEW * period:g}"
        given = {
            "simulate": folder,
            "frames": frames,
            "period": f"{period * 1e3:g}ms",
            "deadline": f"{DEADLINE * 1e3:g}ms",
            "port": 0,
            "sink": sink,
            "log": log,
        }
        options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sprfast", "station", str(model), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | HEAP | {"PYTHONUNBUFFERED": "1"},
        )
        self.out: list[str] = []
        self.err: list[str] = []
        streams = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=_read, args=each, daemon=True) for each in streams]

    def __enter__(self) -> Command:
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()

    def url(self) -> str:
        """The address of the page.

        Raises:
            CheckFailedError: it did not start.
        """
        until = time.monotonic() + STARTING
        while time.monotonic() < until:
            for line in list(self.err):
                if line.startswith("page: "):
                    return line.removeprefix("page: ").strip()
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise CheckFailedError(f"the station did not start: {' '.join(''.join(self.err).split())[-500:]}")


@dataclasses.dataclass
class Outcome:
    """What a run has found."""

    frames: int
    drops: int
    command: Command
    viewer: Viewer
    samples: list[ProcessSample]
    warm: int  # the first sample that counts
    exit_code: int | None
    decisions: list[Decision]
    repeated: int
    cut: int
    records: list[dict[str, Any]]
    verification: log_verification.Verification


def soak(model: Path, folder: Path, frames: int, drops: int, period: float, seed: int = 0) -> dict[str, Any]:
    """Run it.

    Args:
        model: with a threshold.
        folder: of images of one size, which the simulated camera shows.
        frames: pictures.
        drops: losses of the connection to the controller.
        period: seconds from one part to the next.
        seed: of when and how the connection is lost.

    Returns:
        The report, plain JSON values: counts, `trends` as of `sprfast soak`, and `checks` with a
        name, whether they held (null: not judged) and what was found.

    Raises:
        CheckFailedError: the station or the controller does not start.
        InputError: a number is not allowed.
        BackendError: pymodbus is not installed.
    """
    require(frames >= 1, "frames", frames, "1 or more")
    require(0 <= drops <= frames, "drops", drops, f"0 to {frames}")
    require(math.isfinite(period) and period >= 0.001, "period", period, "0.001 or more")
    planned = plant.cuts(drops, frames, seed)
    with tempfile.TemporaryDirectory(prefix="sprfast-station-") as name:
        log = Path(name) / "verdicts.jsonl"
        with (
            Plant(period, PATIENCE, planned) as belt,
            Command(model, folder, frames, period, belt.port, log) as command,
        ):
            viewer = Viewer(command.url(), log)
            viewer.start()
            if not viewer.running.wait(STARTING):
                raise CheckFailedError("the station does not answer")
            belt.run()
            taken = _followed(command.process, viewer, frames * period)
            exit_code = command.process.poll()
            viewer.join(ENDING)
            time.sleep(2 * PATIENCE)  # for the last part
            decisions, repeated, cut = belt.stop()
        records: list[dict[str, Any]] = []
        verification = log_verification.verify(log, on_record=lambda record: records.append(dict(record)))
    warm = SoakOptions(frames).warm_up_frames
    first = next((number for number, sample in enumerate(taken) if sample.frames >= warm), len(taken))
    outcome = Outcome(
        frames,
        drops,
        command,
        viewer,
        taken,
        first,
        exit_code,
        decisions,
        repeated,
        cut,
        [record for record in records if "verdict" in record],
        verification,
    )
    return _report(outcome, model, period)


def _followed(process: subprocess.Popen[str], viewer: Viewer, seconds: float) -> list[ProcessSample]:
    """Wait for the station's end; samples of it while it serves its page."""
    began, taken = time.monotonic(), list[ProcessSample]()
    stride = max(0.1, seconds / SAMPLES)
    while process.poll() is None and time.monotonic() < began + 1.5 * seconds + ENDING:
        held: list[float | None] = []
        with contextlib.suppress(OSError):  # it has just ended
            held = [None if math.isnan(value) else value for value in samples.held(process.pid)]
        if held and viewer.is_alive():
            memory, threads, descriptors = held
            at, latency = time.monotonic() - began, viewer.latency
            percentiles = latency.get("p50_ms"), latency.get("p99_ms")
            taken.append(ProcessSample(viewer.taken, at, memory, threads, None, descriptors, *percentiles))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stride)
    return taken


def _read(stream: IO[str], lines: list[str]) -> None:
    with stream:
        lines.extend(stream)


def _report(outcome: Outcome, model: Path, period: float) -> dict[str, Any]:
    counted = outcome.samples[outcome.warm :]
    trends = {
        name: dataclasses.asdict(samples.trend(counted, name))
        for name in ("memory_kb", "threads", "descriptors", "p50_ms", "p99_ms")
    }
    matched = _Matched(outcome)
    checks = [*_ids(outcome), *_parts(outcome, matched), *_around(outcome), *_resources(outcome, trends)]
    said = [line.partition("modbus")[2] for line in outcome.command.err if "modbus" in line]
    return {
        "environment": environment.describe(None),
        "model": model.name,
        "frames": outcome.frames,
        "period_s": period,
        "drops": outcome.cut,
        "seconds": outcome.samples[-1].seconds if outcome.samples else None,
        "verdicts": dict(collections.Counter(record["verdict"] for record in outcome.records)),
        "decided": dict(matched.decided),
        "decided_while_down": dict(collections.Counter(each.how for each in matched.parts if not each.connected)),
        "said_of_the_sink": len(said),
        "connections": sum(line.rstrip().endswith(": connected") for line in said),
        "trends": trends,
        "samples": [dataclasses.asdict(sample) for sample in outcome.samples],
        "checks": [{"name": name, "passed": passed, "found": found} for name, passed, found in checks],
    }


class _Matched:
    """Decisions beside the answers that they were made of."""

    def __init__(self, outcome: Outcome) -> None:
        numbers = {record["id"]: number for number, record in enumerate(outcome.records)}
        with_id = [each for each in outcome.decisions if each.id]
        offsets = collections.Counter(each.part - _number(each.id) for each in with_id)
        self.offset = offsets.most_common(1)[0][0] if offsets else 0  # of the part of picture 0
        self.parts = [each for each in outcome.decisions if each.part - self.offset < outcome.frames]
        self.decided = collections.Counter(each.how for each in self.parts)
        self.foreign = sum(count for offset, count in offsets.items() if offset != self.offset)
        verdicts = [record["verdict"] for record in outcome.records]
        self.unlike = sum(each.id not in numbers or DECIDED[verdicts[numbers[each.id]]] != each.how for each in with_id)


def _number(id: str) -> int:
    return int(id.rpartition("-")[2]) if id.rpartition("-")[2].isdecimal() else -1


def _ids(outcome: Outcome) -> Iterator[Check]:
    ids = collections.Counter(record["id"] for record in outcome.records)
    expected = {f"camera-{number}" for number in range(outcome.frames)}
    missing, others = len(expected - ids.keys()), len(ids.keys() - expected)
    again = sum(count > 1 for count in ids.values())
    found = (
        f"{len(ids)} ids of {outcome.frames} frames; {missing} not answered, {again} answered again, {others} others"
    )
    yield "each id is answered once", not (missing or again or others), found
    counts = json.loads(outcome.command.out[-1]) if outcome.exit_code == 0 and outcome.command.out else {}
    verdicts = collections.Counter(record["verdict"] for record in outcome.records)
    told = (counts.get("taken"), counts.get("refused"), counts.get("drained"))
    right = told == (outcome.frames, 0, True) and all(counts.get(each) == verdicts[each] for each in DECIDED)
    yield "the station counts right", right, f"taken, refused, drained: {told}; {dict(verdicts)} in its log"
    rejects = [line.split()[1].rstrip(":") for line in outcome.command.out if line.startswith("reject ")]
    logged = [record["id"] for record in outcome.records if record["verdict"] != "PASS"]
    yield "each reject is printed once", rejects == logged, f"{len(rejects)} printed, {len(logged)} in the log"
    checked = outcome.verification
    intact = not checked.problem and not checked.lost and checked.answers == outcome.frames
    problem = checked.problem or "as they were written"
    yield "the log verifies", intact, f"{checked.records} records, {checked.lost} answers lost; {problem}"


def _parts(outcome: Outcome, matched: _Matched) -> Iterator[Check]:
    parts = [each.part for each in matched.parts]
    span = range(min(parts, default=0), matched.offset + outcome.frames if parts else 0)
    once = not outcome.repeated and sorted(parts) == list(span)
    found = f"{len(parts)} parts, {len(span) - len(set(parts))} not decided, {outcome.repeated} twice"
    yield "each part is decided once", once and bool(parts), found
    down = [each for each in matched.parts if not each.connected]
    passed = sum(each.how == "OK" for each in down)
    yield "no part passes while the connection is down", passed == 0, f"{len(down)} parts then, {passed} passed"
    held = not (matched.foreign or matched.unlike)
    found = f"{matched.foreign} by the picture of another, {matched.unlike} otherwise than their picture was answered"
    yield "each part is decided by its own picture", held, found
    answered = sum(matched.decided[how] for how in DECIDED.values())
    share = answered / max(1, len(parts))
    missed = f"{matched.decided['MISSED']} had no TRIGGER, {matched.decided['TIMEOUT']} no result in time"
    yield "results decide parts", share >= ANSWERED, f"{answered} of {len(parts)}; {missed}"


def _around(outcome: Outcome) -> Iterator[Check]:
    again = sum("modbus" in line and line.rstrip().endswith(": connected") for line in outcome.command.err)
    found = f"{outcome.cut} of {outcome.drops}; the station has connected {again} times"
    yield "the connection is lost as often as planned", outcome.cut == outcome.drops and again > outcome.cut, found
    viewer = outcome.viewer
    found = f"{viewer.logged} answers, and had {viewer.answers} of them and {viewer.faults} states with a fault"
    yield "the viewer is there to the end", viewer.logged == outcome.frames, f"it was there for {found}"
    yield "the station ends by itself", outcome.exit_code == 0, f"exit code {outcome.exit_code}"


def _resources(outcome: Outcome, trends: dict[str, dict[str, Any]]) -> Iterator[Check]:
    counted = outcome.samples[outcome.warm :]
    frames = counted[-1].frames - counted[0].frames if counted else 0
    yield memory_check(trends["memory_kb"], frames)
    some = max(1, len(counted) // 10)
    for name in ("threads", "descriptors"):
        held, told = None, "not known"
        first, last = (_most(each, name) for each in (counted[:some], counted[-some:]))
        if first is not None and last is not None and len(counted) > 1:
            held, told = last <= first, f"at most {first:g} after the warm-up, at most {last:g} at the end"
        yield f"{name} do not grow", held, told


def _most(taken: Iterable[ProcessSample], name: str) -> float | None:
    return max((value for each in taken if (value := getattr(each, name)) is not None), default=None)


def main() -> int:
    """Soak as told, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="of images that the simulated camera shows")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--drops", type=int, default=50, help="of the connection to the controller")
    parser.add_argument("--period", type=float, default=0.008, help="seconds from one part to the next")
    parser.add_argument("--seed", type=int, default=0, help="of when and how the connection is lost")
    given = parser.parse_args()
    report = soak(given.model, given.folder, given.frames, given.drops, given.period, given.seed)
    print(json.dumps(report, indent=1))
    return int(bool(failures(report)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SprfastError as error:
        sys.exit(f"station: {error}")
