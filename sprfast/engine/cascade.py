"""Two predictors in turn: the second one, which costs more, sees only the images that the first one
is not sure of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sprfast.config import Precision
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import MAX_BATCH, Map, Predictor, Result
from sprfast.errors import InputError
from sprfast.method.scoring_mode import CascadeSetting
from sprfast.method.threshold import verdict


class Cascade(Predictor):
    """Scores with the first predictor, and again with the second where the first score lies in the
    cascade's band.

    An image's result is that of the predictor which decided, its score divided by that one's scale;
    `Result.passes` counts both.

    Args:
        first, second: engines or runners of one model, with the cascade's two settings.
        cascade: the band, and the threshold on the scaled score.

    Raises:
        InputError: the two are not of one model.
    """

    def __init__(self, first: Predictor, second: Predictor, cascade: CascadeSetting) -> None:
        if (first.model_sha256, first.preprocessing) != (second.model_sha256, second.preprocessing):
            raise InputError("cascade: the two are not of one model")
        super().__init__(first.preprocessing, dataclasses.replace(first.setting, threshold=cascade.threshold))
        self.first, self.second, self.cascade = first, second, cascade

    @property
    def backend(self) -> str:
        """Name of the first one's."""
        return self.first.backend

    @property
    def precision(self) -> Precision:
        """Of the first one."""
        return self.first.precision

    @property
    def model_sha256(self) -> str:
        """Of both."""
        return self.first.model_sha256

    @property
    def input_size(self) -> tuple[int, int]:
        """As `Predictor.input_size`, of the first one."""
        return self.first.input_size

    def self_test(self) -> float:
        """As `Predictor.self_test`; the larger error of the two."""
        return max(self.first.self_test(), self.second.self_test())

    def warm_up(self, height: int, width: int, batches: Sequence[int] = (1, MAX_BATCH)) -> None:
        """As `Predictor.warm_up`, of both."""
        for predictor in (self.first, self.second):
            predictor.warm_up(height, width, batches)

    def prepare(self, source: Any, channel_order: ChannelOrder | None = None) -> images.Image:
        """As `Predictor.prepare`, for both."""
        image = self.first.prepare(source, channel_order)
        self.second.require_field_size(image, "image")
        return image

    def score(self, prepared: Sequence[images.Image]) -> list[Result]:
        """As `Predictor.score`."""
        cascade = self.cascade
        results = [self._scaled(result, cascade.first_scale) for result in self.first.score(prepared)]
        unsure = [index for index, result in enumerate(results) if cascade.low <= result.pred_score <= cascade.high]
        again = self.second.score([prepared[index] for index in unsure]) if unsure else []
        for index, result in zip(unsure, again, strict=True):
            before = results[index]
            passes, milliseconds = before.passes + result.passes, before.milliseconds + result.milliseconds
            scaled = self._scaled(result, cascade.second_scale)
            results[index] = dataclasses.replace(scaled, passes=passes, milliseconds=milliseconds)
        return results

    def _maps(self, prepared: Sequence[images.Image]) -> tuple[Map, Map]:
        return self.first._maps(prepared)

    def _scaled(self, result: Result, scale: float) -> Result:
        """The result in units of the cascade."""
        score, threshold = result.pred_score / scale, self.cascade.threshold
        reason = None if math.isfinite(score) else f"the score is {score}"
        return dataclasses.replace(
            result, pred_score=score, threshold=threshold.value, verdict=verdict(score, threshold), reason=reason
        )
