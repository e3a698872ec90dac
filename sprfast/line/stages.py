"""What the threads of a line do: prepare frames, run the network, answer.

Who owns what:

* The *workers* decode and resize, and the *network* scores. They decide what a frame's answer is
  to be, and never give it out.
* The *delivery* gives answers out, one at a time: it completes the future, then calls the line's
  callback. Until it does, nothing has left the line.
* The *clock* keeps the deadlines. No code of the caller's runs on it: it calls nothing back and
  logs nothing. What has no answer at its deadline gets ERROR in its future, while the network or a
  callback hangs; the delivery calls the callback with that same answer when it can.
* *Done-callbacks* run on a thread of their own, and on another one as soon as one of them holds it
  (see `done_callbacks`).

An answer is made when it leaves and not before: `Answers.leave` looks at the clock, so that a PASS
never leaves late, and gives a frame the same answer whoever asks. Every thread guards each frame
against anything that is raised there, SystemExit included. What fails all the same is started
again (see `threads`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import InvalidStateError

from sprfast.engine.predictor import Predictor
from sprfast.errors import BackendError, DeviceLostError, InputError, ScoreError
from sprfast.line.answer import Answer, Entry
from sprfast.line.done_callbacks import DoneCallbacks
from sprfast.line.health import Counters
from sprfast.line.in_flight import InFlight, late
from sprfast.line.telling import say, typed
from sprfast.method.threshold import Verdict

BEAT = 0.05  # seconds between two looks of the clock at the other threads


def prepare(in_flight: InFlight, predictor: Callable[[], Predictor]) -> None:
    """Decode and resize frames until the line is stopped."""
    while (entry := in_flight.take_waiting()) is not None:
        try:
            current = predictor()
            in_flight.put_ready(entry, current.prepare(entry.image, entry.channel_order), current)
        except DeviceLostError as error:
            in_flight.fail(error)
        except BaseException as error:
            in_flight.decide(entry, None, typed(error, InputError, "the image could not be prepared"))


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
        # without those whose deadline has passed
        prepared = [(entry, image) for entry in batch if (image := entry.prepared)]
        if not prepared:
            return
        batch = [entry for entry, _ in prepared]
        try:
            predictor = batch[0].predictor
            assert predictor is not None  # `put_ready` sets it
            results = predictor.score([image for _, image in prepared])
            answers = [
                (entry, result, ScoreError(result.reason) if result.verdict is Verdict.ERROR else None)
                for entry, result in zip(batch, results, strict=True)
            ]
        except DeviceLostError as error:
            say(logging.ERROR, "the device is lost: %s", error)
            self._in_flight.fail(error)
            return
        except BaseException as error:
            self._failed(batch, error)
            return
        self.last_failure = None
        self._counters.count(batches=1, batched=len(batch))
        for entry, result, failure in answers:
            self._in_flight.decide(entry, result, failure)

    def _failed(self, batch: list[Entry], error: BaseException) -> None:
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


class Answers:
    """Gives each frame its one answer, whichever thread asks for it."""

    def __init__(
        self,
        in_flight: InFlight,
        counters: Counters,
        predictor: Callable[[], Predictor],  # that serves now
        done_callbacks: DoneCallbacks,
    ) -> None:
        self._in_flight, self._counters, self._predictor = in_flight, counters, predictor
        self._done_callbacks = done_callbacks
        self._lock = threading.RLock()

    def leave(self, entry: Entry) -> Answer:
        """The answer of a decided frame, in its future from now on; nothing else runs."""
        with self._lock:
            if entry.answer is None:
                answer = self._made(entry)
                self._counters.answer(answer.verdict, answer.error, answer.seconds)
                entry.answer = answer
            answer = entry.answer
            if not entry.future.done():
                with contextlib.suppress(InvalidStateError):  # its holder has forced a result into it just now
                    entry.future.complete(answer)
            callbacks = entry.future.taken_callbacks()
        if callbacks:
            self._in_flight.hold(entry)
            self._done_callbacks.put(entry, callbacks)
        return answer

    def watch(self, entry: Entry, answer: Answer) -> None:
        """Look for drift in its score, once it has left."""
        own = entry.predictor is self._predictor()
        self._counters.watch(answer.verdict, answer.result.pred_score if own else None)

    def _made(self, entry: Entry) -> Answer:
        result, error, reason = entry.result, entry.error, entry.reason
        now = time.monotonic()
        if error is None and entry.due <= now:
            error = late(entry)
            reason = str(error)
        predictor = entry.predictor or self._predictor()
        if result is None or not (error is None or isinstance(error, ScoreError)):
            result = predictor.error(reason)
        seconds = now - entry.trigger_time
        return Answer(entry.claim.id, result, error, entry.trigger_time, seconds, predictor.model_sha256)


@dataclasses.dataclass(frozen=True, eq=False)
class Delivery:
    """Gives answers out and calls the callback, one answer at a time."""

    in_flight: InFlight
    counters: Counters
    answers: Answers
    on_answer: Callable[[Answer], object] | None

    def run(self) -> None:
        """Deliver until the line is stopped and everything is answered."""
        while (entry := self.in_flight.take_decided()) is not None:
            try:
                self._deliver(entry)
            except BaseException as error:  # such as one of statistics, after the answer
                say(logging.ERROR, "frame %s could not be counted", entry.claim.text, error=error)
            finally:
                entry.result = None
                self.in_flight.release(entry)

    def _deliver(self, entry: Entry) -> None:
        answer = self.answers.leave(entry)
        if self.on_answer is not None:
            try:
                self.on_answer(answer)
            except BaseException as error:
                self.counters.count(callback_failures=1)
                say(logging.ERROR, "the callback failed at frame %s", entry.claim.text, error=error)
        if answer.verdict is Verdict.ERROR:
            say(logging.WARNING, "frame %s: %s", entry.claim.text, entry.reason or answer.result.reason)
        self.answers.watch(entry, answer)


def keep_deadlines(
    in_flight: InFlight, answers: Answers, done_callbacks: DoneCallbacks, watch: Callable[[], object]
) -> None:
    """Answer what has no answer at its deadline, until the line is stopped and empty; in between,
    see to the other threads.
    """
    while (passed := in_flight.take_late(BEAT)) is not None:
        failure: BaseException | None = None
        for entry in passed:
            try:
                answers.leave(entry)
            except BaseException as error:  # after the other frames
                failure = error
        if failure:
            raise failure
        done_callbacks.watch()
        watch()
