"""Modbus TCP, by pymodbus: the controller is the server. docs/line.md has the map."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from typing import Any

from sprfast.line.sinks.handshake import Control, Outcome, State
from sprfast.system.libraries import require

STATE, STATES = 0, 6  # coils that the station writes
OUTCOME, OUTCOMES = 0, 20  # holding registers that the station writes
CONTROL, CONTROLS = 32, 2  # holding registers that the controller writes
ID_BYTES = 32


class ModbusController:
    """A `Controller` behind Modbus TCP.

    Args:
        host: name or address.
        port: of the controller.
        unit: its device id.
        coils: address of its first coil.
        registers: address of its first holding register.
        timeout: seconds to connect, and for each reply.

    Raises:
        BackendError: pymodbus is not installed.
    """

    def __init__(self, host: str, port: int, unit: int, coils: int, registers: int, timeout: float) -> None:
        self._client_module = require("pymodbus.client", "plc")
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL + 1)  # what fails is raised too
        self.name = f"modbus {host}:{port}"
        self._host, self._port, self._timeout = host, port, timeout
        self._unit, self._coils, self._registers = unit, coils, registers
        self._client: Any = None

    def open(self) -> None:
        """Connect."""
        client = self._client_module.ModbusTcpClient(self._host, port=self._port, timeout=self._timeout, retries=0)
        self._client = client
        # by ourselves: the client's own way only says that it failed, not why
        client.socket = socket.create_connection((self._host, self._port), self._timeout)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> Control:
        """What the controller says now."""
        address = self._registers + CONTROL
        reply = self._client.read_holding_registers(address, count=CONTROLS, device_id=self._unit)
        word, number = self._checked(reply, f"reading holding registers from {address}").registers
        return Control(bool(word & 1), bool(word & 2), number)

    def write_outcome(self, outcome: Outcome) -> None:
        """Code, number, ratio and id."""
        name = outcome.id.encode("ascii", "replace")[:ID_BYTES].ljust(ID_BYTES, b"\0")
        packed = struct.pack(f">HHf{ID_BYTES}s", outcome.code, outcome.number, outcome.ratio, name)
        values, address = list(struct.unpack(f">{OUTCOMES}H", packed)), self._registers + OUTCOME
        reply = self._client.write_registers(address, values, device_id=self._unit)
        self._checked(reply, f"writing holding registers from {address}")

    def write_state(self, state: State) -> None:
        """All coils in one request."""
        address = self._coils + STATE
        reply = self._client.write_coils(address, state.bits(), device_id=self._unit)
        self._checked(reply, f"writing coils from {address}")

    def abort(self) -> None:
        """Reset the connection: what the system has not sent yet is thrown away."""
        if self._client is not None and self._client.socket is not None:
            with contextlib.suppress(OSError):
                self._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._client.close()
        self._client = None

    @staticmethod
    def _checked(reply: Any, what: str) -> Any:
        if reply.isError():
            raise ConnectionError(f"the controller refused {what}: exception code {reply.exception_code}")
        return reply
