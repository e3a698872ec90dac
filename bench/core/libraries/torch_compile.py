"""The maps and the network through torch.compile."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sprfast.bench.core.peers import network_of
from sprfast.formats.model import Model
from sprfast.method import scoring, unet


class TorchCompile:
    """What `compute` makes of the network in channels-last and an input, compiled in the default
    mode when a shape is first seen.

    Unlike the other libraries it takes the inputs of several images too: on a CUDA device they are
    what it is given.
    """

    precision = None

    def __init__(
        self, model: Model, device: torch.device, compute: Callable[[unet.ScoreUNet, Tensor], tuple[Tensor, ...]]
    ) -> None:
        network = network_of(model, device, torch.channels_last)
        torch.compiler.reset()  # it compiles one function for a limited number of models only
        self._run = torch.compile(lambda x: compute(network, x), dynamic=False, fullgraph=True)
        self.threads = torch.get_num_threads()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        return self._run(x)


def compiled_maps(model: Model, noise: Sequence[Tensor]) -> TorchCompile:
    """The plain definition of both maps, on the device of the noise."""
    device = noise[0].device
    rows, columns = (scoring.smoothing_matrix(size, device) for size in noise[0].shape[3:])

    def compute(network: unet.ScoreUNet, x: Tensor) -> tuple[Tensor, Tensor]:
        errors = scoring.error_map(network, x, model.schedule, noise)
        return errors, rows @ errors @ columns.mT

    return TorchCompile(model, device, compute)


def compiled_network(model: Model, times: Tensor, shape: Sequence[int]) -> TorchCompile:
    """`ScoreUNet.scaled_score` with the time embedding, on the device of the times; `shape` is not
    needed before the first call.
    """

    def compute(network: unet.ScoreUNet, x: Tensor) -> tuple[Tensor]:
        return (network.scaled_score(x, times.repeat(x.shape[0] // times.shape[0])),)

    return TorchCompile(model, times.device, compute)


def compiler_missing() -> str | None:
    """None where TorchInductor can compile for the CPU, else what to install."""
    compiler = os.environ.get("CXX", "g++")  # its own choice on Linux
    if shutil.which(compiler) is None:
        advice = "install it, or name another one in CXX"
        return f"torch_compile needs the C++ compiler {compiler}, not installed here: {advice}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch_compile needs Python.h, not installed here: install the development files of this Python"
    return None
