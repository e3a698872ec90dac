"""What a setting needs of good images: error field, weights of levels, thresholds, and the band of
a cascade.

What is fitted (field, weights, band) and what gets a promise (thresholds) come from different
images: a score that has been fitted on an image is lower there than on a fresh one, and a threshold
from such scores would reject more than it says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from sprfast.config import Level, Schedule
from sprfast.data import images
from sprfast.engine.cascade import Cascade
from sprfast.engine.predictor import MAX_BATCH, Predictor, Result
from sprfast.errors import InputError
from sprfast.method import error_field, threshold
from sprfast.method.scoring_mode import PUBLISHED, CascadeSetting, ScoringMode

OnImage = Callable[[int, int], None]
# rate of good images whose verdict may differ from the second setting's without the second being
# asked
DISAGREEMENT = 0.1
CASCADE = "cascade"  # name of the setting that is made of two others
STAGES = ("single", PUBLISHED)  # these two
FEWEST = math.ceil(1 / DISAGREEMENT) - 1  # good images that its band takes
SHARE = 0.05  # of the good images that a cascade asks the second setting about, at least

# By name, beside the published one: the schedule, and whether the score is divided by an error
# field.
SETTINGS: dict[str, tuple[Schedule, bool]] = {
    "single": (Schedule((Level(8e-4, 1),), noise="signs"), False),
    "field": (Schedule((Level(1e-2, 1),)), True),
}


def results(
    predictor: Predictor, paths: Sequence[Path], on_image: OnImage = lambda done, total: None
) -> Iterator[Result]:
    """The result of each good image, in their order.

    Raises:
        InputError: one of them cannot be scored; the message names it.
    """
    for first in range(0, len(paths), MAX_BATCH):
        chunk = paths[first : first + MAX_BATCH]
        for path, result in zip(chunk, predictor.predict(list(chunk)), strict=True):
            if result.anomaly_map is None or not math.isfinite(result.pred_score):
                raise InputError(f"{images.display_name(path)}: cannot be scored ({result.reason})")
            yield result
        on_image(min(first + MAX_BATCH, len(paths)), len(paths))


def fit_field(
    predictor: Predictor, paths: Sequence[Path], on_image: OnImage = lambda done, total: None
) -> error_field.ErrorField:
    """The error field of good images.

    Raises:
        InputError: there are none, one cannot be scored, or they are not of one size at the
            network's input.
    """
    errors = [result.error_map for result in results(predictor, paths, on_image) if result.error_map is not None]
    sizes = sorted({each.shape for each in errors})
    if len(sizes) != 1:
        raise InputError(f"error field: expected good images of one size at the network's input, got {sizes or 'none'}")
    return error_field.fit(np.stack(errors))


def calibrate(
    predictor: Predictor,
    paths: Sequence[Path],
    false_reject_rate: float,
    false_pixel_rate: float | None,
    on_image: OnImage = lambda done, total: None,
) -> ScoringMode:
    """The predictor's setting with thresholds of its scores and, where a rate is given, of the
    pixels of its maps.

    Args:
        paths: good images on which nothing was trained or fitted.
        false_reject_rate, false_pixel_rate: as of `threshold.calibrate` and
            `threshold.calibrate_map`.

    Raises:
        InputError: too few images for a rate, or one of them cannot be scored.
    """
    scores: list[float] = []

    def maps() -> Iterator[npt.NDArray[np.float32]]:
        for result in results(predictor, paths, on_image):
            scores.append(result.pred_score)
            assert result.anomaly_map is not None  # as `results` says
            yield result.anomaly_map

    if false_pixel_rate is None:
        for _ in maps():
            pass
        of_maps = None
    else:
        of_maps = threshold.calibrate_map(maps(), len(paths), false_pixel_rate)
    return dataclasses.replace(
        predictor.setting, threshold=threshold.calibrate(scores, false_reject_rate), map_threshold=of_maps
    )


def fit_cascade(
    names: tuple[str, str],
    first: Predictor,
    second: Predictor,
    fit: Sequence[Path],
    good: Sequence[Path],
    false_reject_rate: float,
    on_image: OnImage = lambda done, total: None,
) -> CascadeSetting:
    """A cascade of two settings: its `band` from the images `fit`, and its threshold from the
    images `good`.

    Raises:
        InputError: too few images for one of the rates, or one cannot be scored.
    """
    scores = [[result.pred_score for result in results(each, fit, on_image)] for each in (first, second)]
    cascade = band(names, scores[0], scores[1], false_reject_rate)
    scaled = [result.pred_score for result in results(Cascade(first, second, cascade), good, on_image)]
    return dataclasses.replace(cascade, threshold=threshold.calibrate(scaled, false_reject_rate))


def band(names: tuple[str, str], first: ArrayLike, second: ArrayLike, false_reject_rate: float) -> CascadeSetting:
    """The cascade of two settings, with the threshold 1 until it is calibrated.

    The scale of each setting is the score that its threshold would be. The band is symmetric about
    the first one in the logarithm of the score. It is so wide that a fresh good image whose
    verdicts differ lies outside of it at a rate of about `DISAGREEMENT` or less (the conformal
    quantile of the distance at which verdicts differ; about, since the scales come from the same
    images), and that it holds at least `SHARE` of the images.

    Args:
        names: of the two settings.
        first, second: (n,) their scores of the same good images.
        false_reject_rate: at which the scales are taken.

    Raises:
        InputError: too few images.
    """
    scores = [np.asarray(each, np.float64) for each in (first, second)]
    count = len(scores[0])
    rank = math.ceil((count + 1) * (1 - DISAGREEMENT))
    if rank > count:
        raise InputError(f"cascade: a band needs at least {FEWEST} good images to fit it on, got {count}")
    scales = [_scale(each, false_reject_rate) for each in scores]
    distance = np.abs(np.log(scores[0] / scales[0]))
    differ = (scores[0] > scales[0]) != (scores[1] > scales[1])
    width = max(np.sort(np.where(differ, distance, 0.0))[rank - 1], np.sort(distance)[math.ceil(SHARE * count) - 1])
    return CascadeSetting(*names, *scales, math.exp(-width), math.exp(width), threshold.manual(1.0))  # type: ignore[call-arg,arg-type]


def balanced(predictor_of: Callable[[Schedule], Predictor], schedule: Schedule, paths: Sequence[Path]) -> Schedule:
    """The schedule with weights that give each level's error map the same mean over good images.

    Args:
        predictor_of: one that scores with a given schedule.
    """
    levels = []
    for level in schedule.levels:
        predictor = predictor_of(dataclasses.replace(schedule, levels=(level,)))
        means = [float(result.error_map.mean()) for result in results(predictor, paths) if result.error_map is not None]
        levels.append(dataclasses.replace(level, weight=1.0 / float(np.mean(means))))
    return dataclasses.replace(schedule, levels=tuple(levels))


def halves(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images to fit on and images to promise on: every other one, so that both span the time in
    which they were taken.
    """
    return list(paths[0::2]), list(paths[1::2])


def _scale(scores: npt.NDArray[np.float64], rate: float) -> float:
    """The score of the rank that a threshold would have; the largest where there are too few images
    for the rate.
    """
    rank = min(math.ceil((len(scores) + 1) * (1 - rate)), len(scores))
    return float(np.sort(scores)[rank - 1])
