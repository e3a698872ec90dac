"""The engine: a model file in, and for each image a verdict, a score and an anomaly map out."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from sprfast import backends, images, model_file
from sprfast.backends import Backend
from sprfast.config import Precision
from sprfast.errors import InputError
from sprfast.images import ChannelOrder
from sprfast.model_file import Model
from sprfast.noise import noise_bank
from sprfast.threshold import Verdict, verdict

Map = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | PIL.Image.Image | npt.NDArray[Any] | Tensor
MAX_BATCH = 16  # images a call of the backend


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What the engine says of one image. An image that could not be scored has the verdict ERROR and a reason."""

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


def load(
    path: str | os.PathLike[str], backend: str = "auto", device: str | None = None, precision: Precision = "float32"
) -> Engine:
    """An engine for the model file at `path`.

    Args:
        backend: "auto" (see `backends.choose`) or one of `backends.NAMES`.
        device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is one.
        precision: see `backends.create`; a threshold holds for the precision it was calibrated in.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        BackendError: the backend or device cannot run here.
    """
    return Engine(model_file.load(path), backend, device, precision)


class Engine:
    """Scores images with one model on one backend; safe to call from several threads.

    Args:
        model: what is computed.
        backend: "auto", one of `backends.NAMES`, or an object that computes this model's maps, with a device of its own.
        device: as in `load`, for a backend given by name.
        precision: as in `load`, for a backend given by name.

    Raises:
        BackendError: the backend or device cannot run here.
    """

    def __init__(
        self, model: Model, backend: str | Backend = "auto", device: str | torch.device | None = None, precision: Precision = "float32"
    ) -> None:
        self.model = model
        if isinstance(backend, str):
            self._name = backends.choose(backend, device, precision)
            self._backend = backends.create(self._name, model, device, precision)
        else:
            self._name, self._backend = type(backend).__name__, backend
        self._noise = functools.lru_cache(maxsize=8)(self._noise_bank)

    @property
    def backend(self) -> str:
        """Name of the backend in use, for "auto" the one that was chosen; of an object, its class."""
        return self._name

    @property
    def device(self) -> torch.device:
        """Where the backend runs."""
        return self._backend.device

    def warm_up(self, height: int, width: int, batches: Sequence[int] = (1, MAX_BATCH)) -> None:
        """Do now what a first call does once: compile, tune and capture for images of this size.

        Args:
            height, width: pixels at the network's input.
            batches: numbers of images in a call; the largest goes first, so that the others fit into its memory.
        """
        for count in sorted(batches, reverse=True):
            self.maps(torch.zeros(count, 3, height, width))

    @overload
    def predict(self, source: list[Any] | tuple[Any, ...], channel_order: ChannelOrder | None = None) -> list[Result]: ...
    @overload
    def predict(self, source: Source, channel_order: ChannelOrder | None = None) -> Result: ...
    def predict(self, source: Any, channel_order: ChannelOrder | None = None) -> Result | list[Result]:
        """Score one image or a list of them.

        Args:
            source: a path, a PIL image, a numpy array (see `images.load_image`), a float tensor
                (3, H, W) in [-1, 1] that is already at the network's size, or a list of these.
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

    @torch.inference_mode()
    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps of network inputs of one size.

        Args:
            x: (B, 3, H, W) float32 in [-1, 1], on any device.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256), float32 on the CPU.
        """
        errors, anomaly_maps = self._backend.maps(x, self._noise(x.shape[2], x.shape[3]))
        return errors.cpu(), anomaly_maps.cpu()

    def _noise_bank(self, height: int, width: int) -> list[Tensor]:
        return [z.to(self.device) for z in noise_bank(self.model.schedule, height, width, self.model.noise_seed)]

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
            errors, anomalies = self.maps(torch.from_numpy(np.stack([inputs[index].pixels for index in indices])))
            share = (time.perf_counter() - started) * 1e3 / len(sources)
            for row, index in enumerate(indices):
                results[index] = self._result(errors[row, 0].numpy(), anomalies[row, 0].numpy(), inputs[index].source_size, share)
        return [results[index] for index in range(len(sources))]

    def _input(self, source: Any, channel_order: ChannelOrder | None) -> images.Image:
        if not isinstance(source, Tensor):
            return images.load_image(source, self.model.preprocessing, channel_order=channel_order)
        dense = source.layout == torch.strided and not source.is_meta and source.is_floating_point()
        if not dense or source.dim() != 3 or source.shape[0] != 3 or min(source.shape[1:]) < 16:
            got = f"{source.layout} {source.dtype} {tuple(source.shape)} on {source.device}"
            raise InputError(f"tensor: expected dense float (3, H, W) with H, W >= 16, got {got}")
        pixels = source.detach().to("cpu", torch.float32).contiguous().numpy()
        if not (np.abs(pixels) <= 1.0).all():
            raise InputError("tensor: expected finite values in [-1, 1]")
        return images.Image(pixels, (source.shape[1], source.shape[2]))

    def _result(self, errors: Map, anomalies: Map, size: tuple[int, int], milliseconds: float) -> Result:
        threshold = self.model.threshold
        score = float(anomalies.max())
        decided = verdict(score, threshold)
        reason = None
        if decided is Verdict.ERROR:
            reason = "the model has no threshold: run `sprfast calibrate`" if math.isfinite(score) else f"the score is {score}"
        return Result(decided, score, threshold.value if threshold else None, anomalies, errors, size, milliseconds, reason)

    def _error(self, reason: str, milliseconds: float) -> Result:
        threshold = self.model.threshold.value if self.model.threshold else None
        return Result(Verdict.ERROR, math.nan, threshold, None, None, None, milliseconds, reason)
