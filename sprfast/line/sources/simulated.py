"""A camera that is not there, with the faults of those that are: for tests, soak runs and
examples.
"""

from __future__ import annotations

import collections
import enum
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.data.images import ChannelOrder
from sprfast.errors import CameraError, InputError
from sprfast.line.sources.camera import Picture


class Fault(str, enum.Enum):
    """What may befall the picture of one trigger."""

    STALL = "stall"  # nothing comes for a while; the picture is lost, those after it come late
    DROP = "drop"  # the picture is lost
    REORDER = "reorder"  # it comes after the next one
    REPEAT = "repeat"  # it comes twice
    PARTIAL = "partial"  # not all of it comes
    FORMAT_CHANGE = "format_change"  # it is grey instead of colour, or smaller
    DISCONNECT = "disconnect"  # it is lost with the connection
    BLACK = "black"  # every pixel is 0
    NAN = "nan"  # it is float32, with a pixel that is no number

    @property
    def spoils(self) -> bool:
        """Whether the trigger must not get the verdict PASS; a picture that comes twice passes
        once.
        """
        return self is not Fault.REPEAT

    def __str__(self) -> str:
        return self.value


def simulated_faults(frames: int, rate: float, seed: int = 0) -> dict[int, Fault]:
    """Faults for a share `rate` of the triggers 1 to `frames` - 2, with every kind among them as
    often as another.

    Raises:
        InputError: that is less than one of each kind, or more than all triggers.
    """
    count = round(frames * rate)
    if not len(Fault) <= count <= frames - 2:
        allowed = f"{len(Fault)} to {max(len(Fault), frames - 2)}"
        raise InputError(f"frames, rate: {frames} and {rate} make {count} faults, expected {allowed}")
    numbers = np.random.default_rng(seed).choice(np.arange(1, frames - 1), count, replace=False)
    return dict(zip(numbers.tolist(), itertools.cycle(Fault), strict=False))


class SimulatedLine:
    """Triggers, pictures and faults, over all connections of one simulated camera; `open` is for
    `Stream`.

    The same arguments give the same pictures and faults. With a `period` triggers come in real
    time, connected or not, and the pictures of those that come without a connection are lost. They
    come at whole multiples of the period on the system's clock `time.monotonic`, so that a program
    beside this one knows when.

    Args:
        pictures: shown in turn; uint8, uint16 or float32.
        channel_order: of the pictures.
        frames: triggers, counted from 0; None: they do not end.
        period: seconds from one to the next; 0: as fast as they are taken.
        faults: by number of the trigger.
        stall: seconds of `Fault.STALL`.
        refusals: attempts to connect that fail after each loss of the connection.
        restarts: the camera counts from 0 after each connection, not on.
        seed: of what a spoilt picture looks like.

    Raises:
        InputError: there are no pictures.
    """

    def __init__(
        self,
        pictures: Sequence[npt.NDArray[Any]],
        channel_order: ChannelOrder,
        *,
        frames: int | None = None,
        period: float = 0.0,
        faults: Mapping[int, Fault] | None = None,
        stall: float = 0.0,
        refusals: int = 0,
        restarts: bool = False,
        seed: int = 0,
    ) -> None:
        if len(pictures) == 0:
            raise InputError("pictures: there is none to show")
        self.pictures, self.channel_order, self.frames, self.period = pictures, channel_order, frames, period
        self.stall, self.restarts, self.seed = stall, restarts, seed
        self.faults = dict(faults or {})
        self.injected: dict[int, Fault] = {}  # by trigger, what has befallen it
        self.next = 0  # trigger
        self.connections = 0
        self._refusals, self._refuse = refusals, 0
        self._started: float | None = None

    def open(self) -> SimulatedCamera:
        """Connect.

        Raises:
            CameraError: as often as `refusals` says.
        """
        if self._refuse:
            self._refuse -= 1
            raise CameraError("simulated camera: cannot be opened")
        while self.period and self._started is not None and not self.ended and self.due() < time.monotonic():
            self.injected[self.next] = Fault.DISCONNECT
            self.next += 1
        self.connections += 1
        self._refuse = self._refusals
        return SimulatedCamera(self)

    @property
    def ended(self) -> bool:
        """Whether all triggers have been."""
        return self.frames is not None and self.next >= self.frames

    def due(self) -> float:
        """When the next trigger comes."""
        now = time.monotonic()
        if self._started is None:
            self._started = math.ceil(now / self.period) * self.period if self.period else now
        return self._started + self.next * self.period if self.period else now


class SimulatedCamera:
    """One connection to the camera of a `SimulatedLine`; it is over with `Fault.DISCONNECT`."""

    def __init__(self, line: SimulatedLine) -> None:
        self._line = line
        self._first = line.next if line.restarts else 0
        self._connected = True
        self._silent_until = 0.0
        self._ready: collections.deque[Picture] = collections.deque()
        self._held: list[tuple[int, Picture]] = []  # to come after another one, with their triggers

    def grab(self, timeout: float) -> Picture | None:
        """The next picture; see `Camera.grab`."""
        if not self._connected:
            raise CameraError("simulated camera: is not connected")
        if not self._ready:
            if self._line.ended:
                self._release_last()
            elif not self._wait(timeout) or not self._expose():
                return None
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Disconnect."""
        self._connected = False

    def _wait(self, timeout: float) -> bool:
        """Whether there is a trigger within `timeout` seconds."""
        left = max(self._line.due(), self._silent_until) - time.monotonic()
        time.sleep(min(max(left, 0.0), timeout))
        return left <= timeout

    def _expose(self) -> bool:
        """Take the picture of the next trigger; False: nothing will come for a while."""
        line, number = self._line, self._line.next
        time_, fault = line.due(), line.faults.get(number)
        line.next += 1
        if fault:
            line.injected[number] = fault
        if fault is Fault.DISCONNECT:
            self._connected = False
            raise CameraError(f"simulated camera: lost the connection at trigger {number}")
        if fault is Fault.STALL:
            self._silent_until = time.monotonic() + line.stall
            return False
        if fault is Fault.DROP:
            return True
        picture = self._picture(number, time_, fault)
        if fault is Fault.REORDER:
            self._held.append((number, picture))
            return True
        self._ready += [picture] * (2 if fault is Fault.REPEAT else 1)
        self._ready += [held for _, held in self._held]
        self._held.clear()
        return True

    def _release_last(self) -> None:
        """What is held when no other picture will come is in its order after all."""
        if not self._held:
            raise EOFError
        for number, picture in self._held:
            del self._line.injected[number]
            self._ready.append(picture)
        self._held.clear()

    def _picture(self, number: int, time_: float, fault: Fault | None) -> Picture:
        line = self._line
        image, order = line.pictures[number % len(line.pictures)], line.channel_order
        random = np.random.default_rng((line.seed, number))
        if fault is Fault.PARTIAL:
            error = CameraError(f"simulated camera: the picture of trigger {number} is not whole")
            return Picture(None, number - self._first, time_, fault=error)
        if fault is Fault.FORMAT_CHANGE and image.ndim == 3 and random.integers(2):
            image, order = image[:, :, 1], "grey"
        elif fault is Fault.FORMAT_CHANGE:
            image = image[: max(1, image.shape[0] // 2)]
        elif fault is Fault.BLACK:
            image = np.zeros_like(image)
        elif fault is Fault.NAN:
            image = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1)
            image[tuple(random.integers(image.shape))] = np.nan
        return Picture(image, number - self._first, time_, order)
