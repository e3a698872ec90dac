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
from sprfast.system.signals import Stop, stop_signals

SAMPLES = 100  # over the run, each while nothing is in the line: what it holds then is what stays
LEAST_STRIDE = 32  # frames of each producer between two samples, so that frames still wait for each other
SWAPS = 20  # over the run, each of a broken model and of an equal one
DRAIN = 10.0  # seconds for the answers to what was taken before a signal
PATIENCE = 120.0  # seconds without an answer after which the line hangs
POLL = 0.02  # seconds


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
        scores = shown.scores(predictor)
        threshold = pictures.between(scores)
        predictor.scoring_mode = equal.scoring_mode = dataclasses.replace(predictor.scoring_mode, threshold=threshold)
        answers = AnswerCounts(plan, scores, pictures.tolerance(predictor), threshold)
        line = line_of(predictor, answers.by_callback, timeout=PATIENCE)
        try:
            line.wait_until_started()
            stride = max(LEAST_STRIDE, options.frames // SAMPLES // options.producers)
            producers += [
                Producer(index, plan, shown, answers, line, stride, options.seed) for index in range(options.producers)
            ]
            soak = _Soak(options, producers, line, answers, (predictor, equal), stop, on_progress)
            soak.work()
        finally:
            line.close(0.0)
    return report.document(soak.outcome(), predictor, heap)


class _Soak:
    """What the main thread does while producers submit."""

    def __init__(
        self,
        options: SoakOptions,
        producers: Sequence[Producer],
        line: Line,
        answers: AnswerCounts,
        predictors: tuple[Predictor, Predictor],
        stop: Stop,
        on_progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._options, self._producers, self._line, self._answers = options, producers, line, answers
        self._predictors, self._stop, self._on_progress = predictors, stop, on_progress
        self._broken = _broken(predictors[1])
        self._swaps = report.Swaps()
        self._every_swap = max(1, options.frames // SWAPS)  # answers
        self._swap_at = self._every_swap
        self._samples = Samples(options.frames)
        self._warm: int | None = None  # the first sample after the warm-up
        self._complete = self._drained = self._hung = False
        self._began = self._moved_at = time.monotonic()
        self._moved = 0  # answers at that time
        self._seconds = 0.0

    def work(self) -> None:
        """The run; a producer's own error is raised."""
        self._swap()  # so that all that a swap loads is there before the warm-up
        gc.collect()
        gc.freeze()  # models and libraries, so that the collections for samples take no time that answers wait for
        self._began = time.monotonic()
        for producer in self._producers:
            producer.start()
        try:
            self._complete = self._follow()
        finally:
            self._seconds = time.monotonic() - self._began
            gc.unfreeze()
            self._end()

    def outcome(self) -> report.SoakOutcome:
        """What was found, once the line is closed."""
        return report.SoakOutcome(
            options=self._options,
            complete=self._complete,
            signal=self._stop.signal,
            drained=self._drained,
            hung=self._hung,
            seconds=self._seconds,
            answers=self._answers,
            swaps=self._swaps,
            health=self._line.health(),
            samples=self._samples.listed(),
            warm=self._warm,
        )

    def _follow(self) -> bool:
        """Sample and swap until everything is answered; False: the run is over before that."""
        while True:
            answered = self._answers.answered
            if answered != self._moved:
                self._moved, self._moved_at = answered, time.monotonic()
            self._hung = time.monotonic() - self._moved_at > PATIENCE
            if self._stop.signal or self._hung or any(each.error for each in self._producers):
                return False
            if answered >= self._swap_at:
                self._swap_at = answered + self._every_swap
                self._swap()
            if all(each.resting.is_set() for each in self._producers) and self._line.health().unanswered == 0:
                self._sample()
                if all(each.done for each in self._producers):
                    return not any(each.error for each in self._producers)
                for each in self._producers:
                    each.go_on()
            if self._on_progress:
                self._on_progress(answered, self._options.frames, "soaking" if self._warm is not None else "warming up")
            time.sleep(POLL)

    def _sample(self) -> None:
        answered = self._answers.answered
        if self._warm is None and answered >= self._options.warm_up_frames:
            self._warm = self._samples.count
        self._samples.take(answered, time.monotonic() - self._began, self._answers.latencies())

    def _swap(self) -> None:
        """Offer a broken model, and go on with an equal one."""
        try:
            self._line.swap(self._broken)
        except SprfastError as error:
            self._swaps.refused += 1
            self._swaps.reason = str(error)
        else:
            self._swaps.wrongly_accepted += 1
        self._swaps.offered += 1
        try:
            self._line.swap(self._predictors[self._swaps.offered % 2])
        except SprfastError as error:
            self._swaps.wrongly_refused += 1
            self._swaps.reason = str(error)
        else:
            self._swaps.accepted += 1

    def _end(self) -> None:
        """Close the sources, have everything answered, and let the producers end."""
        for producer in self._producers:
            producer.close()
            producer.finish()
        self._drained = self._line.drain(DRAIN)
        self._line.close(0.0)
        for producer in self._producers:
            producer.join(DRAIN)
        if error := next((each.error for each in self._producers if each.error), None):
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
