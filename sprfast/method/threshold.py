"""The score above which a part is rejected: where it comes from, and the verdict it gives."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sprfast.config import _Config, require
from sprfast.errors import InputError

# Relative. The image that a threshold comes from lies below it by more than float32 backends
# differ, so that all of them pass it.
CLEARANCE = 1e-4
MAX_SCORES = 1024  # that a threshold keeps of its calibration


class Verdict(str, enum.Enum):
    """What becomes of a part; a part without a usable score or threshold is never passed."""

    PASS = "PASS"
    REJECT = "REJECT"
    ERROR = "ERROR"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class Threshold(_Config):
    """The highest score that passes, and how it was found. A manual threshold has zeros and no
    scores after `source`.
    """

    value: float  # in the units of the score
    source: Literal["calibrated", "manual"]
    samples: int = 0  # good images it was calibrated on
    false_reject_rate: float = 0.0  # the rate asked for: what share of good parts may be rejected, in expectation
    rank: int = 0  # value is `CLEARANCE` above the rank-th smallest of the samples' scores, counted from 1
    # The samples' scores, ascending; of more than `MAX_SCORES`, that many evenly spaced in rank.
    # Files of older versions have none.
    scores: tuple[float, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        require(math.isfinite(self.value), "value", self.value, "a finite number")
        if self.source == "calibrated":
            rate = self.false_reject_rate
            require(self.samples >= 1, "samples", self.samples, "at least 1")
            require(0.0 < rate < 1.0, "false_reject_rate", rate, "a rate in (0, 1)")
            require(1 <= self.rank <= self.samples, "rank", self.rank, f"1 to {self.samples}")
        else:
            for name in ("samples", "false_reject_rate", "rank"):
                require(getattr(self, name) == 0, name, getattr(self, name), "0 for a manual threshold")
        number = len(self.scores)
        expected = min(self.samples, MAX_SCORES)  # 0 for a manual threshold
        require(number in (0, expected), "scores", f"{number} scores", f"none or {expected}")
        for before, score in zip((-math.inf, *self.scores), self.scores, strict=False):
            require(math.isfinite(score) and before <= score, "scores", score, "finite numbers in ascending order")

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes it again."""
        return super().to_json() | {"scores": list(self.scores)}

    def summary(self) -> dict[str, Any]:
        """Plain values to be looked at: in place of the scores their number, smallest, median and
        largest, or None where there are none.
        """
        if not self.scores:
            return self.to_json() | {"scores": None}
        span = {"minimum": self.scores[0], "median": float(np.median(self.scores)), "maximum": self.scores[-1]}
        return self.to_json() | {"scores": {"stored": len(self.scores), **span}}


@dataclasses.dataclass(frozen=True)
class MapThreshold(_Config):
    """The value of an anomaly map above which a pixel is marked, and how it was found."""

    value: float  # in the units of the map
    samples: int  # good images it was calibrated on
    false_pixel_rate: float  # the rate asked for: what share of a good image's pixels may be marked, in expectation

    def __post_init__(self) -> None:
        require(math.isfinite(self.value), "value", self.value, "a finite number")
        require(self.samples >= 1, "samples", self.samples, "at least 1")
        require(0.0 < self.false_pixel_rate < 1.0, "false_pixel_rate", self.false_pixel_rate, "a rate in (0, 1)")


def calibrate_map(maps: Iterable[NDArray[np.float32]], samples: int, false_pixel_rate: float) -> MapThreshold:
    """The threshold of conformal risk control (Angelopoulos et al. 2022): of a fresh good image, an
    expected share of at most `false_pixel_rate` of all pixels is marked.

    It is the smallest value above which n/(n + 1) times the share of all pixels of n good images,
    and 1/(n + 1) for the fresh one, make at most the rate. The promise holds on average over
    calibration sets, as that of `calibrate`.

    Args:
        maps: anomaly maps of good images, all of one size, one after the other.
        samples: their number n.
        false_pixel_rate: in (0, 1).

    Raises:
        InputError: a rate outside (0, 1), a map that is not finite, or too few for the rate; the
            message says how many are needed.
    """
    rate = _exact("false_pixel_rate", false_pixel_rate)
    share = rate * (samples + 1) - 1  # of n images' pixels, in images
    if share < 0:
        needed = f"a false-pixel rate of {false_pixel_rate} needs {_needed(rate)} good images"
        raise InputError(f"{needed}, got {_got(samples)}")
    kept: list[NDArray[np.float32]] = []
    marked = 0
    for anomaly_map in maps:
        if not np.isfinite(anomaly_map).all():
            raise InputError("an anomaly map of a good image is NaN or infinite")
        marked = math.floor(share * anomaly_map.size)  # pixels that may lie above, over all images
        kept.append(anomaly_map.ravel())
        if sum(each.size for each in kept) > 4 * (marked + anomaly_map.size):
            kept = [_largest(kept, marked + 1)]
    return MapThreshold(float(_largest(kept, marked + 1).min()), samples, float(false_pixel_rate))


