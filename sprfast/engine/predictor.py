"""From an image to a verdict, around a session that computes the maps; without PyTorch."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import io
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import PIL.Image

from sprfast.backends.sessions.session import Session
from sprfast.config import Precision, Preprocessing
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.drawing import Drawn, SourceFile
from sprfast.errors import BackendError, InputError, OutOfMemoryError, SprfastError
from sprfast.formats.export_metadata import Probe, probe_image
from sprfast.method import noise, tiles
from sprfast.method.anomaly_map import anomaly_map
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import Threshold, Verdict, verdict

Map = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | io.BytesIO | PIL.Image.Image | npt.NDArray[Any]
MAX_BATCH = 16  # images a call of what computes maps

_log = logging.getLogger("sprfast.engine.predictor")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result(Drawn):
    """What is said of one image; one that could not be scored is an ERROR with a reason."""

    verdict: Verdict  # PASS only if the score is finite and at most the threshold
    pred_score: float  # maximum of the anomaly map, or as the scoring mode has it; NaN where there is none
    threshold: float | None  # None: the model is not calibrated, and no image passes
    anomaly_map: Map | None  # (256, 256)
    error_map: Map | None  # (H, W) at the network's input
    source_size: tuple[int, int] | None  # height and width of the image in pixels, as oriented
    milliseconds: float  # from the image as given to the result, its share of a batch
    reason: str | None = None  # why the verdict is ERROR
    # above which a pixel of the anomaly map is marked; None: the scoring mode does not say
    map_threshold: float | None = None
    passes: int = 0  # of the network
    file: SourceFile | None = None  # what was scored, where that was a file

    def to_json(self) -> dict[str, Any]:
        """Score (null where not finite), verdict, threshold, milliseconds; the reason if any."""
        row = {
            "pred_score": self.pred_score if math.isfinite(self.pred_score) else None,
            "verdict": self.verdict.value,
            "threshold": self.threshold,
            "milliseconds": round(self.milliseconds, 3),
        }
        return row | ({"reason": self.reason} if self.reason else {})

    @property
    def pred_label(self) -> bool:
        """False for PASS only."""
        return self.verdict is not Verdict.PASS

    @property
    def pred_mask(self) -> npt.NDArray[np.bool_] | None:
        """(256, 256): where the anomaly map is above `map_threshold`; None if either is missing."""
        if self.anomaly_map is None or self.map_threshold is None:
            return None
        # in float64 like the verdict: numpy would round the threshold to float32 first
        return ~(self.anomaly_map.astype(np.float64) <= self.map_threshold)


def input_size(mode: ScoringMode, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width in pixels at the network's input: of the error field, else square."""
    return mode.error_field.size if mode.error_field else (preprocessing.size, preprocessing.size)


