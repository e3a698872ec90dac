"""Whether thresholds keep what they promise, on good images that they were not calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.errors import InputError
from sprfast.method import threshold

RATES = (0.1, 0.05, 0.02, 0.01)
SPLITS = 200  # random halves of the good images
MAP_SPLITS = 10  # of their maps, which take longer

Floats = npt.NDArray[np.floating[Any]]


def of_images(scores: Floats, rate: float, calibration: Floats | None = None) -> dict[str, Any]:
    """False rejects of `threshold.calibrate`, three ways.

    - `iid`: by `SPLITS` random halves of the images. It checks the threshold's own arithmetic,
    whatever the images are like.
    - `in_time`: from the first half for the second one.
    - `across`: from `calibration` for all of them.

    Args:
        scores: (n,) of good images, in the order in which they were taken.
        rate: that is promised.
        calibration: (m,) scores of other good images, on which nothing was trained or fitted; None:
            there are none.

    Returns:
        For each way the images it calibrates on and either `refused`, the reason why nothing can be
        promised from so few, or the measured `rate`, the `interval` in which 95 % of binomial
        counts at the promised rate lie, and whether the rate is `within`.
    """
    return _three_ways(scores, calibration, rate, SPLITS, lambda fit: threshold.calibrate(fit, rate).value)


def of_maps(maps: Floats, rate: float, calibration: Floats | None = None) -> dict[str, Any]:
    """What `of_images` tells, of `threshold.calibrate_map` and the share of a good image's pixels
    that is marked.

    The interval is that of whole images, which marked shares vary less than.

    Args:
        maps: (n, H, W) anomaly maps of good images.
        rate: that is promised.
        calibration: (m, H, W) of others.
    """
    return _three_ways(
        maps, calibration, rate, MAP_SPLITS, lambda fit: threshold.calibrate_map(iter(fit), len(fit), rate).value
    )


def _three_ways(
    given: Floats, calibration: Floats | None, rate: float, times: int, limit: Callable[[Floats], float]
) -> dict[str, Any]:
    """What is kept by the `limit` from one part of the images on another one."""
    from scipy.stats import binom  # type: ignore[import-untyped]

    def kept(splits: Iterable[tuple[Floats, Floats]], calibrated_on: int, held_back: int) -> dict[str, Any]:
        document: dict[str, Any] = {"calibrated_on": calibrated_on, "held_back": held_back}
        if not held_back:
            return document | {"refused": "there are no good images to verify it on"}
        try:
            value = float(np.mean([np.mean(others > limit(fit)) for fit, others in splits]))
        except InputError as error:
            return document | {"refused": str(error)}
        low, high = (float(count) / held_back for count in binom.ppf((0.025, 0.975), held_back, rate))
        return document | {"rate": value, "interval": [low, high], "within": low <= value <= high}

    half, rest = len(given) // 2, len(given) - len(given) // 2
    random = np.random.default_rng(0)
    orders = (random.permutation(len(given)) for _ in range(times))
    halves = ((given[order[:half]], given[order[half:]]) for order in orders)
    found = {
        "promised": rate,
        "iid": kept(halves, half, rest),
        "in_time": kept([(given[:half], given[half:])], half, rest),
    }
    if calibration is not None:
        found["across"] = kept([(calibration, given)], len(calibration), len(given))
    return found
