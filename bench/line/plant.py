"""The plant around a station: a belt whose photo-eye fires the camera and tells the controller of
each part, and a network that fails at the worst moments.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import queue
import random
import time
from typing import Any

from sprfast.bench.line.controller import ModbusServer, Program
from sprfast.errors import CheckFailedError
from sprfast.system.libraries import require

# when the connection goes: without a part, between TRIGGER and DONE, between DONE and the station's
# look at ACK
PHASES = ("idle", "triggered", "answered")
LEAST_CUT, LONGEST_CUT = 0.05, 0.8  # seconds without a server; the watchdog of a controller lies between
PATIENCE = 60.0  # seconds for what the other process says
LAG = 0.25  # of the period after which the controller has seen a part too late, and lets it go without TRIGGER


@dataclasses.dataclass(frozen=True)
class Cut:
    """One loss of the connection."""

    part: int  # after so many parts, at the next moment that fits
    phase: str
    seconds: float  # until the server listens again


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a part."""

    part: int  # it has come at so many whole periods of the system's clock
    how: str  # OK, NG, ERROR, TIMEOUT, or MISSED: rejected without a TRIGGER
    id: str  # of the picture that decided it; "": none did
    connected: bool


def cuts(count: int, parts: int, seed: int = 0) -> list[Cut]:
    """So many over a run of so many parts, each in a stretch of its own and in every phase as often
    as in another.
    """
    chance = random.Random(seed)
    phases = [PHASES[number % len(PHASES)] for number in range(count)]
    chance.shuffle(phases)
    moments = [int((number + chance.uniform(0.1, 0.5)) * parts / count) for number in range(count)]
    return [
        Cut(moment, phase, round(chance.uniform(LEAST_CUT, LONGEST_CUT), 3))
        for moment, phase in zip(moments, phases, strict=True)
    ]


class Belt(Program):
    """A controller's program with a belt: a part comes at every whole multiple of the period on the
    system's clock, when a simulated camera of that period takes its picture.

    The camera does not ask whether the station is ready. A part that comes while it is not, or
    while another one's result is awaited, is rejected without TRIGGER, though it has a picture.

    Args:
        period: seconds.
        patience: seconds from TRIGGER to the rejection of its part.
        cuts: losses of the connection, in their order.
        running: a shared value; parts count while it is not 0.
    """

    def __init__(self, period: float, patience: float, cuts: list[Cut], running: Any) -> None:
        super().__init__(patience=patience)
        self.decisions: list[Decision] = []
        self.cut = 0  # connections
        self._period, self._left, self._running = period, list(cuts), running
        self._last: int | None = None  # part that came
        self._first = self._awaited = 0  # part; that of the last TRIGGER
        self.server: ModbusServer | None = None  # before any part comes

    def each_cycle(self) -> None:
        """Look at the photo-eye."""
        if not self._running.value:
            return
        part = math.floor(time.monotonic() / self._period)
        if self._last is None:
            self._first = self._last = part
        for missed in range(self._last + 1, part):
            self._decided(missed, "MISSED")
        if part > self._last:
            self._last = part
            self._arrive(part)
        if not self.trigger and not self.ack:
            self.lose("idle")

    def decide(self, how: str) -> None:
        """What becomes of the part whose trigger is on."""
        super().decide(how)
        self._decided(self._awaited, how)

    def lose(self, phase: str) -> None:
        """Close the connection if it is time for that, and there is one."""
        server, left = self.server, self._left
        if not (server and server.reached and left and self._last is not None and left[0].phase == phase):
            return
        if self._last - self._first >= left[0].part:
            server.cut(left.pop(0).seconds)
            self.cut += 1

    def _arrive(self, part: int) -> None:
        in_time = time.monotonic() <= (part + LAG) * self._period
        if in_time and self.alive and self.ready and not self.trigger and not self.ack:
            self._awaited = part
            self.fire()
            self.lose("triggered")
        else:
            self._decided(part, "MISSED")

    def _decided(self, part: int, how: str) -> None:
        reached = self.server is not None and self.server.reached
        self.decisions.append(Decision(part, how, self.id if how in {"OK", "NG", "ERROR"} else "", reached))


class Plant:
    """A belt and its controller in a process of their own, from `with` until its end.

    Args: as of `Belt`.

    Raises:
        BackendError: pymodbus is not installed.
        CheckFailedError: the process does not start, or has ended.
    """

    def __init__(self, period: float, patience: float, cuts: list[Cut]) -> None:
        require("pymodbus.server", "plc")
        context = multiprocessing.get_context("spawn")
        self._running, self._told = context.RawValue("b", 0), context.Queue()
        self._ended = context.Event()
        given = (period, patience, cuts, self._running, self._ended, self._told)
        self._process = context.Process(target=_control, args=given, daemon=True)

    def __enter__(self) -> Plant:
        self._process.start()
        self.port: int = self._heard()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def run(self) -> None:
        """Parts come from here on."""
        self._running.value = 1

    def stop(self) -> tuple[list[Decision], int, int]:
        """End the belt: the decisions, how many parts were decided twice, and connections cut."""
        self._ended.set()
        found: tuple[list[Decision], int, int] = self._heard()
        return found

    def _heard(self) -> Any:
        try:
            return self._told.get(timeout=PATIENCE)
        except queue.Empty:
            raise CheckFailedError(f"the controller has said nothing for {PATIENCE:g} s") from None


def _control(period: float, patience: float, cuts: list[Cut], running: Any, ended: Any, told: Any) -> None:
    """The other process."""
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL + 1)  # which has much to say of a connection cut
    belt = Belt(period, patience, cuts, running)
    server = belt.server = ModbusServer(
        program=belt, each_cycle=lambda _: belt.each_cycle(), on_done=lambda _: belt.lose("answered")
    )
    told.put(server.port)
    parent = multiprocessing.parent_process()
    while not ended.wait(1.0) and parent is not None and parent.is_alive():
        pass
    server.close()
    told.put((belt.decisions, belt.repeated, belt.cut))
