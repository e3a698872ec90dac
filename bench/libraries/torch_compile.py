"""The maps through torch.compile."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sprfast import scoring, unet
from sprfast.model_file import Model


class TorchCompile:
    """The plain definition in channels-last, compiled in the default mode when a shape is first seen; on the device of the noise.

    Unlike the other libraries it takes whole batches too: on a CUDA device they are what it is given.
    """

    def __init__(self, model: Model, noise: Sequence[Tensor]) -> None:
        self._device = noise[0].device
        network = unet.from_weights(model.network, {name: value.to(self._device) for name, value in model.weights.items()})
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def compute(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            errors = scoring.error_map(network, x, model.schedule, noise)
            return errors, rows @ errors @ columns.mT

        torch.compiler.reset()  # it compiles one function for a limited number of models only
        self._run = torch.compile(compute, dynamic=False, fullgraph=True)
        self.threads = torch.get_num_threads()

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `libraries.Runner`."""
        rows, columns = (scoring.smoothing_matrix(size, self._device) for size in image.shape[2:])
        return self._run(image, rows, columns)


def compiler_missing() -> str | None:
    """None where TorchInductor can compile for the CPU, else what to install."""
    compiler = os.environ.get("CXX", "g++")  # its own choice on Linux
    if shutil.which(compiler) is None:
        return f"torch_compile needs the C++ compiler {compiler}, not installed here: install it, or name another one in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch_compile needs Python.h, not installed here: install the development files of this Python"
    return None
