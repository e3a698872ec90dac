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

import numpy as np

from sprfast.config import require
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import MAX_BATCH, Predictor
from sprfast.errors import BackendError, ClosedError, InputError, OverloadedError, SprfastError
from sprfast.line import drift, stages
from sprfast.line.answer import Answer, Entry
from sprfast.line.frames import Frame, FrameFormat
from sprfast.line.health import Counters, Health, ModelInfo, State
from sprfast.line.in_flight import InFlight, Overflow

STALL = 10.0  # seconds of one call of the network after which `Line.health` says so
EXIT_TIMEOUT = 2.0  # seconds that the end of the interpreter waits for a line

_log = logging.getLogger("sprfast.line")


class Line:
    """Answers frames in the background; safe to call from several threads.

    One thread runs the network, `workers` decode and resize beside it, one delivers. Frames that
    wait together are scored together; each has the score that it has alone.

    Args:
        predictor: an `Engine` or a `Runner` with a threshold.
        on_answer: called with every `Answer`, one at a time, on the line's own thread; what it
            raises is logged and counted.
        in_order: deliver in the order of `submit`; an answer then waits for those before it, up to
            its own deadline.
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
        for name, seconds in (("timeout", timeout), ("max_wait", max_wait)):
            require(0.0 <= seconds < math.inf, name, seconds, "seconds, 0 or more")
        self._deadline = _checked_deadline(deadline)
        self._frame_format, self._max_batch, self._false_alarm_rate = frame_format, max_batch, false_alarm_rate
        self._in_flight = InFlight(capacity, overflow, timeout, max_batch, in_order)
        self._counters = Counters(self._watch(predictor))
        self._predictor = predictor
        self._model = _model_info(predictor)
        self._started = threading.Event()
        self._network = stages.Network(self._in_flight, self._counters, max_wait)
        self._process = os.getpid()
        self._swapping = threading.Lock()
        delivery = stages.Delivery(self._in_flight, self._counters, lambda: self._predictor, on_answer)
        self._threads = [
            threading.Thread(target=self._run_network, name="sprfast-network", daemon=True),
            threading.Thread(target=delivery.run, name="sprfast-delivery", daemon=True),
        ]
        for index in range(workers):
            arguments, name = (self._in_flight, lambda: self._predictor), f"sprfast-prepare-{index}"
            self._threads.append(threading.Thread(target=stages.prepare, args=arguments, name=name, daemon=True))
        for thread in self._threads:
            thread.start()
        atexit.register(self.close, EXIT_TIMEOUT)

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
        try:
            entry = self._entry(id, trigger_time, channel_order, deadline)
            entry.future.set_running_or_notify_cancel()  # it cannot be cancelled: a part needs its answer
            self._in_flight.admit(entry)
        except SprfastError:
            self._counters.count(refused=1)
            raise
        self._counters.count(taken=1)
        if fault is not None:
            self._in_flight.decide(entry, None, fault)
        elif entry.open:
            try:
                entry.image, entry.channel_order = self._own(image, channel_order)
                self._in_flight.put(entry)
            except Exception as error:
                self._in_flight.decide(entry, None, stages.typed(error, InputError, "image: cannot be copied"))
        return entry.future

    def run(self, source: Iterable[Frame]) -> None:
        """Submit every frame of a source, until it ends or the line is closed.

        A frame that the line does not take, such as one whose id was there before, is logged and
        counted in `Health.refused`.
        """
        for frame in source:
            try:
                self.submit(
                    frame.image, frame.id, frame.trigger_time, channel_order=frame.channel_order, fault=frame.fault
                )
            except ClosedError:
                return
            except (InputError, OverloadedError) as error:
                _log.warning("frame refused: %s", error)

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
        _log.info("model %s now serves", model.sha256[:12])

    def health(self) -> Health:
        """State, reasons and counts, now."""
        state, reasons = State.OK, self._reasons()
        if failure := self._in_flight.failure:
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
        """
        self._in_flight.refuse("the line is closed: it is being drained")
        return self._in_flight.wait_until_empty(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """`drain`, then answer what is left with ERROR and ClosedError, and end the threads; may be
        called again.

        A callback that never returns, or a network that does not, is left behind after another
        second.
        """
        if os.getpid() != self._process:
            return
        self.drain(timeout)
        left = self._in_flight.stop(
            ClosedError(f"the line was closed before this frame was answered, {timeout:.3g} s after the last was taken")
        )
        if left:
            _log.warning("closed with %d frames unanswered", left)
        until = time.monotonic() + 1.0
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        atexit.unregister(self.close)

    def _entry(
        self, id: Hashable, trigger_time: float | None, channel_order: ChannelOrder | None, deadline: float | None
    ) -> Entry:
        self._check_process()
        try:
            hash(id), str(id)  # now, and not on the thread that delivers
        except Exception as error:
            raise InputError(
                f"id: {type(id).__name__} is not allowed, expected a string, a number or another hashable value"
            ) from error
        now = time.monotonic()
        trigger = now if trigger_time is None else trigger_time
        valid = _is_number(trigger) and math.isfinite(trigger)
        require(valid, "trigger_time", trigger, "seconds of time.monotonic()")
        limit = self._deadline if deadline is None else _checked_deadline(deadline)
        return Entry(id, None, float(trigger), trigger + limit, channel_order)

    def _own(self, image: Any, channel_order: ChannelOrder | None) -> tuple[Any, ChannelOrder | None]:
        """The image as the line keeps it, with its channel order."""
        declared = self._frame_format
        if isinstance(image, (bytes, bytearray, memoryview)) or (declared and isinstance(image, np.ndarray)):
            if declared is None:
                raise InputError("image: a raw buffer needs a line with a frame_format")
            order = declared.channel_order
            if channel_order not in (None, order):
                raise InputError(f"channel_order: {channel_order!r}, this camera was declared as {order}")
            return np.array(declared.view(image), order="C"), order
        if isinstance(image, np.ndarray):
            return np.array(image, order="K", subok=True), channel_order
        if hasattr(image, "detach"):  # a tensor
            return image.detach().clone(), channel_order
        return image, channel_order

    def _watch(self, predictor: Predictor) -> drift.Drift | str:
        if predictor.threshold is None:
            raise InputError("the model has no threshold, so that no part could pass: run `sprfast calibrate`")
        return drift.watch(predictor.threshold, rate=self._false_alarm_rate)

    def _run_network(self) -> None:
        try:
            self._test(self._predictor)
        except SprfastError as error:
            self._in_flight.fail(error)
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
        reasons = self._counters.reasons()
        if (busy := self._network.busy_for()) > STALL:
            reasons.append(f"the network has not returned for {busy:.0f} s")
        if self._network.last_failure:
            reasons.append(f"the last call of the network failed: {self._network.last_failure}")
        if self._predictor.batch_limit < self._max_batch:
            reasons.append(f"the memory holds batches of {self._predictor.batch_limit} images, not {self._max_batch}")
        return reasons

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError(
                f"this line was made in process {self._process} and does not run in a fork of it; make one here"
            )


def _checked_deadline(deadline: float | None) -> float:
    if deadline is None:
        return math.inf
    require(_is_number(deadline) and 0.0 < deadline < math.inf, "deadline", deadline, "seconds above 0")
    return float(deadline)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _model_info(predictor: Predictor) -> ModelInfo:
    return ModelInfo(predictor.model_sha256, predictor.backend, predictor.precision)
