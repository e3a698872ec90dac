import dataclasses
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp

from sprfast.errors import InputError
from sprfast.line.drift import Drift, needed_scores, watch
from sprfast.line.health import Counters
from sprfast.method.threshold import calibrate, manual, verdict

MEDIAN, DEVIATION = 1.678, math.sqrt(2)  # of `scores`


def scores(rng, number):
    """Of good parts."""
    return rng.gamma(2.0, size=number)


def passed(rng, threshold, number, change=lambda values: values):
    """As many scores of parts that pass, after a change to all parts."""
    several = change(scores(rng, 20 * number))
    below = several[several <= threshold.value]
    assert len(below) >= number
    return below[:number].tolist()


def feed(drift, values):
    for value in values:
        drift.add(value)
    return drift.report()


@pytest.mark.parametrize(("calibrated_on", "reject", "exact"), [(50, 0.05, True), (60, 0.5, True), (3000, 0.1, False)])
def test_false_alarms_have_the_stated_rate(calibrated_on, reject, exact):
    """A fresh calibration for each window. Where a large part is cut off at the threshold, the rest
    is what both sides have in common.
    """
    rng, windows, rate = np.random.default_rng(calibrated_on), 1500 if exact else 500, 0.05
    alarms = 0
    for _ in range(windows):
        threshold = calibrate(scores(rng, calibrated_on), reject)
        alarms += feed(watch(threshold, 200, rate), passed(rng, threshold, 200)).alarms
    least, most = binom.interval(0.999, windows, rate)
    assert alarms <= most
    assert alarms >= least or not exact  # where order statistics stand for more scores there may be fewer


@pytest.mark.parametrize(
    ("calibrated_on", "change"),
    [
        (50, lambda values: values + DEVIATION),
        (50, lambda values: values - DEVIATION),
        (99, lambda values: MEDIAN + 3 * (values - MEDIAN)),
        (99, lambda values: MEDIAN + (values - MEDIAN) / 3),
        (200, lambda values: values + DEVIATION / 2),
    ],
    ids=["higher", "lower", "wider", "narrower", "half as much higher"],
)
def test_another_level_or_spread_is_noticed_in_the_first_window(calibrated_on, change):
    noticed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        threshold = calibrate(scores(rng, calibrated_on), 0.05)
        drift = watch(threshold)
        values = passed(rng, threshold, 200, change)
        assert not feed(drift, values[:199]).windows
        report = feed(drift, values[199:])
        assert (report.windows, report.alarms) == (1, int(report.drifted))
        noticed += report.alarms
    assert noticed >= 18


def test_defects_above_the_threshold_raise_no_alarm():
    """Through `Counters`, which shows the watch only parts that passed; 5 % of the parts are
    defects.
    """
    rng, windows, rate = np.random.default_rng(7), 300, 0.05
    alarms = 0
    for _ in range(windows):
        threshold = calibrate(scores(rng, 100), 0.02)
        drift = watch(threshold, 100, rate)
        counters = Counters(drift)
        while not drift.report().windows:
            score = float(scores(rng, 1)[0]) if rng.random() > 0.05 else threshold.value * rng.uniform(1.1, 10)
            counters.watch(verdict(score, threshold), score)
        alarms += drift.report().alarms
    assert alarms <= binom.ppf(0.9995, windows, rate)


def test_a_window_without_drift_ends_the_alarm():
    rng = np.random.default_rng(0)
    threshold = calibrate(scores(rng, 99), 0.01)
    drift = watch(threshold)
    assert feed(drift, passed(rng, threshold, 200, lambda values: values / 3)).drifted
    report = feed(drift, passed(rng, threshold, 200))
    assert (report.drifted, report.windows, report.alarms) == (False, 2, 1)


