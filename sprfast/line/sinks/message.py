"""An answer as it leaves the line."""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from typing import Any

from sprfast import errors
from sprfast.data.images import display_name
from sprfast.line.answer import Answer
from sprfast.method.threshold import Verdict


class Code(enum.IntEnum):
    """Why a result is what it is."""

    NONE = 0  # there is no result
    PASS = 1
    REJECT = 2
    IMAGE = 10  # it cannot be read, or has another form than declared
    CAMERA = 11
    DEADLINE = 12  # the line had no answer in time
    OVERLOADED = 13
    BACKEND = 14
    SCORE = 15  # it is not a finite number
    CLOSED = 16  # the station is paused or ends
    OTHER = 19
    LATE = 20  # it could not be given out in time


_CODES = (
    (errors.InputError, Code.IMAGE),
    (errors.CameraError, Code.CAMERA),
    (errors.DeadlineExceededError, Code.DEADLINE),
    (errors.OverloadedError, Code.OVERLOADED),
    (errors.BackendError, Code.BACKEND),
    (errors.ScoreError, Code.SCORE),
    (errors.ClosedError, Code.CLOSED),
)


@dataclasses.dataclass(frozen=True)
class Message:
    """What is told of a part."""

    id: str  # fit to be shown
    verdict: Verdict
    code: Code
    score: float | None  # None: there is none
    threshold: float | None
    reason: str | None  # why the verdict is ERROR
    seconds: float  # from the trigger to the line's answer
    trigger_time: float  # seconds of `time.monotonic`
    taken: float  # when the sink took it, likewise
    due: float  # when it is too late to give it out, likewise
    time: float  # of the line's answer, in seconds of `time.time`

    @property
    def ratio(self) -> float | None:
        """Score ÷ threshold: 1 is the limit; None without a score or a positive threshold."""
        if self.score is None or self.threshold is None or not self.threshold > 0:
            return None
        return self.score / self.threshold

    def late(self) -> Message:
        """The same part with the verdict ERROR."""
        reason = "its result could not be given out in time"
        return dataclasses.replace(self, verdict=Verdict.ERROR, code=Code.LATE, reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `valid_until` is when whoever reads it must not let the part pass any
        more, in seconds since 1970 like `time`.
        """
        return {
            "type": "result",
            "id": self.id,
            "verdict": self.verdict.value,
            "code": self.code.value,
            "reason": self.reason,
            "score": self.score,
            "threshold": self.threshold,
            "seconds": round(self.seconds, 6),
            "time": round(self.time, 6),
            "valid_until": round(self.time + self.due - self.taken, 6),
        }


def message(answer: Answer, within: float) -> Message:
    """What is told of an answer within so many seconds from now."""
    result, now = answer.result, time.monotonic()
    code = Code.PASS if answer.verdict is Verdict.PASS else Code.REJECT
    if answer.verdict is Verdict.ERROR:
        code = next((code for kind, code in _CODES if isinstance(answer.error, kind)), Code.OTHER)
    return Message(
        id=display_name(str(answer.id)),
        verdict=answer.verdict,
        code=code,
        score=result.pred_score if math.isfinite(result.pred_score) else None,
        threshold=result.threshold,
        reason=result.reason,
        seconds=answer.seconds,
        trigger_time=answer.trigger_time,
        taken=now,
        due=now + within,
        time=time.time(),
    )
