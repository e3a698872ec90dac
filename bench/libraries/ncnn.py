"""The maps through ncnn."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast import scoring, sde
from sprfast.bench.libraries.graph import FixedNetwork, convert, quiet
from sprfast.model_file import Model


class Ncnn:
    """A network of ncnn for each sigma level, converted by pnnx: Winograd on, everything of less than 32 bits off."""

    def __init__(self, model: Model, noise: Sequence[Tensor]) -> None:
        self._levels = [
            (_ncnn(model, level.t, z[0]), sde.std(level.t), weight / (3 * level.draws), z[:, 0])
            for level, weight, z in zip(model.schedule.levels, model.schedule.weights, noise, strict=True)
        ]
        self.threads: int = self._levels[0][0].opt.num_threads

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `libraries.Runner`."""
        import ncnn

        errors = torch.zeros_like(image[:, :1])
        for network, std, scale, draws in self._levels:
            for x, z in zip(image + std * draws, draws, strict=True):
                extractor = network.create_extractor()
                extractor.input("in0", ncnn.Mat(x.numpy()))
                f = torch.from_numpy(np.array(extractor.extract("out0")[1]))
                errors += scale * (std * (f + z)).square().sum(0)
        return errors, scoring.anomaly_map(errors)


def _ncnn(model: Model, t: float, example: Tensor) -> Any:
    """An ncnn.Net: the network at time `t`, for single images of the shape of `example` (1, 3, H, W)."""
    import ncnn
    import pnnx

    with tempfile.TemporaryDirectory() as folder, quiet():
        torch.jit.trace(FixedNetwork(model, torch.tensor([t])), example).save(f"{folder}/network.pt")  # type: ignore[no-untyped-call]
        shape = ",".join(map(str, example.shape))
        convert([pnnx.EXEC_PATH, "network.pt", f"inputshape=[{shape}]", "fp16=0"], folder)
        network = ncnn.Net()
        for option in dir(network.opt):
            if option.startswith(("use_fp16", "use_bf16", "use_int8")):
                setattr(network.opt, option, False)
        network.opt.num_threads = torch.get_num_threads()
        network.load_param(f"{folder}/network.ncnn.param")
        network.load_model(f"{folder}/network.ncnn.bin")
    return network
