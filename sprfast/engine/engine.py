"""The engine of a model file: for each image a verdict, a score and an anomaly map."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast.backends import registry as backends
from sprfast.backends.registry import Backend
from sprfast.backends.sessions.session import TensorRtOptions
from sprfast.backends.tensors import TorchSession, device_errors
from sprfast.config import Precision
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import Map, Predictor
from sprfast.errors import InputError
from sprfast.formats.export_metadata import Probe, tolerance
from sprfast.formats.model import Model
from sprfast.lowering.probe import probe
from sprfast.method import tiles
from sprfast.system import devices


class Engine(Predictor):
    """Scores images with one model on one backend; safe to call from several threads.

    Args:
        model: what is computed.
        backend: "auto", one of `registry.NAMES`, or an object that computes this model's maps, with
            a device of its own.
        device, precision, tensorrt: for a backend given by name; see `load`.

    Raises:
        BackendError: the backend or device cannot run here.
    """

    def __init__(
        self,
        model: Model,
        backend: str | Backend = "auto",
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        tensorrt: TensorRtOptions | None = None,
    ) -> None:
        super().__init__(model.preprocessing, model.scoring_mode, model.noise_seed)
        self.model, self.precision = model, precision
        if isinstance(backend, str):
            self.backend = backends.choose(backend, device, precision)
            self._session = backends.open_session(self.backend, model, device, precision, tensorrt)
            self.device = devices.resolve(device)
        else:
            self.backend, self.device = type(backend).__name__, backend.device
            self._session = TorchSession(backend, self.backend, model.schedule)
        # tiles are cut on the host
        on_device = (
            isinstance(self._session, TorchSession) and self.device.type == "cuda" and not model.scoring_mode.tile
        )
        self._copies = torch.cuda.Stream(self.device) if on_device else None  # type: ignore[no-untyped-call]

    @functools.cached_property
    def model_sha256(self) -> str:
        """Hash of the weights; see `Model.sha256`."""
        return self.model.sha256

    @functools.cached_property
    def _probe(self) -> Probe:
        """The definition's error map of the probe image, at the model's own size."""
        size = tiles.shape(self.input_size, self.scoring_mode.tile)
        return probe(self.model, *size, tolerance(self.precision, None))

    def prepare(self, source: Any, channel_order: ChannelOrder | None = None) -> images.Image:
        """The network's input, of anything that `Predictor.prepare` takes or of a tensor.

        For a torch backend on a CUDA device the copy to it is under way when this returns.
        """
        if isinstance(source, Tensor):
            image = self._image(source)
            self._require_size(image.pixels.shape[1:], "tensor")
        else:
            image = super().prepare(source, channel_order)
        if self._copies is None:
            return image
        with device_errors(self.backend):
            return _OnDevice.copied(image, self.device, self._copies)

    def _maps(self, prepared: Sequence[images.Image]) -> tuple[Map, Map]:
        on_device = [image for image in prepared if isinstance(image, _OnDevice)]
        if not on_device:
            return super()._maps(prepared)
        with device_errors(self.backend):
            x = torch.stack([image.when_copied() for image in on_device])
        return self.maps(x)  # type: ignore[arg-type]  # which a `TorchSession` takes too

    def _image(self, tensor: Tensor) -> images.Image:
        dense = tensor.layout == torch.strided and not tensor.is_meta and tensor.is_floating_point()
        if not dense or tensor.dim() != 3 or tensor.shape[0] != 3 or min(tensor.shape[1:]) < 16:
            got = f"{tensor.layout} {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise InputError(f"tensor: expected dense float (3, H, W) with H, W >= 16, got {got}")
        pixels = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        if not (np.abs(pixels) <= 1.0).all():
            raise InputError("tensor: expected finite values in [-1, 1]")
        return images.Image(pixels, (tensor.shape[1], tensor.shape[2]))


@dataclasses.dataclass(frozen=True, eq=False)
class _OnDevice(images.Image):
    """A network's input whose copy to a CUDA device runs beside what the device computes."""

    tensor: Tensor  # (3, H, W) on the device
    done: torch.cuda.Event

    @classmethod
    def copied(cls, image: images.Image, device: torch.device, stream: torch.cuda.Stream) -> _OnDevice:
        """Queue the copy, from page-locked memory, so that it runs beside other work."""
        with torch.cuda.stream(stream):
            pinned = torch.from_numpy(image.pixels).pin_memory()
            tensor = pinned.to(device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        return cls(image.pixels, image.source_size, tensor, done)

    def when_copied(self) -> Tensor:
        """The tensor, for use on the current stream."""
        stream = torch.cuda.current_stream(self.tensor.device)
        stream.wait_event(self.done)
        self.tensor.record_stream(stream)
        return self.tensor
