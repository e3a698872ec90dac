"""The engine: a model file in, and for each image a verdict, a score and an anomaly map out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast.backends import registry as backends
from sprfast.backends.registry import Backend
from sprfast.config import Precision
from sprfast.data import images
from sprfast.data.images import ChannelOrder
from sprfast.engine.predictor import Map, Predictor
from sprfast.errors import DeviceLostError, InputError, OutOfMemoryError
from sprfast.formats import model as model_file
from sprfast.formats.export_metadata import Probe, probe_image, tolerance
from sprfast.formats.model import Model
from sprfast.lowering import probe as probes
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import PUBLISHED


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    device: str | None = None,
    precision: Precision = "float32",
    setting: str = PUBLISHED,
) -> Engine:
    """An engine for the model file at `path`.

    Args:
        backend: "auto" (see `backends.choose`) or one of `backends.NAMES`.
        device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is one.
        precision: see `backends.create`; a threshold holds for the precision it was calibrated in.
        setting: the name of one that the model file holds.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        InputError: the file has no setting of this name.
        BackendError: the backend or device cannot run here.
    """
    return Engine(model_file.load(path).using(setting), backend, device, precision)


class Engine(Predictor):
    """Scores images with one model on one backend; safe to call from several threads.

    Args:
        model: what is computed.
        backend: "auto", one of `backends.NAMES`, or an object that computes this model's maps, with
            a device of its own.
        device: as in `load`, for a backend given by name.
        precision: as in `load`, for a backend given by name.

    Raises:
        BackendError: the backend or device cannot run here.
    """

    def __init__(
        self,
        model: Model,
        backend: str | Backend = "auto",
        device: str | torch.device | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(model.preprocessing, model.scoring_mode)
        self.model = model
        self._precision = precision
        if isinstance(backend, str):
            self._name = backends.choose(backend, device, precision)
            self._backend = backends.create(self._name, model, device, precision)
        else:
            self._name, self._backend = type(backend).__name__, backend
        self._noise = functools.lru_cache(maxsize=8)(self._noise_bank)
        self._expected: Probe | None = None  # by the definition, from the first self-test on
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def backend(self) -> str:
        """Name of the backend in use, for "auto" the one that was chosen; of an object, its
        class.
        """
        return self._name

    @property
    def device(self) -> torch.device:
        """Where the backend runs."""
        return self._backend.device

    @property
    def precision(self) -> Precision:
        """Of stored feature maps."""
        return self._precision

    @property
    def model_sha256(self) -> str:
        """As `Model.sha256`."""
        return self.model.sha256

    def self_test(self) -> float:
        """As `Predictor.self_test`, at the model's own size; the first one computes the definition
        too, later ones compare with that.
        """
        self.require_own_process()
        if self._expected is None:
            self._expected = probes.probe(self.model, *self.input_size, tolerance(self.precision, None))
        errors, _ = self.maps(torch.from_numpy(probe_image(*self.input_size)))
        return self._expected.check(errors[0, 0].numpy(), f"backend {self.backend}")

    def prepare(self, source: Any, channel_order: ChannelOrder | None = None) -> images.Image:
        """As `Predictor.prepare`; for a CUDA device the copy to it is under way when this
        returns.
        """
        if isinstance(source, Tensor):
            image = self._image(source)
            self.require_field_size(image, "tensor")
        else:
            image = super().prepare(source, channel_order)
        if self._copies is None:
            return image
        with _device_errors(self.backend):
            return _OnDevice.copied(image, self.device, self._copies)

    @torch.inference_mode()
    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps of network inputs of one size.

        Args:
            x: (B, 3, H, W) float32 in [-1, 1], on any device.

        Returns:
            (B, 1, H, W) and (B, 1, 256, 256), float32 on the CPU.
        """
        self.require_own_process()
        with _device_errors(self.backend):
            errors, anomaly_maps = self._backend.maps(x, self._noise(x.shape[2], x.shape[3]))
            return errors.cpu(), anomaly_maps.cpu()

    def _noise_bank(self, height: int, width: int) -> list[Tensor]:
        return [z.to(self.device) for z in noise_bank(self.model.schedule, height, width, self.model.noise_seed)]

    def _maps(self, prepared: Sequence[images.Image]) -> tuple[Map, Map]:
        on_device = [image for image in prepared if isinstance(image, _OnDevice)]
        if on_device:
            with _device_errors(self.backend):
                x = torch.stack([image.when_copied() for image in on_device])
        else:
            x = torch.from_numpy(np.stack([image.pixels for image in prepared]))
        errors, anomaly_maps = self.maps(x)
        return errors.numpy(), anomaly_maps.numpy()

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
    """A network's input whose copy to a CUDA device was queued on a stream of its own, beside what
    the device computes.
    """

    tensor: Tensor  # (3, H, W) on the device
    done: torch.cuda.Event

    @classmethod
    def copied(cls, image: images.Image, device: torch.device, stream: torch.cuda.Stream) -> _OnDevice:
        """Queue the copy, from page-locked memory, without which it would not run beside
        anything.
        """
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


@contextlib.contextmanager
def _device_errors(backend: str) -> Iterator[None]:
    """PyTorch's errors of memory and device in our words; the allocator's cache is given back, for
    another try.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemoryError(f"backend {backend}: {_first_line(error)}") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"backend {backend}: {_first_line(error) or 'no memory'}") from error
    except RuntimeError as error:  # AcceleratorError is one
        line = _first_line(error)
        if "can't allocate memory" in line:
            raise OutOfMemoryError(f"backend {backend}: {line}") from error
        if "CUDA error" in line:
            raise DeviceLostError(
                f"backend {backend}: {line}; the device cannot be used by this process any more, start a new one"
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
