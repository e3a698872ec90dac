"""Error maps by our CPU kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sprfast.backends.registry import inputs
from sprfast.backends.sessions.cpu_network import CpuUNet
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.lowering.fold import fold


class CpuBackend:
    """Maps by fused kernels in float32, on as many threads as torch is set to use when called.

    An image gives the same bits alone and in a batch, whatever the number of threads. Calls from
    several threads at once work side by side, each in a workspace of its own.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        if precision != "float32":
            raise BackendError(
                f"backend cpu: computes in float32, not {precision}; use --backend triton or cuda_graph for that"
            )
        if device.type != "cpu":
            raise BackendError(f"backend cpu: cannot run on {device}; use --device cpu, or another backend")
        self.device = device
        self._network = CpuUNet(fold(model))

    @staticmethod
    def unavailable() -> str | None:
        """None where the library of kernels is built and loads."""
        return library.unavailable()

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `backends.Backend.maps`.

        Raises:
            InputError: an image is smaller than 16 pixels on a side.
        """
        x, z = inputs(x.detach().float(), [draws.detach().float() for draws in noise], self.device)
        errors, anomaly_maps = self._network.maps(x.numpy(), z.numpy(), torch.get_num_threads())
        return torch.from_numpy(errors), torch.from_numpy(anomaly_maps)