def test_a_report_is_of_the_last_full_window():
    rng = np.random.default_rng(1)
    calibration = scores(rng, 60).tolist()
    drift = Drift(calibration[::-1], window=40, false_alarm_rate=0.01)
    before = drift.report()
    assert (before.drifted, before.windows, before.alarms, before.p_value, before.statistic) == (False, 0, 0, 1.0, 0.0)
    assert math.isnan(before.median)
    for number, scale in enumerate((1.0, 3.0, 1.0), 1):
        window = (scale * scores(rng, 40)).tolist()
        expected = ks_2samp(calibration, window)
        assert feed(drift, window[:39]).windows == number - 1
        report = feed(drift, window[39:])
        assert (report.windows, report.samples, report.calibration, report.false_alarm_rate) == (number, 40, 60, 0.01)
        assert (report.p_value, report.statistic) == (pytest.approx(expected.pvalue), pytest.approx(expected.statistic))
        assert report.drifted == (expected.pvalue <= 0.01) == (scale > 1)
        assert (report.median, report.calibration_median) == (np.median(window), np.median(calibration))


def test_constant_scores_and_ties():
    threshold = calibrate([0.7] * 50, 0.1)
    drift = watch(threshold)
    report = feed(drift, [0.7] * 200)
    assert (report.p_value, report.statistic, report.alarms) == (1.0, 0.0, 0)
    assert feed(drift, [0.6] * 200).drifted
    rng = np.random.default_rng(2)  # scores in coarse steps: no more false alarms than without ties
    alarms = sum(
        feed(Drift(rng.integers(0, 5, 50).tolist(), 50, 0.05), rng.integers(0, 5, 50)).alarms for _ in range(400)
    )
    assert alarms <= binom.ppf(0.9995, 400, 0.05)


@pytest.mark.parametrize(("window", "rate", "needed"), [(200, 1e-3, 2), (20, 1e-3, 4), (5, 1e-3, 9), (1, 0.01, 199)])
def test_as_many_scores_as_an_alarm_needs(window, rate, needed):
    assert needed_scores(window, rate) == needed
    report = feed(Drift(list(range(needed)), window, rate), range(-window, 0))
    assert report.drifted
    with pytest.raises(InputError, match=f"has {needed - 1} scores below its threshold.* takes {needed}"):
        Drift(list(range(needed - 1)), window, rate)
    assert ks_2samp(range(needed - 1), range(-window, 0)).pvalue > rate


@pytest.mark.parametrize(
    ("threshold", "reason"),
    [
        (None, "not come from a calibration"),
        (manual(1.0), "not come from a calibration"),
        (dataclasses.replace(calibrate(np.arange(99.0), 0.01), scores=()), "without the scores.*calibrate` again"),
        (
            calibrate([1.0, 2.0], 0.4),
            "the calibration has 1 scores below its threshold, to test 200 parts .* 0.001 takes 2",
        ),
    ],
)
def test_where_drift_cannot_be_watched_there_is_a_reason(threshold, reason):
    found = watch(threshold)
    assert isinstance(found, str)
    assert re.search(reason, found)


def test_what_is_compared_is_below_the_threshold_on_the_calibrations_side():
    threshold = calibrate(np.arange(1.0, 101.0), 0.2)
    assert threshold.rank == 81
    assert watch(threshold).report().calibration == 80
    assert watch(threshold).report().calibration_median == 40.5


@pytest.mark.parametrize(
    ("window", "rate"),
    [(0, 0.1), (10_001, 0.1), (2.5, 0.1), (200, 0.0), (200, 1.0), (200, math.nan), (200, "0.1"), (1, 1e-9)],
)
def test_arguments_are_checked_even_where_nothing_is_watched(window, rate):
    for call in (lambda: watch(None, window, rate), lambda: Drift([1.0] * 50, window, rate)):
        with pytest.raises(InputError, match=r"window|false_alarm_rate"):
            call()
    with pytest.raises(InputError, match="NaN or infinite"):
        Drift([1.0] * 50 + [math.nan])


def test_scipy_is_loaded_when_the_watch_begins():
    code = "import sys; from sprfast.line.drift import watch; watch(None); assert 'scipy' not in sys.modules; "
    code += "from sprfast.line.drift import Drift; Drift([1.0] * 9); assert 'scipy.stats' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
