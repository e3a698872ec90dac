"""Adapters between tensors and arrays: a session as a torch backend, and the other way round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sprfast.backends.registry import Backend
from sprfast.backends.sessions.session import Floats, Session
from sprfast.config import Schedule
from sprfast.errors import DeviceLostError, OutOfMemoryError
from sprfast.method.anomaly_map import MAP_SIZE

KEPT = 8  # sizes of images whose draws stay on the device


def inputs(x: Tensor, noise: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), and all levels' draws as one tensor (D, 1 or B, 3, H, W); contiguous."""
    return x.to(device).contiguous(), draws_of(noise, x.shape[0], device)


def draws_of(noise: Sequence[Tensor], images: int, device: torch.device) -> Tensor:
    """The second part of `inputs`."""
    draws = [z if shared(noise) else z.expand(-1, images, -1, -1, -1) for z in noise]
    z = draws[0] if len(draws) == 1 else torch.cat(draws)
    return z.to(device).contiguous()


def shared(noise: Sequence[Tensor]) -> bool:
    """Whether all images have the same draws."""
    return all(z.shape[1] == 1 for z in noise)


def parted(result: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A call's result as its error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256).

    Anomaly maps come first, so that the first error map is aligned as they are.

    Args:
        result: (B·(256² + H·W),) float32.
    """
    images = result.numel() // (MAP_SIZE**2 + height * width)
    size = images * MAP_SIZE**2
    return result[size:].view(images, 1, height, width), result[:size].view(images, 1, MAP_SIZE, MAP_SIZE)


class Held:
    """Tensors of a call, kept so that a later call's can be known for the same, not written to
    since. A write to an inference tensor is not noticed.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [(each, _version(each)) for each in tensors]

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors."""
        return len(tensors) == len(self._tensors) and all(
            mine is each and version == _version(each)
            for (mine, version), each in zip(self._tensors, tensors, strict=True)
        )


def _version(x: Tensor) -> int | None:
    """How often `x` was written to, where torch counts that."""
    return None if x.is_inference() else int(x._version)


class SessionBackend:
    """A session as a `registry.Backend`; images that have draws of their own go one by one."""

    def __init__(self, session: Session, device: torch.device) -> None:
        self.session, self.device = session, device

    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps on the device; see `registry.Backend`."""
        x, z = inputs(x.detach().float(), [draws.detach().float() for draws in noise], torch.device("cpu"))
        images, draws = x.numpy(), z.numpy()
        if z.shape[1] == 1:
            found = self.session.maps(images, draws[:, 0])
        else:
            each = [self.session.maps(images[i : i + 1], np.ascontiguousarray(draws[:, i])) for i in range(len(images))]
            found = np.concatenate([one[0] for one in each]), np.concatenate([one[1] for one in each])
        return torch.from_numpy(found[0]).to(self.device), torch.from_numpy(found[1]).to(self.device)


class TorchSession:
    """A torch backend as a `session.Session`, which takes images on its device too.

    Args:
        backend: what computes.
        name: for messages.
        schedule: whose draws it is given.
    """

    def __init__(self, backend: Backend, name: str, schedule: Schedule) -> None:
        self.backend, self._name = backend, name
        self._counts = [level.draws for level in schedule.levels]
        # replaced, never changed: threads need no lock
        self._noise: tuple[tuple[Floats, list[Tensor]], ...] = ()

    @torch.inference_mode()
    def maps(self, x: Floats | Tensor, z: Floats) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps; see `session.Session`.

        The draws go to the device once, so that `z` must not be written to.
        """
        with device_errors(self._name):
            images = x if isinstance(x, Tensor) else torch.from_numpy(x)
            errors, anomaly_maps = self.backend.maps(images, self._draws(z))
            return errors.cpu().numpy(), anomaly_maps.cpu().numpy()

    def _draws(self, z: Floats) -> list[Tensor]:
        """One tensor (K, 1, 3, H, W) a level on the device."""
        for array, tensors in self._noise:
            if array is z:
                return tensors
        levels = torch.split(torch.from_numpy(z[:, None]), self._counts)
        tensors = [level.to(self.backend.device) for level in levels]
        self._noise = (*self._noise[-KEPT + 1 :], (z, tensors))
        return tensors


@contextlib.contextmanager
def device_errors(backend: str) -> Iterator[None]:
    """Turn PyTorch's errors of memory and device into ours.

    Where memory ran out, the allocator's cache is given back, for another try.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemoryError(f"backend {backend}: {_first_line(error)}") from error
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