class Predictor(abc.ABC):
    """Scores images one by one or in lists.

    Args:
        preprocessing: from an image to the network's input.
        scoring_mode: from the network's passes to a verdict.
        noise_seed: of the draws.
    """

    _session: Session  # which computes the maps; set by who makes it
    backend: str  # its name, for "auto" the one that was chosen
    precision: Precision  # of stored feature maps

    def __init__(self, preprocessing: Preprocessing, scoring_mode: ScoringMode, noise_seed: int) -> None:
        self.preprocessing, self.scoring_mode = preprocessing, scoring_mode
        self.batch_limit = MAX_BATCH  # images a call; less where the device's memory has not held as many
        # of no method of this: that would keep a model's memory until cycles are collected
        self._noise = functools.lru_cache(maxsize=8)(
            functools.partial(noise.stacked, scoring_mode.schedule, seed=noise_seed)
        )
        self._process = os.getpid()

    @property
    def threshold(self) -> Threshold | None:
        """Threshold on the score; None: no image passes."""
        return self.scoring_mode.threshold

    @property
    @abc.abstractmethod
    def model_sha256(self) -> str:
        """Hash of the weights; see `formats.model.Model.sha256`."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels at the network's input that any size policy takes."""
        return input_size(self.scoring_mode, self.preprocessing)

    @property
    @abc.abstractmethod
    def _probe(self) -> Probe:
        """What the definition computes of the probe image."""

    def self_test(self) -> float:
        """Compute the error map of the probe image (`export_metadata.probe_image`).

        It must be the definition's.

        Returns:
            Its relative RMS error.

        Raises:
            BackendError: it is beyond what the precision allows, or the backend failed.
        """
        self.require_own_process()
        probe = self._probe
        errors, _ = self.maps(probe_image(*probe.error_map.shape))
        return probe.check(errors[0, 0], f"backend {self.backend}")

    def maps(self, x: Map) -> tuple[Map, Map]:
        """Error maps and anomaly maps of network inputs of one size, in memory of their own; by way
        of tiles where the scoring mode says so.

        Args:
            x: (B, 3, H, W) float32 in [-1, 1], contiguous.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256), float32.
        """
        self.require_own_process()
        mode, size = self.scoring_mode, x.shape[2:]
        shape = tiles.shape(size, mode.tile)
        with self._memory_errors():
            z = self._noise(*shape)
            if mode.tile is None or shape == size:
                return self._session.maps(x, z)
            errors = tiles.error_maps(x, mode.tile, lambda part: self._session.maps(part, z)[0])
            return errors, np.stack([anomaly_map(each[0], mode.window)[None] for each in errors])

    def close(self) -> None:
        """Release what the backend holds on a device; nothing can be scored afterwards."""
        if close := getattr(self._session, "close", None):
            close()

    def _require_size(self, size: tuple[int, ...], name: str) -> None:
        """Raise InputError, which begins with `name`, for a (height, width) it does not take."""
        if self.scoring_mode.error_field:
            self.scoring_mode.error_field.require_size(size, name)

    def _maps(self, prepared: Sequence[images.Image]) -> tuple[Map, Map]:
        with self._memory_errors():
            pixels = np.stack([image.pixels for image in prepared])
        return self.maps(pixels)

    @contextlib.contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise OutOfMemoryError(f"backend {self.backend}: {_reason(error)}") from error

    @overload
    def predict(
        self, source: list[Any] | tuple[Any, ...], channel_order: ChannelOrder | None = None
    ) -> list[Result]: ...
    @overload
    def predict(self, source: Any, channel_order: ChannelOrder | None = None) -> Result: ...
    def predict(self, source: Any, channel_order: ChannelOrder | None = None) -> Result | list[Result]:
        """Score one image or a list of them.

        Args:
            source: a path, a PIL image, a numpy array, an `io.BytesIO` (see `images.load_image`),
                or a list of these. An `Engine` also takes float tensors (3, H, W) in [-1, 1] that
                are already at the network's size.
            channel_order: "rgb", "bgr" or "grey"; required for arrays, absent for everything else.

        Returns:
            A `Result`, or a list of them in the order given. A bad image never raises and never
            disturbs the others: its result has the verdict ERROR and the reason.

        Raises:
            BackendError: the backend failed, or this is a fork of the process in which it was made.
        """
        if isinstance(source, (list, tuple)):
            results: list[Result] = []
            for first in range(0, len(source), MAX_BATCH):
                results += self._predict_chunk(source[first : first + MAX_BATCH], channel_order)
            return results
        return self._predict_chunk([source], channel_order)[0]

    def prepare(self, source: Any, channel_order: ChannelOrder | None = None) -> images.Image:
        """The network's input, where the backend can take it; the first half of `predict`, which
        may run in threads beside the second.

        Raises:
            InputError: the image cannot be used.
        """
        image = images.load_image(source, self.preprocessing, channel_order=channel_order)
        self._require_size(image.pixels.shape[1:], _name(source))
        return image

    def score(self, prepared: Sequence[images.Image]) -> list[Result]:
        """The second half of `predict`: a result for each image of `prepare`, in their order.

        A batch for which the device has no memory goes in halves, from then on; an image has the
        same score.

        Raises:
            BackendError: the backend failed, or this is a fork of the process in which it was made.
            OutOfMemoryError: there is no memory even for one image.
        """
        self.require_own_process()
        started = time.perf_counter()
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(prepared):
            by_shape.setdefault(image.pixels.shape, []).append(index)
        maps: dict[int, tuple[Map, Map]] = {}
        for waiting in by_shape.values():
            while waiting:
                batch = waiting[: self.batch_limit]
                try:
                    errors, anomalies = self._maps([prepared[index] for index in batch])
                except OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    self.batch_limit = min(self.batch_limit, len(batch) // 2)
                    _log.warning(
                        "no memory for a batch of %d images: at most %d from now on", len(batch), self.batch_limit
                    )
                    continue
                maps.update((index, (errors[row, 0], anomalies[row, 0])) for row, index in enumerate(batch))
                del waiting[: len(batch)]
        share = (time.perf_counter() - started) * 1e3 / max(1, len(prepared))
        return [self._result(*maps[index], image.source_size, share) for index, image in enumerate(prepared)]

    def error(self, reason: str, milliseconds: float = 0.0) -> Result:
        """The result of an image that could not be scored."""
        threshold = self.threshold.value if self.threshold else None
        return Result(Verdict.ERROR, math.nan, threshold, None, None, None, milliseconds, reason)

    def warm_up(self, height: int, width: int, batches: Sequence[int] = (1, MAX_BATCH)) -> None:
        """Do now what a first call does once: compile, tune and capture for images of this size.

        Args:
            height, width: pixels at the network's input.
            batches: numbers of images in a call; the largest goes first, so that the others fit
                into its memory.
        """
        blank = np.zeros((3, height, width), np.float32)
        for count in sorted(batches, reverse=True):
            self.score([images.Image(blank, (height, width))] * count)

    def require_own_process(self) -> None:
        """Raise BackendError in a fork of the process that made this: threads were not copied."""
        if os.getpid() != self._process:
            raise BackendError(
                f"this engine was made in process {self._process} and cannot be used in a fork of it: "
                f"load the model in the process that uses it, or start that with multiprocessing's spawn"
            )

    def _predict_chunk(self, sources: Sequence[Any], channel_order: ChannelOrder | None) -> list[Result]:
        started = time.perf_counter()
        results: dict[int, Result] = {}
        prepared: dict[int, images.Image] = {}
        for index, source in enumerate(sources):
            try:
                prepared[index] = self.prepare(source, channel_order)
            except InputError as error:
                results[index] = self.error(str(error), (time.perf_counter() - started) * 1e3)
            except SprfastError:  # of the device, and of every image
                raise
            except Exception as error:  # the disk's, the decoder's, or no memory for it: of this image alone
                reason = f"{_name(source)}: {_reason(error)}"
                results[index] = self.error(reason, (time.perf_counter() - started) * 1e3)
        scored = self._score_apart(list(prepared.values()))
        share = (time.perf_counter() - started) * 1e3 / len(sources)
        results |= {
            index: dataclasses.replace(result, milliseconds=share, file=self._file(sources[index]))
            for index, result in zip(prepared, scored, strict=True)
        }
        return [results[index] for index in range(len(sources))]

    def _file(self, source: object) -> SourceFile | None:
        return SourceFile(source, self.preprocessing) if isinstance(source, (str, os.PathLike)) else None

    def _score_apart(self, prepared: list[images.Image]) -> list[Result]:
        """`score`, where an image that is too large for the memory is an ERROR beside others that
        are not.
        """
        try:
            return self.score(prepared)
        except OutOfMemoryError as error:
            if len(prepared) == 1:
                raise
            failed = error
        results = []
        for image in prepared:
            try:
                results += self.score([image])
            except OutOfMemoryError as error:
                results.append(self.error(str(error)))
        if all(result.error_map is None for result in results):
            raise failed
        return results

    def _result(self, errors: Map, anomalies: Map, size: tuple[int, int], milliseconds: float) -> Result:
        threshold = self.threshold
        score = self.scoring_mode.score(errors, anomalies)
        decided = verdict(score, threshold)
        reason = None
        if decided is Verdict.ERROR:
            reason = (
                "the model has no threshold: run `sprfast calibrate`"
                if math.isfinite(score)
                else f"the score is {score}"
            )
        return Result(
            verdict=decided,
            pred_score=score,
            threshold=threshold.value if threshold else None,
            anomaly_map=anomalies,
            error_map=errors,
            source_size=size,
            milliseconds=milliseconds,
            reason=reason,
            map_threshold=self.scoring_mode.map_value,
            passes=self.scoring_mode.schedule.draws,
        )


def _name(source: object) -> str:
    """What a reason calls an image."""
    return images.display_name(source) if isinstance(source, (str, os.PathLike)) else "image"


def _reason(error: Exception) -> str:
    """In one line what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = next(iter(str(error).splitlines()), "")
    kind = "no memory for it" if isinstance(error, MemoryError) else f"cannot be read ({type(error).__name__})"
    return f"{kind}: {said}" if said else kind
