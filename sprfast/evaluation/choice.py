"""The choice of a scoring mode: by what good images say, and bad ones where there are any.

A threshold promises nothing for images that chose between modes: of two modes as good as each other
the choice takes the one whose good scores happened to be low. So a choice sees images to fit on
only, and the threshold comes from others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprfast.config import PUBLISHED, Preprocessing
from sprfast.data import corruption, images
from sprfast.engine.predictor import MAX_BATCH, Predictor
from sprfast.errors import InputError
from sprfast.evaluation import calibration, metrics
from sprfast.method.scoring_mode import ScoringMode

PAINTED = 4  # copies of a good image with defects painted into them
FEWEST = 2  # good images: one to fit on, and one to score


@dataclasses.dataclass(frozen=True)
class Tried:
    """A scoring mode, and what it is worth on these parts."""

    setting: str
    passes: int  # of the network, an image
    auroc: float  # of scores, of the bad images, or of painted ones, above the good ones

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"setting": self.setting, "passes": self.passes, "image_AUROC": self.auroc}


def best(tried: Sequence[Tried]) -> Tried:
    """The one with the highest image_AUROC; of equals the one with the fewest passes, and of these
    the first.
    """
    return max(tried, key=lambda each: (each.auroc, -each.passes))


def try_all(
    published: ScoringMode,
    predictor_of: Callable[[ScoringMode], Predictor],
    good: Sequence[Path],
    bad: Sequence[Path],
    on_setting: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Tried]:
    """What the published mode and each of `calibration.SETTINGS` are worth.

    Each is fitted on one half of the good images and looks for the bad ones among the other, and
    the other way round; its figure is the mean of the two. One with an error field takes part where
    all images have one size at the network's input.

    Args:
        published: the mode that has this name; its thresholds do not matter.
        predictor_of: an engine that scores with a given mode.
        good: at least `FEWEST` good images, none of which was trained on, or gets a promise.
        bad: bad images; without any, `PAINTED` copies of each good image with painted defects.
        on_setting: called with the number of modes done, their total, and the next one's name.

    Raises:
        InputError: too few good images, or one of the images cannot be scored.
    """
    if len(good) < FEWEST:
        raise InputError(f"--setting auto: needs at least {FEWEST} good images to choose by, got {len(good)}")
    preprocessing, halves = predictor_of(published).preprocessing, calibration.halves(good)
    sizes = {images.load_image(path, preprocessing).pixels.shape for path in (*good, *bad)}
    settings = [name for name, setting in calibration.SETTINGS.items() if len(sizes) == 1 or not setting.field]
    tried: list[Tried] = []
    for name in (PUBLISHED, *settings):
        on_setting(len(tried), 1 + len(settings), name)
        found, passes = [], 0
        for fit, apart in (halves, halves[::-1]):
            mode = published if name == PUBLISHED else calibration.fitted(calibration.SETTINGS[name], predictor_of, fit)
            predictor, passes = predictor_of(mode), mode.schedule.draws
            found.append(_separated(predictor, apart, bad))
        tried.append(Tried(name, passes, float(np.mean(found))))
    return tried


def _separated(predictor: Predictor, good: Sequence[Path], bad: Sequence[Path]) -> float:
    """image_AUROC of bad images, or else of painted ones, above good ones."""
    below = [result.pred_score for result in calibration.results(predictor, good)]
    if bad:
        above = [result.pred_score for result in calibration.results(predictor, bad)]
    else:
        above = list(_painted_scores(predictor, good))
    value = metrics.evaluate([*below, *above], [0] * len(below) + [1] * len(above), None, None)["image_AUROC"].value
    assert value is not None  # as there are images of both kinds
    return value


def _painted_scores(predictor: Predictor, good: Sequence[Path]) -> Iterator[float]:
    for chunk in painted(good, predictor.preprocessing):
        for (path, _), result in zip(chunk, predictor.predict([x for _, x in chunk]), strict=True):
            if not math.isfinite(result.pred_score):
                raise InputError(f"{images.display_name(path)}: painted, cannot be scored ({result.reason})")
            yield result.pred_score


def painted(good: Sequence[Path], preprocessing: Preprocessing) -> Iterator[list[tuple[Path, torch.Tensor]]]:
    """`PAINTED` copies of each good image with painted defects, (3, H, W) float32 in [-1, 1] at the
    network's input, the same in every call; at most `MAX_BATCH` at a time.

    Raises:
        InputError: an image cannot be read.
    """

    def pixels(path: Path) -> torch.Tensor:
        return torch.from_numpy(images.load_image(path, preprocessing).pixels)

    donors = [pixels(path) for path in good[: corruption.DONORS]]
    for first in range(0, len(good), MAX_BATCH // PAINTED):
        chunk = []
        for index, path in enumerate(good[first : first + MAX_BATCH // PAINTED], first):
            x = pixels(path)
            alike = torch.stack([each for each in donors if each.shape == x.shape] or [x])
            copies, generator = x.expand(PAINTED, -1, -1, -1), torch.Generator().manual_seed(index)
            done = corruption.corrupt(copies, alike, 1.0, PAINTED, slice(0, PAINTED), generator)
            chunk += [(path, each) for each in done.x]
        yield chunk
