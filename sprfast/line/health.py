"""How a line is doing: its state with reasons, and what it has counted."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import enum
import math
import threading
from typing import Any

from sprfast import errors
from sprfast.line.drift import Drift, DriftReport
from sprfast.method.threshold import Verdict

# Kinds of errors, from most to least special: what labels a metric, so that their number is
# bounded.
KINDS: tuple[tuple[str, type[errors.SprfastError]], ...] = (
    ("overloaded", errors.OverloadedError),
    ("deadline", errors.DeadlineExceededError),
    ("closed", errors.ClosedError),
    ("camera", errors.CameraError),
    ("out_of_memory", errors.OutOfMemoryError),
    ("device_lost", errors.DeviceLostError),
    ("score", errors.ScoreError),
    ("backend", errors.BackendError),
    ("input", errors.InputError),
)
RECENT = 100  # answers among which errors are looked for
ERRORS_ALLOWED = 5  # of them
# seconds, upper ends
LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, math.inf)


class State(str, enum.Enum):
    """What may be expected of a line."""

    STARTING = "STARTING"  # the model is being tested; frames wait
    OK = "OK"
    DEGRADED = "DEGRADED"  # it answers, and `Health.reasons` say what somebody should look at
    FAILED = "FAILED"  # every frame is answered with ERROR; make a new line, in a new process if the device was lost
    CLOSED = "CLOSED"  # it takes no frames any more

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class Latencies:
    """From trigger to answer, as a histogram."""

    counts: tuple[int, ...] = (0,) * len(LATENCY_BOUNDS)  # answers in (bound before, bound] of `LATENCY_BOUNDS`
    total: float = 0.0  # seconds, summed over all answers


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What computes the scores."""

    sha256: str  # of the weights
    backend: str
    precision: str


@dataclasses.dataclass(frozen=True)
class Health:
    """A line at one moment; counts are from its start."""

    state: State
    reasons: tuple[str, ...]  # for DEGRADED and FAILED, a sentence each
    taken: int  # ids that `submit` has taken, each of which is answered once
    refused: int  # calls of `submit` that raised, such as those with an id in use
    verdicts: dict[str, int]  # answers by verdict, zeros included
    errors: dict[str, int]  # ERROR answers by kind of `KINDS`, zeros included
    unanswered: int  # frames taken whose answer has not been delivered
    capacity: int  # that `unanswered` may reach before the overflow policy acts
    callback_failures: int  # exceptions raised by callbacks
    batches: int  # calls of the network
    batched: int  # frames in them
    swaps: int  # models that have replaced another one
    latencies: Latencies
    model: ModelInfo
    drift: DriftReport | None  # None where it is not watched
    drift_reason: str | None  # why not


def kind_of(error: errors.SprfastError) -> str:
    """The first kind of `KINDS` that the error is one of."""
    return next((name for name, kind in KINDS if isinstance(error, kind)), "backend")


class Counters:
    """Counts what a line takes and answers; safe to call from several threads.

    `drift` looks at the scores of parts that passed, or says why it cannot.
    """

    def __init__(self, drift: Drift | str) -> None:
        self._lock = threading.RLock()  # a signal handler may ask while the main thread counts
        self._drift = drift
        self._counts = collections.Counter(taken=0, refused=0, callback_failures=0, batches=0, batched=0, swaps=0)
        self._verdicts = {verdict.value: 0 for verdict in Verdict}
        self._errors = {name: 0 for name, _ in KINDS}
        # kinds of errors; None: an answer without one
        self._recent: collections.deque[str | None] = collections.deque(maxlen=RECENT)
        self._latencies = [0] * len(LATENCY_BOUNDS)
        self._seconds = 0.0

    def count(self, **more: int) -> None:
        """Add to counts of `Health`, by their names there."""
        with self._lock:
            self._counts.update(more)

    def answer(self, verdict: Verdict, error: errors.SprfastError | None, seconds: float) -> None:
        """An answer goes out, `seconds` after its trigger."""
        kind = None if error is None else kind_of(error)
        with self._lock:
            self._verdicts[verdict.value] += 1
            self._recent.append(kind)
            self._latencies[bisect.bisect_left(LATENCY_BOUNDS, seconds)] += 1
            self._seconds += seconds
            if kind is not None:
                self._errors[kind] += 1

    def watch(self, verdict: Verdict, score: float | None) -> None:
        """Look for drift; `score` is None where it is not of the model that serves now. One score
        in some hundred takes a millisecond, so this comes after the answer.
        """
        with self._lock:
            if verdict is Verdict.PASS and score is not None and isinstance(self._drift, Drift):
                self._drift.add(score)

    def forked(self) -> None:
        """This is a fork of the process, in which nobody lets go of the lock."""
        self._lock = threading.RLock()

    def swap(self, drift: Drift | str) -> None:
        """Another model serves: its scores are compared with those of its own calibration."""
        with self._lock:
            self._counts["swaps"] += 1
            self._drift = drift

    def reasons(self) -> list[str]:
        """What somebody should look at, a sentence each."""
        with self._lock:
            found = collections.Counter(kind for kind in self._recent if kind is not None)
            drift = self._drift.report() if isinstance(self._drift, Drift) else None
        reasons = []
        if found.total() > ERRORS_ALLOWED:
            kinds = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
            reasons.append(f"{found.total()} of the last {RECENT} answers are ERROR: {kinds}")
        if drift and drift.drifted:
            reasons.append(
                f"the scores of the last {drift.samples} parts that passed differ from the calibration's: median "
                f"{drift.median:.4g} against {drift.calibration_median:.4g}, p = {drift.p_value:.2g}"
            )
        return reasons

    def health(self, **beside: Any) -> Health:
        """All counts, with what the line knows beside them, by the names of `Health`."""
        with self._lock:
            drift = self._drift
            return Health(
                verdicts=dict(self._verdicts),
                errors=dict(self._errors),
                latencies=Latencies(tuple(self._latencies), self._seconds),
                drift=drift.report() if isinstance(drift, Drift) else None,
                drift_reason=drift if isinstance(drift, str) else None,
                **{**self._counts, **beside},
            )
