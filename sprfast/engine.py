"""The engine: a model file in, and for each image a verdict, a score and an anomaly map out."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast import backends, images, model_file
from sprfast.backends import Backend
from sprfast.config import Precision
from sprfast.errors import InputError
from sprfast.images import ChannelOrder
from sprfast.model_file import Model
from sprfast.noise import noise_bank
from sprfast.prediction import MAX_BATCH, Map, Predictor


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


class Engine(Predictor):
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
        super().__init__(model.preprocessing, model.threshold)
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

    def _maps(self, x: Map) -> tuple[Map, Map]:
        errors, anomaly_maps = self.maps(torch.from_numpy(x))
        return errors.numpy(), anomaly_maps.numpy()

    def _input(self, source: Any, channel_order: ChannelOrder | None) -> images.Image:
        if not isinstance(source, Tensor):
            return super()._input(source, channel_order)
        dense = source.layout == torch.strided and not source.is_meta and source.is_floating_point()
        if not dense or source.dim() != 3 or source.shape[0] != 3 or min(source.shape[1:]) < 16:
            got = f"{source.layout} {source.dtype} {tuple(source.shape)} on {source.device}"
            raise InputError(f"tensor: expected dense float (3, H, W) with H, W >= 16, got {got}")
        pixels = source.detach().to("cpu", torch.float32).contiguous().numpy()
        if not (np.abs(pixels) <= 1.0).all():
            raise InputError("tensor: expected finite values in [-1, 1]")
        return images.Image(pixels, (source.shape[1], source.shape[2]))
