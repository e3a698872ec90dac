"""What a scoring mode needs of good images: error field, weights of levels, and thresholds.

What is fitted (field, weights) and what gets a promise (thresholds) come from different
images: a score that has been fitted on an image is lower there than on a fresh one, and a threshold
from such scores would reject more than it says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.config import Level, Schedule
from sprfast.data import images
from sprfast.engine.predictor import MAX_BATCH, Predictor, Result
from sprfast.errors import InputError
from sprfast.method import error_field, threshold
from sprfast.method.scoring_mode import ScoringMode

OnImage = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a scoring mode is made of, before it has seen any image."""

    schedule: Schedule
    field: bool = False  # the score is divided by the error field of good images
    balanced: bool = False  # the levels are weighted so that their error maps have one mean over good images
    window: int | None = None  # of the anomaly map, see `ScoringMode`
    tile: int | None = None  # of large images, see `ScoringMode`

    @property
    def fitted(self) -> bool:
        """Whether it needs good images that its threshold does not see."""
        return self.field or self.balanced


# By name, beside the published one.
SETTINGS: dict[str, Setting] = {
    "single": Setting(Schedule((Level(8e-4, 1),), noise="signs")),
    "noiseless": Setting(Schedule((Level(3e-2, 1),), noise="none")),
    "multi": Setting(Schedule((Level(1e-3, 1), Level(1e-2, 1))), balanced=True),
    "field": Setting(Schedule((Level(1e-2, 1),)), field=True),
}


def results(
    predictor: Predictor, paths: Sequence[Path], on_image: OnImage = lambda done, total: None
) -> Iterator[Result]:
    """The result of each image, in their order.

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
    scored = results(predictor, paths, on_image)
    return error_field.fit(result.error_map for result in scored if result.error_map is not None)


def calibrate(
    predictor: Predictor,
    paths: Sequence[Path],
    false_reject_rate: float,
    false_pixel_rate: float | None,
    on_image: OnImage = lambda done, total: None,
) -> ScoringMode:
    """The predictor's scoring mode with thresholds of its scores and, where a rate is given, of the
    pixels of its maps.

    Args:
        paths: good images on which nothing was trained or fitted.
        false_reject_rate, false_pixel_rate: as of `threshold.calibrate` and
            `threshold.calibrate_map`.

    Raises:
        InputError: too few images for a rate, or one of them cannot be scored.
    """
    threshold.rank_of(len(paths), false_reject_rate)  # before they are scored
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
        predictor.scoring_mode, threshold=threshold.calibrate(scores, false_reject_rate), map_threshold=of_maps
    )


def caught(
    predictor: Predictor,
    given: threshold.Threshold,
    paths: Sequence[Path],
    on_image: OnImage = lambda done, total: None,
) -> dict[str, Any]:
    """What a threshold makes of bad images, plain values: `images` and how many of them are
    `caught`, and path and score of each of the `missed`, the lowest first.

    Raises:
        InputError: one of them cannot be scored.
    """
    scored = [result.pred_score for result in results(predictor, paths, on_image)]
    missed = sorted(
        (score, images.display_name(path))
        for score, path in zip(scored, paths, strict=True)
        if threshold.verdict(score, given) is threshold.Verdict.PASS
    )
    rows = [{"path": path, "pred_score": score} for score, path in missed]
    return {"images": len(paths), "caught": len(paths) - len(missed), "missed": rows}


def fitted(
    setting: Setting,
    predictor_of: Callable[[ScoringMode], Predictor],
    paths: Sequence[Path],
    on_image: OnImage = lambda done, total: None,
) -> ScoringMode:
    """The scoring mode of a setting, without thresholds.

    Args:
        predictor_of: one that scores with a given mode.
        paths: good images to fit on; of no use to a setting that is not fitted.

    Raises:
        InputError: as of `fit_field`.
    """
    mode = ScoringMode(setting.schedule, window=setting.window, tile=setting.tile)
    if setting.balanced:
        mode = dataclasses.replace(mode, schedule=balanced(predictor_of, mode, paths))
    if setting.field:
        mode = dataclasses.replace(mode, error_field=fit_field(predictor_of(mode), paths, on_image))
    return mode


def balanced(predictor_of: Callable[[ScoringMode], Predictor], mode: ScoringMode, paths: Sequence[Path]) -> Schedule:
    """The mode's schedule with weights that give each level's error map the same mean over good
    images.

    Args:
        predictor_of: one that scores with a given mode.
    """
    levels = []
    schedule = mode.schedule
    for level in schedule.levels:
        alone = dataclasses.replace(schedule, levels=(level,))
        predictor = predictor_of(dataclasses.replace(mode, schedule=alone))
        means = [float(result.error_map.mean()) for result in results(predictor, paths) if result.error_map is not None]
        levels.append(dataclasses.replace(level, weight=1.0 / float(np.mean(means))))
    return dataclasses.replace(schedule, levels=tuple(levels))


def halves(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images to fit on and images to promise on: every other one, so that both span the time in
    which they were taken.
    """
    return list(paths[0::2]), list(paths[1::2])
