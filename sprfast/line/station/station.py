"""A station without its page: frames go into a line, and every answer passes one place."""

from __future__ import annotations

import collections
import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from sprfast.data.images import display_name
from sprfast.engine.predictor import Predictor
from sprfast.errors import ClosedError, InputError, SprfastError
from sprfast.line.answer import Answer
from sprfast.line.frames import Frame, FrameFormat
from sprfast.line.line import Line
from sprfast.line.sinks.sink import Sink
from sprfast.line.sources.camera import Source
from sprfast.line.station.history import History
from sprfast.line.station.marked import MarkedGood
from sprfast.line.telling import say
from sprfast.system import files

PAUSED = "the station is paused"  # as the page knows it too
WAITING = 128  # frames after which one without an answer was refused: twice those that a line holds


class Station:
    """A line with its source; `run` until the source ends. A page may ask and change it from other
    threads.

    Every trigger is answered. While the station is paused, and while there is no picture, the
    answer is ERROR.

    Args:
        model: the file that is scored with.
        predictor: of this file.
        source: of frames; closed by whoever made it.
        opened: makes a predictor of another file.
        calibrated: stores a threshold from a folder of good images in a model file.
        swapped: told of the predictor that serves from here on, of a swap or a recalibration.
        good: folder for the pictures that are marked as good.
        listeners: hear every answer, on the line's own thread; closed with the station.
        deadline: seconds from a trigger to its answer, as `Line` has it.
        frame_format: of the camera's frames, as `Line` has it.

    Raises:
        InputError: the model has no threshold, or an argument is not allowed.
    """

    def __init__(
        self,
        model: Path,
        predictor: Predictor,
        source: Source,
        *,
        opened: Callable[[Path], Predictor],
        calibrated: Callable[[Path, Path], object],
        swapped: Callable[[Predictor], object] = lambda _: None,
        good: Path,
        listeners: Sequence[Sink] = (),
        deadline: float | None = None,
        frame_format: FrameFormat | None = None,
    ) -> None:
        self.model, self.source, self.listeners = model, source, tuple(listeners)
        self.history, self.marked = History(), MarkedGood(good)
        self.paused, self.run_id = False, secrets.token_hex(8)  # answers are counted from each start anew
        self._opened, self._calibrated, self._swapped = opened, calibrated, swapped
        self._lock, self._changing = threading.Lock(), threading.Lock()
        self._frames: collections.OrderedDict[Hashable, tuple[int, Frame]] = collections.OrderedDict()
        self._names: dict[int, str] = {}  # files of the marked pictures, by the number of the answer
        self.predictor = predictor
        self.line = Line(predictor, self.hear, deadline=deadline, frame_format=frame_format)

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *_: object) -> None:
        """Answer what was taken, and close the listeners."""
        self.line.close()
        for listener in self.listeners:
            listener.close()

    def run(self, timeout: float = 5.0) -> bool:
        """Answer the frames of the source until it ends, then wait for the last answers.

        Returns:
            Whether all were delivered within `timeout` seconds.

        Raises:
            SprfastError: the model does not pass its self-test, or the source cannot go on.
        """
        self.line.wait_until_started()
        self.line.run(self._taken())
        return self.line.drain(timeout)

    def hear(self, answer: Answer) -> None:
        """Where every answer passes, on the line's own thread."""
        for listener in self.listeners:
            try:
                listener.deliver(answer)
            except Exception as error:  # the others hear it all the same
                say(logging.ERROR, "%s did not take the answer to %s", type(listener).__name__, answer.id, error=error)
        with self._lock:
            _, frame = self._frames.pop(answer.id, (0, None))
        self.history.add(answer, frame)

    def faults(self) -> list[str]:
        """What is not connected: the source and listeners, a sentence each."""
        said = [self.source.fault(), *(listener.fault() for listener in self.listeners)]
        return [fault for fault in said if fault]

    def mark(self, number: int, good: bool) -> str:
        """Keep the picture of an answer as one of a good part, or take that back; what was done, in
        a sentence.

        Raises:
            InputError: the picture is not there any more, or cannot be kept.
        """
        with self._change():
            if not good:
                if (name := self._names.pop(number, None)) is None:
                    raise InputError(f"answer {number}: is not marked as good")
                if name not in self._names.values():
                    self.marked.remove(name)
                return f"answer {number} is not marked any more"
            shown = self.history.picture(number)
            if shown is None:
                raise InputError(f"answer {number}: its picture is not kept any more; mark one of those shown")
            self._names[number] = self.marked.add(shown.image, shown.channel_order)
            return f"{shown.seen.id} is marked as good ({len(self.marked.names())} in all)"

    def recalibrate(self) -> str:
        """Take the threshold from the pictures that are marked as good, store it in the model file,
        and go on with it; what has changed, in a sentence.

        Raises:
            SprfastError: they are too few, or were trained on; nothing has changed.
        """
        with self._change():
            if not self.marked.names():
                raise InputError("no picture is marked as good; mark parts that passed as well as rejected ones")
            before = self.predictor.threshold
            self._calibrated(self.model, self.marked.folder)
            self._serve(self.model)
            after = self.predictor.threshold
        assert before is not None  # a line has refused a model without
        assert after is not None
        rejected = sum(score > before.value for score in after.scores)
        return (
            f"threshold {before.value:.4g} → {after.value:.4g}, from {after.samples} marked pictures of which "
            f"{rejected} were above the old one; its false-reject rate of {after.false_reject_rate:g} holds for parts "
            f"like these"
        )

    def swap(self, name: str) -> str:
        """Go on with another model of the same folder, once it has passed its self-test; what
        serves now, in a sentence.

        Raises:
            SprfastError: it cannot serve; the old one goes on.
        """
        with self._change():
            try:
                path = files.confined(self.model.parent, name)
                self._serve(path)
            except SprfastError as error:
                raise InputError(f"{error}; the old model goes on") from error
            self.model = path
        return f"{display_name(path.name)} serves now"

    def _serve(self, path: Path) -> None:
        predictor = self._opened(path)
        self.line.swap(predictor)
        self.predictor = predictor
        self._swapped(predictor)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        if not self._changing.acquire(blocking=False):
            raise InputError("another change is under way; wait for its end")
        try:
            yield
        finally:
            self._changing.release()

    def _taken(self) -> Iterator[Frame]:
        for serial, frame in enumerate(self.source):
            if self.paused:
                frame = Frame(frame.id, None, frame.trigger_time, fault=ClosedError(PAUSED))  # noqa: PLW2901
            with self._lock:
                self._frames.setdefault(frame.id, (serial, frame))
                while self._frames and next(iter(self._frames.values()))[0] <= serial - WAITING:
                    self._frames.popitem(last=False)
            yield frame
