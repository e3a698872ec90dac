"""The pipeline: submit frames from any thread, and each is answered once, by its deadline."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Any

from sprfast.config import require
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import MAX_BATCH, Predictor
from sprfast.errors import BackendError, ClosedError, InputError, OverloadedError, SprfastError
from sprfast.line import drift, stages
from sprfast.line.answer import Answer, Entry, Stage
from sprfast.line.done_callbacks import DoneCallbacks
from sprfast.line.durations import finite, seconds
from sprfast.line.frames import Frame, FrameFormat, owned
from sprfast.line.health import Counters, Health, ModelInfo, State
from sprfast.line.in_flight import InFlight, Overflow
from sprfast.line.known_ids import claim_on
from sprfast.line.telling import say, typed
from sprfast.line.threads import CLOCK, Threads

STALL = 10.0  # seconds of one call of the network after which `Line.health` says so
EXIT_TIMEOUT = 2.0  # seconds that the end of the interpreter waits for a line


class Line:
    """Answers frames in the background; safe to call from several threads and signal handlers.

    One thread runs the network, `workers` decode and resize beside it, one delivers, and one keeps
    the deadlines. Frames that wait together are scored together; each has the score that it has
    alone.

    Args:
        predictor: an `Engine` or a `Runner` with a threshold.
        on_answer: called with every `Answer`, one at a time, on the line's own thread; what it
            raises, SystemExit among it, is logged and counted. While it has not returned, other
            frames have their ERROR in their futures at their deadlines, and it is called with that
            afterwards.
        in_order: call `on_answer` in the order of `submit`. An answer then waits for those before
            it, up to its own deadline, when its future has it.
        capacity: frames that may be in the line.
        overflow: what a frame meets for which there is no room: "block" waits for room up to
            `timeout`, after which the frame is answered with ERROR; "reject" answers so at once;
            "drop_oldest" answers so the oldest frame that the network has not begun, and takes the
            new one.
        timeout: seconds of "block".
        deadline: seconds from a frame's trigger, at which it is answered with ERROR if nothing else
            was delivered; None: none.
        max_batch: frames that are scored together.
        max_wait: seconds that an incomplete batch waits for more; 0: it runs as soon as the network
            is free.
        workers: threads that decode and resize.
        frame_format: the form of the camera's frames; one in another form is answered with ERROR.
            None: any form.
        false_alarm_rate: of the watch for drift, in each window of `drift.WINDOW` parts that
            passed.

    The model is tested in the background, while frames wait; `with Line(...) as line` and
    `wait_until_started` wait for that.

    Raises:
        InputError: an argument is not allowed, or the predictor has no threshold.
    """

    def __init__(
        self,
        predictor: Predictor,
        on_answer: Callable[[Answer], object] | None = None,
        *,
        in_order: bool = False,
        capacity: int = 64,
        overflow: Overflow = "block",
        timeout: float = 1.0,
        deadline: float | None = None,
        max_batch: int = MAX_BATCH,
        max_wait: float = 0.0,
        workers: int = 1,
        frame_format: FrameFormat | None = None,
        false_alarm_rate: float = drift.FALSE_ALARM_RATE,
    ) -> None:
        limits = (("capacity", capacity, 2**20), ("max_batch", max_batch, MAX_BATCH), ("workers", workers, 256))
        for name, value, most in limits:
            require(type(value) is int and 1 <= value <= most, name, value, f"an integer from 1 to {most}")
        timeout, max_wait = seconds("timeout", timeout, zero=True), seconds("max_wait", max_wait, zero=True)
        self._deadline = _checked_deadline(deadline)
        self._frame_format, self._max_batch, self._false_alarm_rate = frame_format, max_batch, false_alarm_rate
        self._in_flight = InFlight(capacity, overflow, timeout, max_batch, in_order)
        self._counters = Counters(self._watch(predictor))
        self._predictor = predictor
        self._model = _model_info(predictor)
        self._started = threading.Event()
        self._network = stages.Network(self._in_flight, self._counters, max_wait)
        self._process = os.getpid()
        self._swapping = threading.RLock()
        self._done_callbacks = DoneCallbacks(self._in_flight.release)
        self._answers = stages.Answers(self._in_flight, self._counters, lambda: self._predictor, self._done_callbacks)
        self._threads = Threads(lambda: self._in_flight.stopped, self._in_flight.fail)
        try:
            self._start(on_answer, workers)
        except BaseException:  # such as no more threads
            self._in_flight.stop(ClosedError("the line could not start"))
            raise
        atexit.register(self.close, EXIT_TIMEOUT)

    def _start(self, on_answer: Callable[[Answer], object] | None, workers: int) -> None:
        frames, add = self._in_flight, self._threads.add
        delivery = stages.Delivery(frames, self._counters, self._answers, on_answer)
        add("sprfast-network", self._run_network, lambda error: frames.abandon(Stage.SCORING, error))
        add("sprfast-delivery", delivery.run)
        for index in range(workers):
            add(
                f"sprfast-prepare-{index}",
                lambda: stages.prepare(frames, lambda: self._predictor),
                lambda error: frames.abandon(Stage.PREPARING, error),
            )
        add(
            CLOCK,
            lambda: stages.keep_deadlines(frames, self._answers, self._done_callbacks, self._threads.watch),
        )

    def __enter__(self) -> Line:
        try:
            self.wait_until_started()
        except BaseException:
            self.close(0.0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_started(self) -> None:
        """Return when the model has passed its self-test and is warm.

        Raises:
            SprfastError: it has not passed; every frame is answered with ERROR.
        """
        self._check_process()
        self._started.wait()
        if failure := self._in_flight.failure:
            raise failure

    def submit(
        self,
        image: Any,
        id: Hashable,
        trigger_time: float | None = None,
        *,
        channel_order: ChannelOrder | None = None,
        deadline: float | None = None,
        fault: SprfastError | None = None,
    ) -> Future[Answer]:
        """Take a frame.

        Args:
            image: what `Predictor.predict` takes; with a `frame_format` also bytes, a bytearray or
                a memoryview. Arrays, tensors and buffers are copied before this returns; a file or
                a PIL image must stay as it is until the answer.
            id: of the part; hashable, and not one of the frames in the line or the last 10,000
                answered.
            trigger_time: seconds of `time.monotonic`; None: now.
            channel_order: of an array; None with a `frame_format`, which has it.
            deadline: seconds from `trigger_time` for this frame; None: the line's.
            fault: why there is no image: the frame is answered with ERROR and this.

        Returns:
            A future of the `Answer`; it never raises. Whatever is wrong with the image, a full
            queue, a missed deadline, a failed backend: all are answers with the verdict ERROR and
            `Answer.error`.

        Raises:
            InputError: the id is in use, or an argument other than the image is not allowed; the
                frame is not taken.
            OverloadedError: answers are not being taken, so that not even an ERROR could be given;
                the frame is not taken.
            ClosedError: the line is closed or belongs to another process; the frame is not taken.
        """
        self._check_process()  # before anything with a lock, which may be held for ever in a fork
        try:
            if not (fault is None or isinstance(fault, SprfastError)):
                raise InputError(f"fault: {type(fault).__name__} is not allowed, expected an SprfastError or None")
            entry = self._entry(id, trigger_time, channel_order, deadline)
        except SprfastError:
            self._counters.count(refused=1)
            raise
        try:
            self._take(entry, image, fault)
        except SprfastError:
            self._counters.count(refused=1)
            raise
        except BaseException as error:  # such as Ctrl-C: nobody will go on with this frame
            reason = InputError(f"`submit` was interrupted ({type(error).__name__}) before it had taken the image")
            self._in_flight.withdraw(entry, reason)
            raise
        return entry.future

    def run(self, source: Iterable[Frame]) -> None:
        """Submit every frame of a source, until it ends or the line is closed.

        A frame that the line does not take, such as one whose id was there before, is logged and
        counted in `Health.refused`.
        """
        self._check_process()
        for frame in source:
            try:
                self.submit(
                    frame.image, frame.id, frame.trigger_time, channel_order=frame.channel_order, fault=frame.fault
                )
            except ClosedError:
                return
            except (InputError, OverloadedError) as error:
                say(logging.WARNING, "frame refused: %s", error)

    def swap(self, predictor: Predictor) -> None:
        """Go on with another model, once it has passed its self-test; until then, and if it does
        not, the old one serves.

        Frames that the old model has prepared are scored by it.

        Raises:
            SprfastError: the new model has no threshold, or does not pass; nothing has changed.
            ClosedError: the line is closed.
        """
        self._check_process()
        with self._swapping:
            model, watch = _model_info(predictor), self._watch(predictor)
            self._test(predictor)
            if self._in_flight.closed:
                raise ClosedError("the line is closed")
            if self._in_flight.failure:
                raise BackendError("the line has failed, make a new one")
            self._predictor, self._model = predictor, model
            self._counters.swap(watch)
        say(logging.INFO, "model %s now serves", model.sha256[:12])

    def health(self) -> Health:
        """State, reasons and counts, now; in a fork of the line's process, CLOSED and what was
        counted before.
        """
        forked = os.getpid() != self._process
        if forked:
            self._counters.forked()
        else:
            self._threads.watch()
        state, reasons = State.OK, [self._of_another_process()] if forked else self._reasons()
        if forked:
            state = State.CLOSED
        elif failure := self._in_flight.failure:
            state, reasons = State.FAILED, [str(failure)]
        elif self._in_flight.closed:
            state = State.CLOSED
        elif not self._started.is_set():
            state = State.STARTING
        elif reasons:
            state = State.DEGRADED
        return self._counters.health(
            state=state,
            reasons=tuple(reasons),
            unanswered=self._in_flight.unanswered,
            capacity=self._in_flight.capacity,
            model=self._model,
        )

    def drain(self, timeout: float) -> bool:
        """Take no more frames, and wait for the answers to those taken.

        Returns:
            Whether all were delivered within `timeout` seconds.

        Raises:
            ClosedError: this is a fork of the line's process.
        """
        self._check_process()
        self._in_flight.refuse("the line is closed: it is being drained")
        return self._in_flight.wait_until_empty(min(timeout, threading.TIMEOUT_MAX))

    def close(self, timeout: float = 5.0) -> None:
        """`drain`, then answer what is left with ERROR and ClosedError, and end the threads; may be
        called again.

        A callback that never returns, or a network that does not, is left behind after another
        second; every future is done all the same.
        """
        if os.getpid() != self._process:
            return
        timeout = min(timeout, threading.TIMEOUT_MAX)
        self.drain(timeout)
        left = self._in_flight.stop(
            ClosedError(f"the line was closed before this frame was answered, {timeout:.3g} s after the last was taken")
        )
        for entry in left:
            self._answers.leave(entry)
        if left:
            say(logging.WARNING, "closed with %d frames unanswered", len(left))
        self._done_callbacks.close()
        until = time.monotonic() + 1.0
        self._threads.join(1.0)
        self._done_callbacks.join(max(0.0, until - time.monotonic()))
        atexit.unregister(self.close)

    def _entry(
        self, id: Hashable, trigger_time: float | None, channel_order: ChannelOrder | None, deadline: float | None
    ) -> Entry:
        claim = claim_on(id)
        trigger = time.monotonic()
        if trigger_time is not None:
            trigger = finite("trigger_time", trigger_time, "seconds of time.monotonic()")
        limit = self._deadline if deadline is None else _checked_deadline(deadline)
        return Entry(claim, None, trigger, trigger + limit, channel_order)

    def _take(self, entry: Entry, image: Any, fault: SprfastError | None) -> None:
        self._in_flight.admit(entry)
        self._counters.count(taken=1)
        if fault is not None:
            self._in_flight.decide(entry, None, fault)
        elif entry.open:
            try:
                entry.image, entry.channel_order = owned(
                    image, entry.channel_order, self._frame_format, self._predictor.preprocessing.max_pixels
                )
                self._in_flight.put(entry)
            except Exception as error:
                self._in_flight.decide(entry, None, typed(error, InputError, "image: cannot be copied"))

    def _watch(self, predictor: Predictor) -> drift.Drift | str:
        if predictor.threshold is None:
            raise InputError("the model has no threshold, so that no part could pass: run `sprfast calibrate`")
        return drift.watch(predictor.threshold, rate=self._false_alarm_rate)

    def _run_network(self) -> None:
        if not self._started.is_set():
            try:
                self._test(self._predictor)
            except BaseException as error:
                self._in_flight.fail(typed(error, BackendError, "the model's self-test failed"))
            finally:
                self._started.set()
        self._network.run()

    def _test(self, predictor: Predictor) -> None:
        declared, size = self._frame_format, predictor.input_size
        if declared:
            size = images.network_size(declared.height, declared.width, predictor.preprocessing)
        try:
            predictor.self_test()
            predictor.warm_up(*size, (1, self._max_batch))
        except SprfastError:
            raise
        except Exception as error:  # a library's own
            raise BackendError(f"the model's self-test failed ({type(error).__name__}: {error})") from error

    def _reasons(self) -> list[str]:
        reasons = self._counters.reasons() + self._threads.reasons()
        if (busy := self._network.busy_for()) > STALL:
            reasons.append(f"the network has not returned for {busy:.0f} s")
        if self._network.last_failure:
            reasons.append(f"the last call of the network failed: {self._network.last_failure}")
        if self._predictor.batch_limit < self._max_batch:
            reasons.append(f"the memory holds batches of {self._predictor.batch_limit} images, not {self._max_batch}")
        return reasons

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError(self._of_another_process())

    def _of_another_process(self) -> str:
        return f"this line was made in process {self._process} and does not run in a fork of it; make one here"


def _checked_deadline(deadline: float | None) -> float:
    return math.inf if deadline is None else seconds("deadline", deadline, zero=False)


def _model_info(predictor: Predictor) -> ModelInfo:
    return ModelInfo(predictor.model_sha256, predictor.backend, predictor.precision)
