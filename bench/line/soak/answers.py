"""What became of every frame of a soak run, in memory that does not grow."""

from __future__ import annotations

import collections
import threading
import time
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from sprfast.bench.line.soak.plan import KINDS, TWICE, CallbackFault, FaultPlan, error_of
from sprfast.line import Answer
from sprfast.line.health import kind_of
from sprfast.method.threshold import Threshold, Verdict, verdict

RECENT = 1000  # good frames answered last, whose latencies are known
EXAMPLES = 5  # that are told of what went wrong
GRACE = 0.5  # seconds after a deadline by which its answer has been seen, on a machine that does other things too
PASS_GRACE = 0.05  # seconds after a deadline by which a PASS that left in time has been seen
BRIEF = 0.02  # seconds that a callback hangs
LONG_HANGS = 2  # of each kind, that outlast all deadlines of the frames then in the line


class InjectedError(Exception):
    """What a callback raises on purpose."""


class AnswerCounts:
    """Counts what is submitted and answered, and compares.

    `expect` and `refuse` are called by the thread whose frame it is, `by_future` and `by_callback`
    by the line.

    Args:
        plan: what befalls the frames.
        scores: of the pictures, which come in turn.
        tolerance: relative, of a score.
        threshold: that the line's verdicts come from.
        deadline: seconds from trigger to answer.
    """

    def __init__(
        self,
        plan: FaultPlan,
        scores: npt.NDArray[np.float64],
        tolerance: float,
        threshold: Threshold,
        deadline: float,
    ) -> None:
        self._plan, self._scores, self.tolerance, self._threshold = plan, scores, tolerance, threshold
        frames = sum(plan.counts)
        self._taken, self._futures, self._callbacks = bytearray(frames), bytearray(frames), bytearray(frames)
        self.answered = 0  # callbacks
        self.verdicts = {kind: dict.fromkeys(map(str, Verdict), 0) for kind in (None, *KINDS)}  # None: good frames
        self.refused = dict.fromkeys(KINDS, 0)  # ids that came again
        self.closed = 0  # frames that came when the line was closed
        self.failed_callbacks = 0
        self.callbacks = dict.fromkeys(CallbackFault, 0)  # that misbehaved
        self.deadline = deadline
        self.late = 0  # ERROR for a deadline that came, as behind a callback that hangs
        self.wrong: dict[str, int] = collections.defaultdict(int)  # what must not be, by what it is
        self.examples: list[str] = []
        self._lock = threading.RLock()  # of what producers count
        self._latencies = np.zeros(RECENT)
        self._scored = 0

    def expect(self, frame: int) -> None:
        """It is about to be submitted."""
        self._taken[frame] = min(self._taken[frame] + 1, 255)

    def refuse(self, frame: int, closed: bool, reason: str) -> None:
        """It was not taken."""
        self._taken[frame] -= 1
        kind = self._plan.kind(frame)
        with self._lock:
            if closed:
                self.closed += 1
            elif kind in TWICE and self._taken[frame]:
                self.refused[kind] += 1
            else:
                self._note("refused", f"frame {frame} was refused: {reason}")

    def by_future(self, frame: int, taken: float, future: Future[Answer]) -> None:
        """The future is done of a frame that was taken at this moment.

        Raises:
            InjectedError, SystemExit: the plan says so.
        """
        answer = future.result()
        after = time.monotonic() - max(answer.trigger_time + self.deadline, taken)
        if after > GRACE:
            self._note("late", f"frame {frame}: its future was done {after:.3g} s after its deadline")
        self._futures[frame] = min(self._futures[frame] + 1, 255)
        place = self._plan.place(answer.id)
        if place is None or place[0] != frame:
            self._note("mixed up", f"the future of frame {frame} has the answer to {answer.id!r}")
        if (fault := self._plan.callback(frame)) and fault.name.startswith("DONE"):
            self._misbehave(frame, fault)

    def by_callback(self, answer: Answer) -> None:
        """The line's callback.

        Raises:
            InjectedError, SystemExit: the plan says so.
        """
        after = time.monotonic() - answer.trigger_time - self.deadline
        self.answered += 1
        place = self._plan.place(answer.id)
        if place is None:
            self._note("unknown", f"an answer to {answer.id!r}, which was not submitted")
            return
        frame, number = place
        self._callbacks[frame] = min(self._callbacks[frame] + 1, 255)
        kind = self._plan.kind(frame)
        self.verdicts[kind][str(answer.verdict)] += 1
        got = None if answer.error is None else kind_of(answer.error)
        expected = got if got == "closed" else error_of(kind)
        if answer.verdict is Verdict.PASS and after > PASS_GRACE:
            self._note("late passes", f"frame {frame}: PASS {after:.3g} s after its deadline")
        if got == "deadline" != expected and answer.seconds >= self.deadline:
            self.late += 1
        elif expected is None:
            self._check_score(frame, number, answer)
        elif answer.verdict is not Verdict.ERROR or got != expected:
            what = "passed" if answer.verdict is Verdict.PASS else "not noticed"
            found = f"{answer.verdict} ({answer.result.reason}), expected ERROR of kind {expected}"
            self._note(what, f"frame {frame}, {kind}: {found}")
        if (fault := self._plan.callback(frame)) and not fault.name.startswith("DONE"):
            self.failed_callbacks += fault is not CallbackFault.HANGS
            self._misbehave(frame, fault)

    def latencies(self) -> npt.NDArray[np.float64]:
        """Seconds from trigger to answer of the good frames answered last."""
        return self._latencies[: min(self._scored, RECENT)].copy()

    def totals(self) -> dict[str, int]:
        """How many ids were taken, and how many were answered other than once, or without having
        been taken.
        """
        taken, futures, callbacks = (
            np.frombuffer(each, np.uint8) for each in (self._taken, self._futures, self._callbacks)
        )
        return {
            "taken": int(taken.sum()),
            "taken_twice": int((taken > 1).sum()),
            "unanswered": int(((futures < taken) | (callbacks < taken)).sum()),
            "answered_twice": int(((futures > taken) | (callbacks > taken)).sum()),
        }

    def _misbehave(self, frame: int, fault: CallbackFault) -> None:
        with self._lock:
            self.callbacks[fault] += 1
            long = self.callbacks[fault] <= LONG_HANGS
        if fault in (CallbackFault.RAISES, CallbackFault.DONE_RAISES):
            raise InjectedError(f"callback of frame {frame}")
        if fault in (CallbackFault.EXITS, CallbackFault.DONE_EXITS):
            raise SystemExit(f"callback of frame {frame}")
        time.sleep(self.deadline + 2 * GRACE if long else BRIEF)

    def _check_score(self, frame: int, number: int, answer: Answer) -> None:
        expected, score = self._scores[number % len(self._scores)], answer.result.pred_score
        self._latencies[self._scored % RECENT] = answer.seconds
        self._scored += 1
        if not abs(score - expected) <= self.tolerance * abs(expected):  # NaN is wrong
            self._note("scores", f"frame {frame}: score {score!r} ({answer.result.reason}), alone {expected!r}")
        elif answer.verdict is not verdict(score, self._threshold):
            limit = self._threshold.value
            self._note("verdicts", f"frame {frame}: {answer.verdict} at a score of {score!r}, threshold {limit!r}")

    def _note(self, what: str, example: str) -> None:
        with self._lock:
            self.wrong[what] += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(example)
