"""Whether thresholds keep their rates, as `sprfast study` measures it."""

import numpy as np
import pytest

from sprfast.bench.accuracy import promises
from sprfast.method import threshold


@pytest.mark.parametrize("rate", [0.1, 0.02])
def test_rates_of_scores_that_are_alike_lie_in_the_interval(rate):
    random = np.random.default_rng(0)
    scores, others = random.lognormal(size=400), random.lognormal(size=300)
    found = promises.of_images(scores, rate, others)
    assert found["promised"] == rate
    for way, calibrated_on, held_back in (("iid", 200, 200), ("in_time", 200, 200), ("across", 300, 400)):
        each = found[way]
        low, high = each["interval"]
        assert (each["calibrated_on"], each["held_back"], each["within"]) == (calibrated_on, held_back, True)
        assert 0.0 <= low <= each["rate"] <= high
        assert low < rate < high
    assert found["iid"]["rate"] <= rate + 0.002
    assert found["in_time"]["rate"] == (scores[200:] > threshold.calibrate(scores[:200], rate).value).mean()
    assert found["across"]["rate"] == (scores > threshold.calibrate(others, rate).value).mean()
    assert promises.of_images(scores, rate, others) == found
    assert "across" not in promises.of_images(scores, rate)


def test_a_drift_in_time_and_other_images_break_their_promise_only():
    random = np.random.default_rng(0)
    scores = random.lognormal(size=400) * np.linspace(1.0, 4.0, 400)
    found = promises.of_images(scores, 0.05, 0.2 * random.lognormal(size=400))
    assert found["iid"]["within"]
    for way in ("in_time", "across"):
        assert not found[way]["within"]
        assert found[way]["rate"] > found[way]["interval"][1]
    falling = promises.of_images(scores[::-1], 0.05)["in_time"]
    assert (falling["rate"], falling["within"]) == (0.0, False)


@pytest.mark.parametrize(("rate", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99)])
def test_too_few_images_are_refused_with_the_number_that_is_needed(rate, needed):
    random = np.random.default_rng(0)
    maps = random.random((2 * needed, 4, 4), np.float32)
    for promise, values in ((promises.of_images, random.random(2 * needed)), (promises.of_maps, maps)):
        assert all(
            "refused" not in each for each in promise(values, rate, values[:needed]).values() if isinstance(each, dict)
        )
        found = promise(values[:-1], rate, values[: needed - 1])
        for way in ("iid", "in_time", "across"):
            assert set(found[way]) == {"calibrated_on", "held_back", "refused"}
            assert found[way]["calibrated_on"] == needed - 1
            assert f"{needed} good images, got {needed - 1}" in found[way]["refused"]


def test_marked_pixels_keep_their_rate_where_maps_are_alike_and_not_where_they_drift():
    maps = np.random.default_rng(0).random((400, 8, 8), np.float32) ** 2
    found = promises.of_maps(maps, 0.05, maps[::2] / 2)
    assert (found["iid"]["rate"], found["iid"]["within"]) == (pytest.approx(0.045, abs=0.005), True)
    assert found["in_time"]["within"]
    limit = threshold.calibrate_map(iter(maps[:200]), 200, 0.05).value
    assert found["in_time"]["rate"] == pytest.approx((maps[200:] > limit).mean())
    assert found["across"]["rate"] > found["across"]["interval"][1]
    drifting = promises.of_maps(maps * np.linspace(1.0, 2.0, 400, dtype=np.float32)[:, None, None], 0.05)
    assert drifting["iid"]["within"]
    assert drifting["in_time"]["rate"] > drifting["in_time"]["interval"][1]
    assert not drifting["in_time"]["within"]
