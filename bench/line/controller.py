"""A controller to try sinks with: the program that docs/line.md asks of one, and a Modbus TCP
server of pymodbus around it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sprfast.line.sinks import modbus
from sprfast.system.libraries import require

CYCLE = 0.002  # seconds of the program's own clock
PATIENCE = 1.0  # seconds from a trigger to the rejection of a part that has no result
WATCHDOG = 0.5  # seconds without a change of HEARTBEAT after which the station counts as gone


@dataclasses.dataclass
class Program:
    """What the controller does, once a cycle and at each request."""

    patience: float = PATIENCE
    watchdog: float = WATCHDOG
    trigger: bool = False
    ack: bool = False
    count: int = 0  # of triggers; its low 16 bits are the trigger number
    ready: bool = False
    done: bool = False
    ok: bool = False
    ng: bool = True
    error: bool = False
    heartbeat: bool = False
    outcome: Sequence[int] = (0,) * modbus.OUTCOMES
    began: float = 0.0  # of the trigger
    changed: float = 0.0  # HEARTBEAT, last
    decided: dict[int, str] = dataclasses.field(default_factory=dict)  # OK, NG, ERROR or TIMEOUT by count
    repeated: int = 0  # triggers that were decided twice

    @property
    def alive(self) -> bool:
        """Whether the station is."""
        return time.monotonic() - self.changed < self.watchdog

    @property
    def passing(self) -> bool:
        """Whether the gate is open: only for a result of this trigger from a station that lives."""
        return self.alive and self.trigger and self.done and self.ok and not self.ng and self.answers

    @property
    def answers(self) -> bool:
        """Whether the result is that of this trigger."""
        return self.outcome[1] == self.count & 0xFFFF

    @property
    def id(self) -> str:
        """Of the part, as the station names it."""
        return b"".join(word.to_bytes(2, "big") for word in self.outcome[4:]).rstrip(b"\0").decode("ascii")

    def fire(self) -> None:
        """A part has come."""
        self.count, self.trigger, self.began = self.count + 1, True, time.monotonic()

    def take(self, bits: Sequence[bool]) -> None:
        """What the station shows now."""
        if bits[5] is not self.heartbeat:
            self.changed = time.monotonic()
        self.ready, self.done, self.ok, self.ng, self.error, self.heartbeat = map(bool, bits)
        self.cycle()

    def cycle(self) -> None:
        """One cycle."""
        if self.ack:
            if not self.done or not self.alive:
                self.ack = self.trigger = False
        elif self.trigger and self.alive and self.done and self.answers:
            self.decide("OK" if self.passing and not self.error else "ERROR" if self.error else "NG")
            self.ack = True
        elif self.trigger and time.monotonic() > self.began + self.patience:
            self.decide("TIMEOUT")
            self.trigger = False

    def decide(self, how: str) -> None:
        """What becomes of the part whose trigger is on."""
        self.repeated += self.count in self.decided
        self.decided[self.count] = how


class ModbusServer:
    """The program behind pymodbus's server, on 127.0.0.1 and a thread of its own.

    Args:
        port: 0: a free one.
        program: None: a new one.
        each_cycle: called once a cycle, on the server's thread.
        on_done: called when a result has come into the coils, likewise.

    Raises:
        BackendError: pymodbus is not installed.
    """

    def __init__(
        self,
        port: int = 0,
        program: Program | None = None,
        each_cycle: Callable[[Program], object] = lambda program: None,
        on_done: Callable[[Program], object] = lambda program: None,
    ) -> None:
        self.program, self.port = program or Program(), port
        self.writes = 0
        self.reached = False  # the station has shown READY and looked at TRIGGER since the last `cut`
        self._cleared = False  # it has cleared what stood in the coils since then
        self._each_cycle, self._on_done = each_cycle, on_done
        self._servers, self._simulator = require("pymodbus.server", "plc"), require("pymodbus.simulator", "plc")
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.up()
        self._cycling = asyncio.run_coroutine_threadsafe(self._cycle(), self._loop)

    def up(self) -> None:
        """Listen."""
        self._call(self._up())

    def down(self) -> None:
        """Close all connections, and listen no more."""
        self._call(self._server.shutdown())

    def drop(self) -> None:
        """Close all connections, and go on listening."""

        async def close() -> None:
            for connection in list(self._server.active_connections.values()):
                connection.transport.abort()

        self._call(close())

    def cut(self, seconds: float) -> None:
        """Close all connections at once, and listen again after so many seconds; for the server's
        own thread, as from `each_cycle`.
        """
        self.reached = self._cleared = False
        for connection in list(self._server.active_connections.values()):
            connection.transport.abort()
        self._reopening = asyncio.ensure_future(self._reopen(seconds))

    def close(self) -> None:
        """End it."""
        self._cycling.cancel()
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _reopen(self, seconds: float) -> None:
        await self._server.shutdown()
        await asyncio.sleep(seconds)
        await self._up()

    async def _up(self) -> None:
        data, kind = self._simulator.SimData, self._simulator.DataType.REGISTERS
        blocks = (
            [data(0, count=1, values=0, datatype=self._simulator.DataType.BITS)],
            [data(0, count=1, values=0, datatype=self._simulator.DataType.BITS)],
            [data(0, count=modbus.CONTROL + modbus.CONTROLS, values=0, datatype=kind)],
            [data(0, count=1, values=0, datatype=kind)],
        )
        device = self._simulator.SimDevice(1, simdata=blocks, action=self._act)
        self._server = self._servers.ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.serve_forever(background=True)
        self.port = self._server.transport.sockets[0].getsockname()[1]

    async def _cycle(self) -> None:
        while True:
            self.program.cycle()
            self._each_cycle(self.program)
            await asyncio.sleep(CYCLE)

    async def _act(
        self, function: int, start: int, address: int, count: int, registers: list[int], given: list[Any] | None
    ) -> None:
        program = self.program
        if function == 15 and given is not None:
            self._cleared |= not given[0]
            self.writes += 1
            before = program.done
            program.take(given)
            if program.done and not before:  # a beat of the heart writes DONE again
                self._on_done(program)
        elif function == 16 and given is not None:
            program.outcome = tuple(given)
        elif function == 3:
            self.reached |= self._cleared and program.ready
            program.cycle()
            self._each_cycle(program)
            registers[modbus.CONTROL - start : modbus.CONTROL - start + 2] = [
                program.trigger | program.ack << 1,
                program.count & 0xFFFF,
            ]
