"""The last answers of a station, and the pictures of some of them; both are bounded."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.data.images import ChannelOrder, display_name
from sprfast.line.answer import Answer
from sprfast.line.frames import Frame
from sprfast.method.threshold import Verdict

ANSWERS = 600  # without pictures
REJECTS = 24  # whose pictures are kept: the last ones that did not pass
LOOKED_AT = 16  # pictures that a page was told of, so that they can still be marked
PICTURE_BYTES = 2**28  # of all kept pictures; the oldest go first


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is kept of an answer."""

    number: int  # from 1, in the order of the answers
    id: str  # fit to be shown
    verdict: str
    score: float | None  # None: there is none
    ratio: float | None  # score ÷ threshold, 1 is the limit; None without a score or a positive threshold
    seconds: float  # from the trigger to the answer
    time: float  # of the answer, in seconds of `time.time`
    reason: str | None  # why it is an ERROR
    picture: bool  # whether there was one


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A picture with its answer."""

    seen: Seen
    image: Any  # as in its `Frame`
    channel_order: ChannelOrder | None
    anomaly_map: npt.NDArray[np.float32] | None
    threshold: float | None  # of the map

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return int(getattr(self.image, "nbytes", 0)) + (0 if self.anomaly_map is None else self.anomaly_map.nbytes)


class History:
    """Takes answers on the line's thread, in microseconds; safe to be asked from others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: collections.deque[Seen] = collections.deque(maxlen=ANSWERS)
        self._rejects: collections.deque[Shown] = collections.deque(maxlen=REJECTS)
        self._looked_at: collections.deque[Shown] = collections.deque(maxlen=LOOKED_AT)
        self._newest: Shown | None = None  # that has a picture
        self._count = 0

    def add(self, answer: Answer, frame: Frame | None) -> None:
        """An answer, with the frame that it is about where that is known."""
        result, now = answer.result, time.time()
        score = result.pred_score if math.isfinite(result.pred_score) else None
        ratio = None
        if score is not None and result.threshold is not None and result.threshold > 0:
            ratio = score / result.threshold
        name, verdict = display_name(str(answer.id)), answer.verdict
        there = frame is not None and frame.image is not None
        seen = Seen(self._count + 1, name, verdict.value, score, ratio, answer.seconds, now, result.reason, there)
        shown = None
        if frame is not None and there:
            limit = result.threshold if result.map_threshold is None else result.map_threshold
            shown = Shown(seen, frame.image, frame.channel_order, result.anomaly_map, limit)
        with self._lock:
            self._count += 1
            self._answers.append(seen)
            if shown:
                self._newest = shown
                if verdict is not Verdict.PASS:
                    self._rejects.append(shown)
                    self._keep_within()

    def since(self, number: int) -> list[Seen]:
        """The answers after this number that are still there, the oldest first."""
        with self._lock:
            missing = min(self._count - number, len(self._answers))
            return list(self._answers)[len(self._answers) - missing :] if missing > 0 else []

    def look(self) -> int | None:
        """The number of the newest picture, which is kept for a while from now on; None: there is
        none.
        """
        with self._lock:
            newest = self._newest
            if newest is None:
                return None
            if newest not in self._looked_at:
                self._looked_at.append(newest)
                self._keep_within()
            return newest.seen.number

    def picture(self, number: int) -> Shown | None:
        """The picture of this answer, if it is still there."""
        with self._lock:
            kept = (*self._rejects, *self._looked_at)
        return next((each for each in kept if each.seen.number == number), None)

    def _keep_within(self) -> None:
        """Let go of the oldest pictures where all together are too large."""
        for ring in (self._looked_at, self._rejects):
            while len(ring) > 1 and sum(each.bytes for each in ring) > PICTURE_BYTES // 2:
                ring.popleft()