def _largest(parts: list[NDArray[np.float32]], count: int) -> NDArray[np.float32]:
    """The `count` largest of all, in any order."""
    together = np.concatenate(parts)
    return np.partition(together, together.size - count)[together.size - count :]


def calibrate(scores: ArrayLike, false_reject_rate: float) -> Threshold:
    """The split-conformal threshold: a fresh good image exceeds it with at most
    `false_reject_rate`.

    It is the ceil((n + 1)(1 - rate))-th smallest score and `CLEARANCE`. The promise holds on
    average over calibration sets, for good images exchangeable with these n, none of which may have
    been trained on.

    Args:
        scores: (n,) scores of good images.
        false_reject_rate: in (0, 1).

    Raises:
        InputError: a rate outside (0, 1), scores that are not a list of finite numbers, or too few
            of them for the rate; the message says how many are needed.
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("scores: expected a list of numbers") from error
    if values.ndim != 1:
        raise InputError(f"scores: shape {values.shape}, expected (n,)")
    if not np.isfinite(values).all():
        raise InputError(f"scores: score {np.isfinite(values).argmin()} of the good images is NaN or infinite")
    rank = rank_of(values.size, false_reject_rate)
    score = float(np.partition(values, rank - 1)[rank - 1])
    value = score + CLEARANCE * abs(score)
    return Threshold(value, "calibrated", values.size, float(false_reject_rate), rank, _kept(values))


def rank_of(samples: int, false_reject_rate: float) -> int:
    """Which of the ascending scores of so many good images `calibrate` takes, counted from 1.

    Raises:
        InputError: a rate outside (0, 1), or too few images for it.
    """
    rate = _exact("false_reject_rate", false_reject_rate)
    rank = math.ceil((samples + 1) * (1 - rate))
    if rank > samples:
        wanted = f"scores of at least {_needed(rate)} good images"
        raise InputError(f"a false-reject rate of {false_reject_rate} needs {wanted}, got {_got(samples)}")
    return rank


def lowest_rate(samples: int) -> float:
    """The lowest rate, of two digits, that so many good images allow; of 60 it is 0.017."""
    upwards = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)
    return float(upwards.divide(decimal.Decimal(1), decimal.Decimal(samples + 1)))


def _got(samples: int) -> str:
    return f"{samples}, with which {lowest_rate(samples)} is the lowest" if samples else "0"


def _exact(name: str, rate: float) -> Fraction:
    """A rate as the decimal that was written: 0.1 is 1/10, so that no rounding moves a rank."""
    if not 0.0 < rate < 1.0:
        raise InputError(f"{name}: {rate!r} is not allowed, expected a rate in (0, 1)")
    return Fraction(repr(float(rate)))


def _needed(rate: Fraction) -> int:
    """Good images without which nothing can be promised."""
    return math.ceil(1 / rate) - 1


def _kept(values: NDArray[np.float64]) -> tuple[float, ...]:
    """What `Threshold.scores` holds of these."""
    ascending = np.sort(values)
    if values.size > MAX_SCORES:
        ascending = ascending[np.arange(MAX_SCORES) * (values.size - 1) // (MAX_SCORES - 1)]
    return tuple(ascending.tolist())


def manual(value: float) -> Threshold:
    """A threshold set by hand.

    Raises:
        InputError: `value` is not finite.
    """
    return Threshold(float(value), "manual")


def relative(score: float | None, threshold: float | None) -> float | None:
    """A score in units of its threshold, where 1.0 is the limit; None where one of them is missing,
    the score is not finite or the threshold not positive.
    """
    if score is None or threshold is None or not math.isfinite(score) or threshold <= 0:
        return None
    return float(score) / threshold


def verdict(score: float, threshold: Threshold | None) -> Verdict:
    """PASS for a finite score up to the threshold, REJECT above it, ERROR without a threshold or a
    finite score.
    """
    score = float(score)  # a float32 scalar would round the threshold to its own precision before comparing
    if threshold is None or not math.isfinite(score):
        return Verdict.ERROR
    return Verdict.PASS if score <= threshold.value else Verdict.REJECT
