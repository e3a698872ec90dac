"""The handshake with a controller, the same over Modbus TCP and OPC UA.

1. The station shows READY. The controller counts its trigger number up, sets TRIGGER, and fires the
   camera.
2. The station writes the result with that number, then DONE with OK, NG or ERROR.
3. The controller takes the result, and sets ACK.
4. The station takes DONE and OK back. The controller takes TRIGGER and ACK back.

A result is written only for a trigger that the station has seen rise on this connection, from a
picture taken since, and once. In the rest position OK is off and NG is on.

A picture from before READY is of no trigger to come, so that a stray one costs its own trigger only
and does not shift all results by one. Where the camera takes pictures without TRIGGER as a rule,
each must have been taken within `skew` of its TRIGGER, and what the station has seen must prove it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Protocol

from sprfast.errors import SinkError
from sprfast.line.sinks.message import Code, Message
from sprfast.method.threshold import Verdict

HEARTBEAT = 0.1  # seconds from one change of the heartbeat to the next
LOOK = 0.02  # seconds between two looks at TRIGGER without a result, at most
LOOKS = 0.4  # of `skew`: seconds between two looks where it is given
POLL = 0.001  # seconds between two looks while the controller is waited for
SKEW = 0.03  # seconds that a picture may be older than its TRIGGER, as far as the station sees that


@dataclasses.dataclass(frozen=True)
class Control:
    """What the controller says."""

    trigger: bool  # a part is before the camera, and its result is awaited
    ack: bool  # the result has been taken
    number: int  # of the trigger, 0 to 65535


@dataclasses.dataclass(frozen=True)
class State:
    """What the station shows. NG is on unless OK is: there is no third state."""

    ready: bool = False
    done: bool = False
    ok: bool = False
    error: bool = False
    heartbeat: bool = False

    def bits(self) -> list[bool]:
        """READY, DONE, OK, NG, ERROR, HEARTBEAT."""
        return [self.ready, self.done, self.ok, not self.ok, self.error, self.heartbeat]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What stands beside the verdict."""

    code: Code = Code.NONE
    number: int = 0  # of the trigger
    ratio: float = -1.0  # score ÷ threshold; -1: there is none
    id: str = ""


class Controller(Protocol):
    """The controller's memory; whatever it raises means that the connection is lost."""

    name: str

    def open(self) -> None:
        """Connect."""
        ...

    def read(self) -> Control:
        """What the controller says now."""
        ...

    def write_outcome(self, outcome: Outcome) -> None:
        """Returns when the controller has it."""
        ...

    def write_state(self, state: State) -> None:
        """All bits together, after what was written before; returns when the controller has
        them.
        """
        ...

    def abort(self) -> None:
        """End at once; what has not left yet never does. Never raises."""
        ...


class Handshake:
    """A `Connection` to a controller.

    Args:
        within: seconds that the controller has to take a result.
        skew: seconds that a picture and its TRIGGER are apart at most; None: the picture may come
            any time after it.
    """

    takes_late = False

    def __init__(self, controller: Controller, within: float, skew: float | None = None) -> None:
        self.name, self._controller, self._within, self._skew = controller.name, controller, within, skew
        self.interval = LOOK if skew is None else min(LOOK, LOOKS * skew)
        self._state = State()
        self._served: int | None = None  # number of the last trigger that has, or will have, no other result
        self._on: int | None = None  # number of another trigger that the last look has seen; None: of none
        self._looked = 0.0  # when that look began
        self._ready = 0.0  # when READY was shown last
        # the trigger that is on has risen between these two; without one the first is when the last
        # look began
        self._unseen = self._seen = 0.0

    def open(self) -> None:
        """Connect, clear what an earlier connection left, and pass over a trigger that is on: its
        picture may be any.
        """
        self._controller.open()
        self._show(State())
        self._controller.write_outcome(Outcome())
        self._served = self._on = None
        control = self._look()
        self._served = control.number if control.trigger else None
        self._show_ready()

    def send(self, message: Message) -> None:
        """Write the result for the trigger of its part, and wait until the controller has taken it.

        Raises:
            SinkError: the controller awaits no result for this picture, or does not take it.
        """
        if self._skew is None and message.trigger_time < self._ready:
            raise SinkError(f"the picture of {message.id} is from before READY; it is rejected")
        number = self._awaited(message)
        self._served = number
        ratio = -1.0 if message.ratio is None else max(-1.0, min(1e30, message.ratio))
        self._controller.write_outcome(Outcome(message.code, number, ratio, message.id))
        if time.monotonic() > message.due:
            raise SinkError(f"the result of {message.id} was late and not given out")
        verdict = message.verdict
        self._show(State(done=True, ok=verdict is Verdict.PASS, error=verdict is Verdict.ERROR))
        try:
            self._wait_for_ack(message)
        finally:
            self._show_ready()

    def idle(self) -> None:
        """Look at TRIGGER, and keep the heart beating."""
        self._look()

    def rest(self) -> None:
        """Not ready, and no result."""
        self._controller.write_outcome(Outcome())
        self._show(State())

    def abort(self) -> None:
        """End at once."""
        self._controller.abort()

    def _awaited(self, message: Message) -> int:
        while True:
            began = time.monotonic()
            control = self._look()
            if control.trigger and control.number != self._served:
                self._check_time(message)
                if not control.ack:
                    return control.number
                if began > message.due:
                    raise SinkError(f"the controller does not take ACK back; {message.id} is rejected")
            elif began > message.trigger_time + (SKEW if self._skew is None else self._skew):
                raise SinkError(f"the controller awaits no result for {message.id}; it is rejected")
            time.sleep(POLL)

    def _check_time(self, message: Message) -> None:
        """That the picture is of the trigger that is on."""
        taken, skew = message.trigger_time, self._skew
        if skew is None and taken < self._unseen - SKEW:
            raise SinkError(f"the picture of {message.id} is older than the TRIGGER that is on; it is rejected")
        if skew is not None and not self._seen - skew <= taken <= self._unseen + skew:
            raise SinkError(
                f"the picture of {message.id} was perhaps not taken within {skew:g} s of the TRIGGER that is on; "
                f"it is rejected"
            )

    def _wait_for_ack(self, message: Message) -> None:
        until = time.monotonic() + self._within
        while True:
            control = self._look()
            if control.ack:
                return
            if not control.trigger or control.number != self._served:
                raise SinkError(f"the controller gave up on {message.id} before it took the result")
            if time.monotonic() > until:
                raise SinkError(f"the controller did not take the result of {message.id} within {self._within:g} s")
            time.sleep(POLL)

    def _look(self) -> Control:
        began = time.monotonic()
        control = self._controller.read()
        on = control.number if control.trigger and control.number != self._served else None
        if on is None:
            self._unseen = began
        elif on != self._on:
            self._unseen, self._seen = self._looked, time.monotonic()
        self._on, self._looked = on, began
        if self._state.heartbeat is not _beat():
            self._show(self._state)
        return control

    def _show_ready(self) -> None:
        self._ready = time.monotonic()
        self._show(State(ready=True))

    def _show(self, state: State) -> None:
        self._state = dataclasses.replace(state, heartbeat=_beat())
        self._controller.write_state(self._state)


def _beat() -> bool:
    return int(time.monotonic() / HEARTBEAT) % 2 == 1
