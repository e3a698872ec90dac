"""What a line says of a frame, and what it knows of a frame before."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from typing import Any, NoReturn

from sprfast.data.images import ChannelOrder, Image
from sprfast.engine.predictor import Predictor, Result
from sprfast.errors import SprfastError
from sprfast.line.known_ids import Claim
from sprfast.method.threshold import Verdict


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The one answer to a frame. What is no PASS must not leave the line as a good part."""

    id: Hashable  # as given to `Line.submit`
    result: Result  # with the verdict; its maps are None where there is none
    error: SprfastError | None  # why the verdict is ERROR, by type
    trigger_time: float  # seconds of `time.monotonic`
    seconds: float  # from the trigger to this answer
    model_sha256: str = ""  # of the model that has scored it, or else of the one that serves

    @property
    def verdict(self) -> Verdict:
        """PASS only if the score is finite and at most the threshold, and the answer in time."""
        return self.result.verdict


DoneCallback = Callable[[Future[Answer]], object]


class AnswerFuture(Future[Answer]):
    """A future that only the line completes, and without running done-callbacks: whoever completes
    it takes them and has them run elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[DoneCallback] | None = []  # None: they were taken
        self._keeping = threading.RLock()
        self.set_running_or_notify_cancel()  # it cannot be cancelled: a part needs its answer

    def add_done_callback(self, fn: DoneCallback) -> None:
        """Call `fn` with this future once it is done, on a thread of the line; at once and here
        where it is done already.
        """
        with self._keeping:
            if self._kept is not None:
                self._kept.append(fn)
                return
        super().add_done_callback(fn)

    def set_result(self, result: Answer) -> NoReturn:
        """Raise InvalidStateError: a part's answer is the line's alone."""
        raise InvalidStateError("only the line that gave this future completes it")

    def set_exception(self, exception: BaseException | None) -> NoReturn:
        """Raise InvalidStateError, as `set_result` does."""
        raise InvalidStateError("only the line that gave this future completes it")

    def complete(self, answer: Answer) -> None:
        """What the line calls instead of `set_result`."""
        super().set_result(answer)

    def taken_callbacks(self) -> list[DoneCallback]:
        """The done-callbacks to be run now; those that come later run at once."""
        with self._keeping:
            kept, self._kept = self._kept, None
        return kept or []


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
    """A frame in the line. `answer` is written under the lock of `Answers`, all else but `future`
    under that of `InFlight`.
    """

    claim: Claim
    image: Any  # let go of once it is prepared
    trigger_time: float
    due: float  # seconds of `time.monotonic`; infinity: no deadline
    channel_order: ChannelOrder | None
    future: AnswerFuture = dataclasses.field(default_factory=AnswerFuture)
    number: int = -1  # in the order in which the line took them; -1: not taken
    stage: Stage = Stage.TAKEN
    predictor: Predictor | None = None  # that prepared it, and will score it
    prepared: Image | None = None
    ready_time: float = 0.0
    result: Result | None = None  # None with an `error`: of the predictor in use
    error: SprfastError | None = None
    reason: str = ""  # the text of `error`
    answer: Answer | None = None  # that has left, or is about to
    holders: int = 1  # the callback and done-callbacks that have not returned; the frame is in the line until then

    @property
    def open(self) -> bool:
        """Whether it can still be decided."""
        return self.stage is not Stage.DECIDED
