"""What a line says of a frame, and what it knows of a frame before."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

from sprfast.data.images import ChannelOrder, Image
from sprfast.engine.predictor import Predictor, Result
from sprfast.errors import SprfastError
from sprfast.method.threshold import Verdict


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The one answer to a frame. What is no PASS must not leave the line as a good part."""

    id: Hashable  # as given to `Line.submit`
    result: Result  # with the verdict; its maps are None where there is none
    error: SprfastError | None  # why the verdict is ERROR, by type
    trigger_time: float  # seconds of `time.monotonic`
    seconds: float  # from the trigger to this answer

    @property
    def verdict(self) -> Verdict:
        """PASS only if the score is finite and at most the threshold, and the answer in time."""
        return self.result.verdict


class Stage(enum.IntEnum):
    """How far a frame has come."""

    TAKEN = 0  # its pixels are being copied
    WAITING = 1
    PREPARING = 2
    READY = 3  # for the network
    SCORING = 4
    DECIDED = 5  # the answer waits to be delivered


@dataclasses.dataclass(eq=False)
class Entry:
    """A frame in the line. All but `future` is written under the lock of `InFlight`."""

    id: Hashable
    image: Any  # let go of once it is prepared
    trigger_time: float
    due: float  # seconds of `time.monotonic`; infinity: no deadline
    channel_order: ChannelOrder | None
    future: Future[Answer] = dataclasses.field(default_factory=Future)
    stage: Stage = Stage.TAKEN
    overflowed: bool = False  # refused or dropped by a full line
    predictor: Predictor | None = None  # that prepared it, and will score it
    prepared: Image | None = None
    ready_time: float = 0.0
    result: Result | None = None  # None with an `error`: of the predictor in use
    error: SprfastError | None = None

    @property
    def open(self) -> bool:
        """Whether it can still be decided."""
        return self.stage is not Stage.DECIDED
