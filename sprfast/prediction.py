"""From an image to a verdict, around whatever computes maps; without PyTorch."""

from __future__ import annotations

import abc
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import PIL.Image

from sprfast import images
from sprfast.config import Preprocessing
from sprfast.errors import InputError
from sprfast.images import ChannelOrder
from sprfast.threshold import Threshold, Verdict, verdict

Map = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | PIL.Image.Image | npt.NDArray[Any]
MAX_BATCH = 16  # images a call of what computes maps


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What is said of one image. An image that could not be scored has the verdict ERROR and a reason."""

    verdict: Verdict  # PASS only if the score is finite and at most the threshold
    pred_score: float  # maximum of the anomaly map; NaN where there is none
    threshold: float | None  # None: the model is not calibrated, and no image passes
    anomaly_map: Map | None  # (256, 256)
    error_map: Map | None  # (H, W) at the network's input
    source_size: tuple[int, int] | None  # height and width of the image in pixels, as oriented
    milliseconds: float  # from the image as given to the result, its share of a batch
    reason: str | None = None  # why the verdict is ERROR

    @property
    def pred_label(self) -> bool:
        """False for PASS only."""
        return self.verdict is not Verdict.PASS

    @property
    def pred_mask(self) -> npt.NDArray[np.bool_] | None:
        """(256, 256): where the anomaly map is above the threshold; None without a map or a threshold."""
        if self.anomaly_map is None or self.threshold is None:
            return None
        # in float64 like the verdict: numpy would round the threshold to float32 first
        return ~(self.anomaly_map.astype(np.float64) <= self.threshold)


class Predictor(abc.ABC):
    """Scores images one by one or in lists.

    Args:
        preprocessing: from an image to the network's input.
        threshold: on the score; None: no image passes.
    """

    def __init__(self, preprocessing: Preprocessing, threshold: Threshold | None) -> None:
        self.preprocessing, self.threshold = preprocessing, threshold

    @property
    @abc.abstractmethod
    def backend(self) -> str:
        """Name of what computes the maps."""

    @abc.abstractmethod
    def _maps(self, x: Map) -> tuple[Map, Map]:
        """Error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256) of images (B, 3, H, W) in [-1, 1], in memory of their own."""

    @overload
    def predict(self, source: list[Any] | tuple[Any, ...], channel_order: ChannelOrder | None = None) -> list[Result]: ...
    @overload
    def predict(self, source: Any, channel_order: ChannelOrder | None = None) -> Result: ...
    def predict(self, source: Any, channel_order: ChannelOrder | None = None) -> Result | list[Result]:
        """Score one image or a list of them.

        Args:
            source: a path, a PIL image, a numpy array (see `images.load_image`), or a list of these. An
                `Engine` also takes float tensors (3, H, W) in [-1, 1] that are already at the network's size.
            channel_order: "rgb", "bgr" or "grey"; required for arrays, absent for everything else.

        Returns:
            A `Result`, or a list of them in the order given. A bad image never raises and never
            disturbs the others: its result has the verdict ERROR and the reason.
        """
        if isinstance(source, (list, tuple)):
            results: list[Result] = []
            for first in range(0, len(source), MAX_BATCH):
                results += self._predict_chunk(source[first : first + MAX_BATCH], channel_order)
            return results
        return self._predict_chunk([source], channel_order)[0]

    def _predict_chunk(self, sources: Sequence[Any], channel_order: ChannelOrder | None) -> list[Result]:
        started = time.perf_counter()
        results: dict[int, Result] = {}
        inputs: dict[int, images.Image] = {}
        for index, source in enumerate(sources):
            try:
                inputs[index] = self._input(source, channel_order)
            except InputError as error:
                results[index] = self._error(str(error), (time.perf_counter() - started) * 1e3)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in inputs.items():
            by_shape.setdefault(image.pixels.shape, []).append(index)
        for indices in by_shape.values():
            errors, anomalies = self._maps(np.stack([inputs[index].pixels for index in indices]))
            share = (time.perf_counter() - started) * 1e3 / len(sources)
            for row, index in enumerate(indices):
                results[index] = self._result(errors[row, 0], anomalies[row, 0], inputs[index].source_size, share)
        return [results[index] for index in range(len(sources))]

    def _input(self, source: Any, channel_order: ChannelOrder | None) -> images.Image:
        """The network's input; InputError where the image cannot be used."""
        return images.load_image(source, self.preprocessing, channel_order=channel_order)

    def _result(self, errors: Map, anomalies: Map, size: tuple[int, int], milliseconds: float) -> Result:
        threshold = self.threshold
        score = float(anomalies.max())
        decided = verdict(score, threshold)
        reason = None
        if decided is Verdict.ERROR:
            reason = "the model has no threshold: run `sprfast calibrate`" if math.isfinite(score) else f"the score is {score}"
        return Result(decided, score, threshold.value if threshold else None, anomalies, errors, size, milliseconds, reason)

    def _error(self, reason: str, milliseconds: float) -> Result:
        threshold = self.threshold.value if self.threshold else None
        return Result(Verdict.ERROR, math.nan, threshold, None, None, None, milliseconds, reason)
