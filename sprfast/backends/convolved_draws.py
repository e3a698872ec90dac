"""Draws that all images share, kept with what the first convolution makes of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sprfast.backends.tensors import Held, draws_of, shared

if TYPE_CHECKING:
    from sprfast.backends.triton import FusedUNet

KEPT = 8  # the last ones, of several sizes of images


class ConvolvedDraws:
    """The draws of calls with `FusedUNet.convolve_noise` of them, kept for the next call with the
    same tensors. Used by one thread, on the streams of its callers.
    """

    def __init__(self, network: FusedUNet, device: torch.device) -> None:
        self._network, self._device = network, device
        self._kept: collections.deque[_Kept] = collections.deque(maxlen=KEPT)

    def of(self, noise: Sequence[Tensor], images: int) -> tuple[Tensor, Tensor]:
        """z and noise as `FusedUNet.result` takes them, for use on the current stream.

        Args:
            noise: of a call, as `registry.Backend.maps` takes it.
            images: of the call.
        """
        for kept in self._kept:
            if kept.held.are(noise):
                return kept.on_the_stream(self._device)
        z = draws_of(noise, images, self._device)
        convolved = self._network.empty_noise(z)
        self._network.convolve_noise(z, convolved)
        if shared(noise):
            ready = torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None
            self._kept.append(_Kept(Held(noise), z, convolved, ready))
        return z, convolved


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """Draws, and the event on the stream that convolved them."""

    held: Held
    z: Tensor
    convolved: Tensor
    ready: torch.cuda.Event | None  # None on a CPU

    def on_the_stream(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both, once the current stream has waited for them; no longer kept, they stay until it has
        read them.
        """
        if self.ready is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self.ready)
            self.z.record_stream(stream)
            self.convolved.record_stream(stream)
        return self.z, self.convolved
