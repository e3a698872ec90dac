"""From a verdict to the controller's coils: the time between `deliver` and the moment when DONE
comes into the coils of pymodbus's server, in a process of its own on this machine.

`python -m sprfast.bench.line.sinks --frames 100000` prints the report as JSON; exit 1 if a part was
not decided by its own verdict, or the 99th percentile is above the limit.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import sys
import time
from typing import Any

import numpy as np

from sprfast.bench.line.controller import ModbusServer, Program
from sprfast.engine.predictor import Result
from sprfast.errors import CheckFailedError
from sprfast.line.answer import Answer
from sprfast.line.sinks import open_sink
from sprfast.method.threshold import Verdict
from sprfast.system import environment

LIMIT = 5.0  # ms, of the 99th percentile
REJECTED = 7  # each so many parts one is
WAIT = 10.0  # seconds for a trigger
NEXT = 0.0002  # seconds between two looks for the next trigger


def measure(frames: int, limit: float = LIMIT) -> dict[str, Any]:
    """Parts one after another, each triggered once the one before is done.

    Args:
        frames: parts.
        limit: ms, of the 99th percentile.

    Returns:
        Percentiles in ms, parts by what the controller decided, how many it decided otherwise than
        they were answered, parts per second, and the machine; plain JSON values.

    Raises:
        BackendError: pymodbus is not installed.
        CheckFailedError: the controller triggers no more.
    """
    context = multiprocessing.get_context("spawn")
    count, port = context.RawValue(ctypes.c_int64, 0), context.RawValue(ctypes.c_int64, 0)
    arrived = context.RawArray(ctypes.c_double, frames + 1)
    decided = context.RawArray(ctypes.c_uint8, frames + 1)
    ended = context.Event()
    process = context.Process(target=_control, args=(frames, count, port, arrived, decided, ended), daemon=True)
    process.start()
    delivered = np.zeros(frames + 1)
    _wait(lambda: port.value != 0, "the controller does not start")
    sink = open_sink(f"modbus://127.0.0.1:{port.value}?within=1")
    try:
        _wait(lambda: not sink.fault(), "the sink does not connect")
        started = time.monotonic()
        for part in range(1, frames + 1):
            _wait(lambda part=part: count.value >= part, f"the controller did not trigger part {part}; {sink.fault()}")
            answer = _answer(part)
            delivered[part] = time.monotonic()
            sink.deliver(answer)
        _wait(lambda: decided[frames] != 0, "the last part was not decided")
        seconds = time.monotonic() - started
    finally:
        sink.close()
        ended.set()
        process.join(WAIT)
    return _report(delivered[1:], np.array(arrived[1:]), bytes(decided[1:]), seconds, limit)


def passed(report: dict[str, Any]) -> bool:
    """Whether every part was decided by its verdict, and in time."""
    return bool(report["wrong"] == 0 and report["p99_ms"] <= report["limit_ms"])


def _wait(condition: Any, otherwise: str) -> None:
    until = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > until:
            raise CheckFailedError(otherwise)
        time.sleep(NEXT)


def _verdict(part: int) -> Verdict:
    return Verdict.PASS if part % REJECTED else Verdict.REJECT


def _answer(part: int) -> Answer:
    verdict = _verdict(part)
    score = 0.5 if verdict is Verdict.PASS else 2.0
    result = Result(verdict, score, 1.0, None, None, None, 0.0)
    return Answer(f"part-{part}", result, None, time.monotonic(), 0.0)


def _control(frames: int, count: Any, port: Any, arrived: Any, decided: Any, ended: Any) -> None:
    """The other process."""

    def each_cycle(program: Program) -> None:
        if program.decided and program.count in program.decided:
            decided[program.count] = ord(program.decided.pop(program.count)[0])
        if program.ready and not program.trigger and program.count < frames:
            program.fire()
            count.value = program.count

    def on_done(program: Program) -> None:
        if not arrived[program.count]:
            arrived[program.count] = time.monotonic()

    server = ModbusServer(each_cycle=each_cycle, on_done=on_done)
    port.value = server.port
    parent = multiprocessing.parent_process()
    while not ended.wait(1.0) and parent is not None and parent.is_alive():
        pass
    server.close()


def _report(delivered: Any, arrived: Any, decided: bytes, seconds: float, limit: float) -> dict[str, Any]:
    frames = len(delivered)
    expected = bytes(b"O"[0] if _verdict(part) is Verdict.PASS else b"N"[0] for part in range(1, frames + 1))
    ms = np.where(arrived > 0, (arrived - delivered) * 1e3, math.inf)
    return {
        "frames": frames,
        "decided": {name: decided.count(name[:1].encode()) for name in ("OK", "NG", "ERROR", "TIMEOUT")},
        "wrong": sum(one != other for one, other in zip(decided, expected, strict=True)),
        **{f"p{q:g}_ms": round(float(np.percentile(ms, q)), 3) for q in (50, 90, 99, 99.9)},
        "max_ms": round(float(ms.max()), 3),
        "limit_ms": limit,
        "parts_per_s": round(frames / seconds, 1),
        "environment": environment.describe(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m sprfast.bench.line.sinks", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--frames", type=int, default=100_000)
    report = measure(parser.parse_args().frames)
    print(json.dumps(report, indent=2))
    sys.exit(0 if passed(report) else 1)
