"""A camera as a source that survives what cameras do: every trigger becomes a frame, with a picture
or with the reason why not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sprfast.errors import CameraError, InputError
from sprfast.line.durations import seconds
from sprfast.line.frames import Frame, FrameFormat
from sprfast.line.sources.camera import Camera, Picture
from sprfast.line.sources.ids import Ids
from sprfast.line.sources.retry import SLICE, Retry
from sprfast.system.redaction import redacted

_log = logging.getLogger("sprfast.sources")


class Stream:
    """Opens a camera, yields a frame for each trigger, and connects again when the connection is
    lost.

    These become frames with a `fault`, which a line answers with ERROR:

    * pictures that the camera's counter says are missing, each under its own id; more than
    `ids.MOST` in a row are one frame;
    * a picture that is not whole, has another form or channel order than declared, or is one colour
      throughout, as when the light is off or the lens is covered;
    * the trigger whose picture was lost when the connection was, one for each loss;
    * with a `period`, every trigger that is overdue by `timeout`, whatever the reason. It takes the
      number after the last one, so that a picture which comes after that has an id that was used.

    Without a `period` nobody can tell a missed trigger from a line that stands still: no picture
    for `timeout` is logged, once.

    A repeated picture, and one that comes after it was reported missing, is yielded with its own
    id; the line refuses it, since that id has its answer. Ids are described in `ids.Ids`.

    Args:
        open_camera: connects; called again after a loss. It raises CameraError where another
            attempt may succeed; other errors end the iteration.
        frame_format: the form that every picture must have, raw buffers among them; its channel
            order is that of all frames. None: arrays of any form, in the order that the camera
            says.
        name: of the camera, in ids and messages.
        timeout: seconds, see above.
        period: seconds from one trigger to the next, for a camera that is triggered at a fixed pace
            without pauses.
        first_wait, longest_wait: seconds before the first attempt to connect again, and what the
            wait doubles up to.
        give_up: seconds without a connection after which the iteration raises CameraError; None: it
            goes on for ever.

    Raises:
        InputError: an argument is not allowed.
    """

    def __init__(
        self,
        open_camera: Callable[[], Camera],
        frame_format: FrameFormat | None = None,
        name: str = "camera",
        *,
        timeout: float = 1.0,
        period: float | None = None,
        first_wait: float = 0.1,
        longest_wait: float = 10.0,
        give_up: float | None = None,
    ) -> None:
        self._open_camera, self._format, self._name = open_camera, frame_format, name
        self._timeout = seconds("timeout", timeout, zero=False)
        self._period = None if period is None else seconds("period", period, zero=False)
        self._retry = Retry(first_wait, longest_wait, give_up)
        self._ids = Ids(name)
        self._camera: Camera | None = None
        self._attempt_at = 0.0  # when to connect again
        self._last: float | None = None  # time of the last trigger that is accounted for
        self._heard = 0.0  # when the last picture came, or the camera was opened
        self._stalled = False
        self._lost = ""  # why there is no connection

    def __iter__(self) -> Iterator[Frame]:
        """The frames, until `close` or the end of the camera's pictures.

        Raises:
            CameraError: there was no connection for `give_up` seconds.
        """
        try:
            while not self._retry.closed():
                picture = None
                try:
                    picture = self._next()
                except CameraError as error:
                    yield from self._lose(error)
                except EOFError:
                    return
                if picture:
                    yield from self._take(picture)
                else:
                    yield from self._overdue()
        finally:
            self._release()

    def close(self) -> None:
        """End the iteration, as soon as the camera returns from what it is doing; may be called
        from any thread or signal handler.
        """
        self._retry.close()

    def fault(self) -> str:
        """Why there is no connection; "" while there is one."""
        return self._lost

    def _next(self) -> Picture | None:
        """A picture, if one comes soon; where there is no connection, one attempt at it, if it is
        time for that.
        """
        if self._camera is None:
            if (wait := self._attempt_at - time.monotonic()) > 0:
                self._retry.sleep(min(SLICE, wait))
                return None
            self._camera = self._open_camera()
            self._heard, self._stalled = time.monotonic(), False
            if self._retry.failures:
                self._ids.reopened = True
        picture = self._camera.grab(SLICE)
        if self._retry.failures:
            self._note("connected again", logging.INFO)
        self._retry.failures = 0  # not before a call succeeded: a camera may accept connections and drop them
        self._lost = ""
        return picture

    def _lose(self, error: CameraError) -> Iterator[Frame]:
        """Let the camera go, and say so once for each loss."""
        had_camera, first = self._camera is not None, not self._retry.failures
        self._release()
        reason = redacted(str(error))
        self._lost = f"{self._name}: no connection ({reason})"
        if first:
            self._note(f"no connection ({reason})")
        if first and had_camera:
            lost = time.monotonic()
            if self._period is not None and self._last is not None:
                self._last += self._period  # that one is accounted for
                lost = min(lost, self._last)
            yield from self._faults(self._ids.skip(1), f"lost with the connection ({reason})", lost, 0.0)
        self._attempt_at = time.monotonic() + self._retry.failed(CameraError(f"{self._name}: {reason}"))

    def _take(self, picture: Picture) -> Iterator[Frame]:
        if self._stalled:
            self._note(f"pictures come again, after {time.monotonic() - self._heard:.3g} s", logging.INFO)
        self._heard, self._stalled = time.monotonic(), False
        number, before = picture.number, picture.trigger_time if self._last is None else self._last
        self._last = max(before, picture.trigger_time)
        if number is not None:
            missing = self._ids.missing(number)
        else:  # how many triggers went by is told by the time, where it can be
            passed = round((picture.trigger_time - before) / self._period) - 1 if self._period else 0
            missing = self._ids.skip(max(0, passed))
        if missing:
            step = (picture.trigger_time - before) / (len(missing) + 1)
            yield from self._faults(missing, "dropped by the camera", before + step, step)
        if number is not None or picture.fault is None:
            yield self._frame(self._ids.picture(number), picture)
        else:  # of a trigger whose number is not known: the next one, unless the camera does not count
            yield self._frame(self._ids.skip(1)[0][0], picture)

    def _overdue(self) -> Iterator[Frame]:
        """The triggers that are overdue, or without a period a line in the log."""
        now = time.monotonic()
        if self._period is None or self._last is None:
            if self._camera and not self._stalled and now - self._heard >= self._timeout:
                self._stalled = True
                self._note(f"no picture for {self._timeout:.3g} s")
            return
        count = math.floor((now - self._timeout - self._last) / self._period)
        if count > 0:
            start = self._last + self._period
            self._last += count * self._period
            reason = f"not delivered within {self._timeout:.3g} s"
            yield from self._faults(self._ids.skip(count), reason, start, self._period)

    def _faults(self, missing: list[tuple[str, str]], reason: str, start: float, step: float) -> Iterator[Frame]:
        for index, (id, what) in enumerate(missing):
            yield Frame(id, None, start + index * step, fault=CameraError(f"{self._name}: {what} was {reason}"))

    def _frame(self, id: str, picture: Picture) -> Frame:
        image, order, fault = picture.image, picture.channel_order, picture.fault
        if fault is None and self._format:
            declared = self._format.channel_order
            try:
                image = self._format.view(image)
                if order not in (None, declared):
                    raise InputError(f"delivered {order}, this camera was declared as {declared}")
            except InputError as error:
                fault = CameraError(f"{self._name}: {error}")
            order = declared
        if fault is None and _is_one_colour(image):
            fault = CameraError(f"{self._name}: every pixel is {image[0, 0]}; look at the light and the lens")
        if fault:
            return Frame(id, None, picture.trigger_time, fault=fault)
        return Frame(id, image, picture.trigger_time, order)

    def _release(self) -> None:
        if self._camera:
            self._camera.close()
        self._camera = None

    def _note(self, text: str, level: int = logging.WARNING) -> None:
        _log.log(level, "%s: %s", self._name, text)


def _is_one_colour(image: Any) -> bool:
    """Whether all pixels are equal, which those of a sensor never are; the first row tells nearly
    always.
    """
    if not isinstance(image, np.ndarray) or image.ndim < 2 or image.size == 0:
        return False
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())
