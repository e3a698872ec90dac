"""One soak run: producers, a line, models that are swapped while it runs, and samples of the
process.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sprfast.bench.line.soak import pictures, report
from sprfast.bench.line.soak.answers import AnswerCounts
from sprfast.bench.line.soak.options import SoakOptions
from sprfast.bench.line.soak.pictures import SoakPictures
from sprfast.bench.line.soak.plan import FaultPlan
from sprfast.bench.line.soak.producer import Producer
from sprfast.bench.line.soak.samples import Samples
from sprfast.engine.predictor import Map, Predictor
from sprfast.errors import SprfastError
from sprfast.line import Line
from sprfast.method.threshold import calibrate
from sprfast.system.signals import Stop, stop_signals

SAMPLES = 100  # over the run, each while nothing is in the line: what it holds then is what stays
LEAST_STRIDE = 32  # frames of each producer between two samples, so that frames still wait for each other
REJECTED = 0.4  # share of the pictures, so that some pass and some do not
SWAPS = 20  # over the run, each of a broken model and of an equal one
DRAIN = 10.0  # seconds for the answers to what was taken before a signal
PATIENCE = 120.0  # seconds without an answer after which the line hangs
POLL = 0.02  # seconds
LEAST_DEADLINE = 1.0  # seconds
FULL = 256  # frames that the network scores within a deadline, four times what the line holds


def run(
    predictor: Predictor,
    equal: Predictor,
    options: SoakOptions,
    sources: Sequence[Path] | None = None,
    *,
    line_of: Callable[..., Line] = Line,
    heap: str = "as the C library has it",
    on_start: Callable[[int], None] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Drive a line as fast as it goes, and check every answer.

    SIGTERM and SIGINT end it early: sources are closed, what was taken is answered, and the report
    says that it is not complete.

    Args:
        predictor: that serves first; both get a threshold between the scores of the pictures, so
            that some pass and some do not.
        equal: the same model, opened again; the two serve in turns.
        options: how long, and how rough.
        sources: image files of one size; None: made-up pictures.
        line_of: makes the line, with `Line`'s arguments.
        heap: what `samples.one_heap` said, for the report.
        on_start: called with the number of frames once a signal ends the run in order.
        on_progress: called with frames answered, their number, and what is going on.

    Returns:
        The report, see `report.document`.

    Raises:
        InputError: a picture cannot be used, or there are too few frames for the faults.
        SprfastError: the model does not pass its self-test here.
    """
    plan = FaultPlan(options.frames, options.producers, options.faults, options.seed)
    producers: list[Producer] = []

    def close_sources() -> None:
        for producer in producers:
            producer.close()

    with tempfile.TemporaryDirectory(prefix="sprfast-soak-") as folder, stop_signals(close_sources) as stop:
        if on_start:
            on_start(options.frames)
        if on_progress:
            on_progress(0, options.frames, "scoring alone")
        shown = SoakPictures.create(predictor, sources, options.seed, Path(folder))
        began = time.monotonic()
        scores = np.array(pictures.scores(predictor, shown.arrays, "rgb"))
        alone = (time.monotonic() - began) / len(scores)
        deadline = max(LEAST_DEADLINE, FULL * alone)
        threshold = calibrate(scores, REJECTED)
        predictor.scoring_mode = equal.scoring_mode = dataclasses.replace(predictor.scoring_mode, threshold=threshold)
        answers = AnswerCounts(plan, scores, pictures.tolerance(predictor), threshold, deadline)
        line = line_of(predictor, answers.by_callback, timeout=PATIENCE, deadline=deadline)
        try:
            line.wait_until_started()
            stride = max(LEAST_STRIDE, options.frames // SAMPLES // options.producers)
            producers += [
                Producer(index, plan, shown, answers, line, stride, options.seed) for index in range(options.producers)
            ]
            outcome = report.SoakOutcome(options, answers, Samples(options.frames))
            _Soak(outcome, producers, line, (predictor, equal), stop, on_progress).work()
        finally:
            line.close(0.0)
    outcome.signal, outcome.health = stop.signal, line.health()
    return report.document(outcome, predictor, heap)


@dataclasses.dataclass
class _Soak:
    """What the main thread does while producers submit."""

    outcome: report.SoakOutcome
    producers: Sequence[Producer]
    line: Line
    predictors: tuple[Predictor, Predictor]
    stop: Stop
    on_progress: Callable[[int, int, str], None] | None

    def __post_init__(self) -> None:
        self._broken = _broken(self.predictors[1])
        self._every_swap = max(1, self.outcome.options.frames // SWAPS)  # answers
        self._swap_at = self._every_swap
        self._began = self._moved_at = time.monotonic()
        self._moved = 0  # answers at that time

    def work(self) -> None:
        """The run; a producer's own error is raised."""
        self._swap()  # so that all that a swap loads is there before the warm-up
        gc.collect()
        gc.freeze()  # models and libraries, so that the collections for samples take no time that answers wait for
        self._began = time.monotonic()
        for producer in self.producers:
            producer.start()
        try:
            self.outcome.complete = self._follow()
        finally:
            self.outcome.seconds = time.monotonic() - self._began
            gc.unfreeze()
            self._end()

    def _follow(self) -> bool:
        """Sample and swap until everything is answered; False: the run is over before that."""
        outcome = self.outcome
        while True:
            answered = outcome.answers.answered
            if answered != self._moved:
                self._moved, self._moved_at = answered, time.monotonic()
            outcome.hung = time.monotonic() - self._moved_at > PATIENCE
            if self.stop.signal or outcome.hung or any(each.error for each in self.producers):
                return False
            if answered >= self._swap_at:
                self._swap_at = answered + self._every_swap
                self._swap()
            if all(each.resting.is_set() for each in self.producers) and self.line.health().unanswered == 0:
                self._sample()
                if all(each.done for each in self.producers):
                    return not any(each.error for each in self.producers)
                for each in self.producers:
                    each.go_on()
            if self.on_progress:
                what = "warming up" if outcome.warm is None else "soaking"
                self.on_progress(answered, outcome.options.frames, what)
            time.sleep(POLL)

    def _sample(self) -> None:
        outcome = self.outcome
        answered = outcome.answers.answered
        if outcome.warm is None and answered >= outcome.options.warm_up_frames:
            outcome.warm = outcome.samples.count
        outcome.samples.take(answered, time.monotonic() - self._began, outcome.answers.latencies())

    def _swap(self) -> None:
        """Offer a broken model, and go on with an equal one."""
        swaps = self.outcome.swaps
        swaps.offered += 1
        if self._swapped(self._broken):
            swaps.wrongly_accepted += 1
        else:
            swaps.refused += 1
        if self._swapped(self.predictors[swaps.offered % 2]):
            swaps.accepted += 1
        else:
            swaps.wrongly_refused += 1

    def _swapped(self, predictor: Predictor) -> bool:
        """Whether the line has accepted it."""
        try:
            self.line.swap(predictor)
        except SprfastError as error:
            self.outcome.swaps.reason = str(error)
            return False
        return True

    def _end(self) -> None:
        """Close the sources, have everything answered, and let the producers end."""
        for producer in self.producers:
            producer.close()
            producer.finish()
        self.outcome.drained = self.line.drain(DRAIN)
        self.line.close(0.0)
        for producer in self.producers:
            producer.join(DRAIN)
        if error := next((each.error for each in self.producers if each.error), None):
            raise error


def _broken(predictor: Predictor) -> Predictor:
    """One that shares all with `predictor`, and computes error maps that are wrong."""

    class Broken(type(predictor)):  # type: ignore[misc]  # an engine or a runner
        def maps(self, x: Any) -> tuple[Map, Map]:
            errors, anomaly_maps = super().maps(x)
            return 1.5 * errors, anomaly_maps

    broken = copy.copy(predictor)
    broken.__class__ = Broken
    return broken
