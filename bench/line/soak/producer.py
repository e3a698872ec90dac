"""A thread that submits what its camera gives, and makes the mistakes that the plan says."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import numpy as np

from sprfast.bench.line.soak.answers import AnswerCounts
from sprfast.bench.line.soak.pictures import SoakPictures
from sprfast.bench.line.soak.plan import FaultPlan, LineFault
from sprfast.errors import ClosedError, SprfastError
from sprfast.line import Line
from sprfast.line.frames import Frame, FrameFormat
from sprfast.line.sources import SimulatedLine, Stream

FILES = 8  # every so many good frames come as a file
DEADLINE = 1.0  # seconds, of a frame that comes a minute late
SHORT = 0.001  # seconds of a stall, and before a camera is connected again


class Producer(threading.Thread):
    """One camera and what submits its frames; it rests every `stride` frames until `go_on`, and at
    the end for good. `seed` is of what spoilt pictures look like.
    """

    def __init__(
        self,
        index: int,
        plan: FaultPlan,
        pictures: SoakPictures,
        answers: AnswerCounts,
        line: Line,
        stride: int,
        seed: int,
    ) -> None:
        super().__init__(name=f"sprfast-soak-{index}", daemon=True)
        self._plan, self._pictures, self._answers, self._line, self._stride = plan, pictures, answers, line, stride
        height, width = pictures.arrays[0].shape[:2]
        self._camera = SimulatedLine(
            pictures.arrays,
            "rgb",
            frames=plan.counts[index],
            faults=plan.camera_faults(index),
            stall=SHORT,
            refusals=1,
            seed=seed + index,
        )
        self._stream = Stream(
            self._camera.open,
            FrameFormat(height, width, "rgb"),
            plan.camera(index),
            first_wait=SHORT,
            longest_wait=10 * SHORT,
        )
        self._go, self.resting = threading.Event(), threading.Event()
        self.done = False  # all frames are submitted
        self._closed = False
        self.error: Exception | None = None  # that must not have been

    def run(self) -> None:
        """Submit every frame."""
        rest_at = self._stride
        try:
            for frame in self._stream:
                self._camera.injected.clear()  # it would grow; the plan says the same
                place = self._plan.place(frame.id)
                assert place is not None  # a camera's ids are those of the plan
                if place[1] >= rest_at:
                    rest_at += self._stride
                    self._rest()
                if not self._give(frame, *place):
                    break
        except Exception as error:
            self.error = error
        self.done = True
        self._rest()

    def go_on(self) -> None:
        """End its rest."""
        self.resting.clear()
        self._go.set()

    def close(self) -> None:
        """Take no more pictures; may be called from a signal handler."""
        self._stream.close()

    def finish(self) -> None:
        """End it, resting or not."""
        self._closed = True
        self._go.set()

    def _rest(self) -> None:
        self.resting.set()
        if not self._closed:
            self._go.wait()
            self._go.clear()

    def _give(self, frame: Frame, index: int, number: int) -> bool:
        """Whether the line is open."""
        given = dict(vars(frame))  # named as the arguments of `Line.submit`
        kind = self._plan.kind(index)
        if isinstance(kind, LineFault):
            given |= self._mistake(kind, frame)
        elif kind is None and number % FILES == 0:
            given |= {"image": self._pictures.paths[number % len(self._pictures.paths)], "channel_order": None}
        opened = self._submit(index, given)
        return opened and (kind is not LineFault.DUPLICATE_ID or self._submit(index, given))

    def _submit(self, index: int, given: dict[str, Any]) -> bool:
        self._answers.expect(index)
        try:
            future = self._line.submit(**given)
            taken = time.monotonic()
        except SprfastError as error:
            closed = isinstance(error, ClosedError)
            self._answers.refuse(index, closed, str(error))
            return not closed
        future.add_done_callback(functools.partial(self._answers.by_future, index, taken))
        return True

    def _mistake(self, kind: LineFault, frame: Frame) -> dict[str, Any]:
        """What is submitted otherwise than the camera gave it."""
        with_nan = frame.image.astype(np.float32) / np.float32(255)
        with_nan[-1, -1, -1] = np.nan
        mistakes: dict[LineFault, dict[str, Any]] = {
            LineFault.PAST_DEADLINE: {"trigger_time": frame.trigger_time - 60.0, "deadline": DEADLINE},
            LineFault.MISSING_FILE: {"image": self._pictures.missing, "channel_order": None},
            LineFault.TRUNCATED_FILE: {"image": self._pictures.truncated, "channel_order": None},
            LineFault.WRONG_DTYPE: {"image": frame.image.astype(np.int32)},
            LineFault.NAN_VALUES: {"image": with_nan},
            LineFault.WRONG_CHANNEL_ORDER: {"channel_order": "grey"},
        }
        return mistakes.get(kind, {})
