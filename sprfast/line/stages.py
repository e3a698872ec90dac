"""What the threads of a line do: prepare frames, run the network, deliver answers. None of them
ends by an error.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

from sprfast.engine.predictor import Predictor
from sprfast.errors import BackendError, DeviceLostError, InputError, ScoreError, SprfastError
from sprfast.line.answer import Answer, Entry
from sprfast.line.health import Counters
from sprfast.line.in_flight import InFlight, late
from sprfast.method.threshold import Verdict

_log = logging.getLogger("sprfast.line")


def prepare(in_flight: InFlight, predictor: Callable[[], Predictor]) -> None:
    """Decode and resize frames until the line is stopped."""
    while (entry := in_flight.take_waiting()) is not None:
        current = predictor()
        try:
            in_flight.put_ready(entry, current.prepare(entry.image, entry.channel_order), current)
        except DeviceLostError as error:
            in_flight.fail(error)
        except Exception as error:
            in_flight.decide(entry, None, typed(error, InputError, "the image could not be prepared"))


def typed(error: Exception, kind: type[SprfastError], what: str) -> SprfastError:
    """The error; where it is not one of ours, such as a decoder's own, it is logged, and one of
    this kind says `what` happened.
    """
    if isinstance(error, SprfastError):
        return error
    _log.error("%s", what, exc_info=error)
    return kind(f"{what} ({type(error).__name__}: {error})")


class Network:
    """Scores batches, one at a time."""

    def __init__(self, in_flight: InFlight, counters: Counters, max_wait: float) -> None:
        self._in_flight, self._counters, self._max_wait = in_flight, counters, max_wait
        self._began: float | None = None  # seconds of `time.monotonic`, while a call is under way
        self.last_failure: str | None = None  # of the last call, if it failed

    def run(self) -> None:
        """Score until the line is stopped."""
        while batch := self._in_flight.take_batch(self._max_wait):
            self._began = time.monotonic()
            self._score(batch)
            self._began = None

    def busy_for(self) -> float:
        """Seconds that the call under way has taken so far; 0 where there is none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def _score(self, batch: list[Entry]) -> None:
        predictor = batch[0].predictor
        assert predictor is not None  # `put_ready` sets it
        # without those whose deadline has passed
        prepared = [(entry, image) for entry in batch if (image := entry.prepared)]
        if not prepared:
            return
        batch = [entry for entry, _ in prepared]
        try:
            results = predictor.score([image for _, image in prepared])
        except DeviceLostError as error:
            _log.error("the device is lost: %s", error)
            self._in_flight.fail(error)
            return
        except Exception as error:
            self._failed(batch, error)
            return
        self.last_failure = None
        self._counters.count(batches=1, batched=len(batch))
        for entry, result in zip(batch, results, strict=True):
            failed = result.verdict is Verdict.ERROR
            self._in_flight.decide(entry, result, ScoreError(result.reason) if failed else None)

    def _failed(self, batch: list[Entry], error: Exception) -> None:
        """Frames of a call that failed get another one alone, so that one of them does not take the
        others with it.
        """
        if len(batch) > 1:
            for entry in batch:
                self._score([entry])
            return
        failure = typed(error, BackendError, "the network failed")
        self.last_failure = str(failure)
        self._in_flight.decide(batch[0], None, failure)


@dataclasses.dataclass(frozen=True, eq=False)
class Delivery:
    """Completes futures and calls the callback, one answer at a time."""

    in_flight: InFlight
    counters: Counters
    predictor: Callable[[], Predictor]  # that serves now
    on_answer: Callable[[Answer], object] | None

    def run(self) -> None:
        """Deliver until the line is stopped and empty."""
        while entries := self.in_flight.take_decided():
            for entry in entries:
                answer = self._answer(entry)
                self._count(entry, answer)
                if answer.verdict is Verdict.ERROR:
                    _log.warning("frame %s: %s", str(answer.id)[:100], answer.error)
                entry.future.set_result(answer)
                self._call(answer)
                entry.result = None
                self.in_flight.delivered(entry)

    def _answer(self, entry: Entry) -> Answer:
        now = time.monotonic()
        error = entry.error or (late(entry) if entry.due <= now else None)
        result = entry.result if error is None or isinstance(error, ScoreError) else None
        if result is None:
            result = (entry.predictor or self.predictor()).error(str(error))
        return Answer(entry.id, result, error, entry.trigger_time, now - entry.trigger_time)

    def _count(self, entry: Entry, answer: Answer) -> None:
        score = answer.result.pred_score if entry.predictor is self.predictor() else None
        try:
            self.counters.answer(answer.verdict, score, answer.error, answer.seconds)
        except Exception:  # statistics do not come between a part and its answer
            _log.exception("frame %s could not be counted", str(answer.id)[:100])

    def _call(self, answer: Answer) -> None:
        if self.on_answer is None:
            return
        try:
            self.on_answer(answer)
        except Exception:
            self.counters.count(callback_failures=1)
            _log.exception("the callback failed at frame %s", str(answer.id)[:100])
