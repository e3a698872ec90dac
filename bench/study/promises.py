"""Whether thresholds keep what they promise, on good images that they were not calibrated on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast import threshold
from sprfast.errors import InputError

RATES = (0.1, 0.05, 0.02, 0.01)
SPLITS = 200  # random halves of the good images
MAP_SPLITS = 10  # of their maps, which take longer

Floats = npt.NDArray[np.floating[Any]]


def of_images(scores: Floats, rate: float, seed: int = 0) -> dict[str, Any]:
    """False rejects of `threshold.calibrate` by halves: `SPLITS` random ones (i.i.d.), and the first against the second (in time).

    Args:
        scores: (n,) of good images, in the order in which they were taken.
        rate: that is promised.

    Returns:
        `refused`, the reason why nothing can be promised; or the measured rates beside the interval in which 95 % of binomial
        counts at the promised rate lie.
    """

    def measure(fit: npt.NDArray[np.intp], held_back: npt.NDArray[np.intp]) -> float:
        limit = threshold.calibrate(scores[fit], rate).value
        return float(np.mean(scores[held_back] > limit))

    return _by_halves(len(scores), rate, SPLITS, seed, measure)


def of_maps(maps: npt.NDArray[np.float32], rate: float, seed: int = 0) -> dict[str, Any]:
    """As `of_images`, for `threshold.calibrate_map` and the share of a good image's pixels that is marked.

    The interval is that of whole images, which marked shares vary less than.

    Args:
        maps: (n, H, W) anomaly maps of good images.
        rate: that is promised.
    """

    def measure(fit: npt.NDArray[np.intp], held_back: npt.NDArray[np.intp]) -> float:
        limit = threshold.calibrate_map(iter(maps[fit]), len(fit), rate).value
        return float(np.mean(maps[held_back] > limit))

    return _by_halves(len(maps), rate, MAP_SPLITS, seed, measure)


def _by_halves(count: int, rate: float, splits: int, seed: int, measure: Any) -> dict[str, Any]:
    from scipy.stats import binom  # type: ignore[import-untyped]

    half = count // 2
    random = np.random.default_rng(seed)
    try:
        rates = []
        for _ in range(splits):
            order = random.permutation(count)
            rates.append(measure(order[:half], order[half:]))
        in_time = measure(np.arange(half), np.arange(half, count))
    except InputError as error:
        return {"promised": rate, "calibrated_on": half, "refused": str(error)}
    held_back = count - half
    low, high = (float(value) / held_back for value in binom.ppf((0.025, 0.975), held_back, rate))
    mean = float(np.mean(rates))
    return {
        "promised": rate,
        "calibrated_on": half,
        "held_back": held_back,
        "interval": [low, high],
        "iid": {"mean": mean, "splits": splits, "within": low <= mean <= high},
        "in_time": {"rate": in_time, "within": low <= in_time <= high},
    }
