"""Whether the scores of parts that pass still look like those of the calibration.

An ageing lamp or a fogged lens shifts the scores of good parts. Defective parts must not disturb
the comparison, however many there are. So only scores up to the threshold are compared:

* of the line, the scores of parts that passed;
* of the calibration, the scores below the one that the threshold comes from.

As long as nothing changes, both samples come from one distribution, cut off at the threshold. (For
the line the cut is a ten-thousandth higher, see `threshold.CLEARANCE`.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sprfast.config import require
from sprfast.errors import InputError
from sprfast.method.threshold import MAX_SCORES, Threshold
from sprfast.system.libraries import require as require_library

WINDOW = 200  # parts that passed, in each test
FALSE_ALARM_RATE = 1e-3  # of a window


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftReport:
    """The last window of scores that was tested."""

    drifted: bool = False  # p_value is at most false_alarm_rate
    windows: int = 0  # tested so far
    alarms: int = 0  # of them, those that had drifted
    samples: int  # scores in a window
    calibration: int  # scores that a window is compared with
    p_value: float = 1.0  # two-sided; 1 before the first window is full
    statistic: float = 0.0  # largest distance between the two distribution functions, in [0, 1]
    false_alarm_rate: float  # probability of an alarm in a window where nothing has changed, see `Drift`
    median: float = math.nan  # of the window; NaN before the first one is full
    calibration_median: float


class Drift:
    """One two-sided two-sample Kolmogorov-Smirnov test for each full window of scores; windows do
    not overlap.

    Where nothing has changed, a window gives an alarm with at most the probability
    `false_alarm_rate`, if the scores of the calibration and of the window are exchangeable. Ties
    only lower it. Three things follow:

    * All windows share one calibration, so their alarms are not independent. An unlucky calibration
      gives several.
    * Many windows give some alarms. At one part a second, a rate of 0.001 and 200 parts mean a
      false alarm in two to three days.
    * Parts that resemble their neighbours, such as those of one batch of material, are not
      exchangeable. They give more alarms.

    A threshold keeps at most 1024 scores, chosen evenly where there were more. They lie closer to
    the distribution than 1024 random draws would. The test takes them for draws, so false alarms
    are rarer than stated: at 0.001 and 200 parts down to a quarter.

    At 0.001 a window of 200 parts notices a shift of all scores by their standard deviation after a
    calibration on 50 images, and half of that after one on 200. A slower drift is noticed when it
    has come that far.

    Not safe to call from several threads at once. `add` stores a number; the call that fills a
    window tests it, in about a millisecond.

    Args:
        calibration: scores of good parts up to the threshold, without the one that the threshold
            comes from.
        window: parts in a test.
        false_alarm_rate: in (0, 1).

    Raises:
        InputError: an argument is not allowed, or so few scores of the calibration could never give
            an alarm; the message says how many are needed.
        BackendError: SciPy is not installed.
    """

    def __init__(
        self, calibration: Sequence[float], window: int = WINDOW, false_alarm_rate: float = FALSE_ALARM_RATE
    ) -> None:
        needed = needed_scores(window, false_alarm_rate)
        if len(calibration) < needed:
            raise InputError(
                f"the calibration has {len(calibration)} scores below its threshold, to test {window} parts at a "
                f"false-alarm rate of {false_alarm_rate} takes {needed}"
            )
        self._test = require_library("scipy.stats", "line").ks_2samp  # now, since it takes a second
        self._calibration = np.sort(np.asarray(calibration, np.float64))
        if not np.isfinite(self._calibration).all():
            raise InputError("calibration: a score is NaN or infinite, expected finite numbers")
        self._window = np.empty(window)
        self._filled = 0
        self._report = DriftReport(
            samples=window,
            calibration=len(calibration),
            false_alarm_rate=false_alarm_rate,
            calibration_median=float(np.median(self._calibration)),
        )

    def add(self, score: float) -> None:
        """Take the score of a part that passed."""
        self._window[self._filled] = score
        self._filled += 1
        if self._filled == self._window.size:
            self._filled = 0
            self._finish_window()

    def report(self) -> DriftReport:
        """The result for the last full window."""
        return self._report

    def _finish_window(self) -> None:
        outcome = self._test(self._calibration, self._window)
        before, p_value = self._report, float(outcome.pvalue)
        drifted = p_value <= before.false_alarm_rate
        self._report = dataclasses.replace(
            before,
            drifted=drifted,
            windows=before.windows + 1,
            alarms=before.alarms + drifted,
            p_value=p_value,
            statistic=float(outcome.statistic),
            median=float(np.median(self._window)),
        )


def watch(threshold: Threshold | None, window: int = WINDOW, rate: float = FALSE_ALARM_RATE) -> Drift | str:
    """What watches the scores that this threshold passes; or why they cannot be watched, so that a
    line runs without.

    Raises:
        InputError: `window` or `rate` is not allowed.
    """
    needed_scores(window, rate)
    if threshold is None or threshold.source == "manual":
        return "the threshold does not come from a calibration"
    if not threshold.scores:
        return "the threshold was stored without the scores of its calibration; run `sprfast calibrate` again"
    below = [score for score in threshold.scores if score <= threshold.value][:-1]
    try:
        return Drift(below, window, rate)
    except InputError as error:  # too few of them
        return str(error)


def needed_scores(window: int, rate: float) -> int:
    """How many scores the calibration must have for a window that lies wholly above or below them
    to give an alarm.

    Raises:
        InputError: `window` or `rate` is not allowed, or no calibration has as many scores.
    """
    require(type(window) is int and 1 <= window <= 10_000, "window", window, "1 to 10000 parts")
    # True and False are no rates in (0, 1) either
    require(isinstance(rate, (int, float)) and 0.0 < rate < 1.0, "false_alarm_rate", rate, "a rate in (0, 1)")
    for needed in range(1, MAX_SCORES):
        # of as many orders of the two samples, two are that far apart
        if 2 / math.comb(needed + window, window) <= rate:
            return needed
    raise InputError(
        f"false_alarm_rate: {rate!r} is not allowed, a test of {window} parts cannot tell so rare an event; take a "
        f"higher one"
    )
