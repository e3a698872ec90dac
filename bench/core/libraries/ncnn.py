"""The network through ncnn, and the maps around it by torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprfast.bench.core.libraries.graph import FixedNetwork, ImageMaps, convert, quiet
from sprfast.bench.core.peers import draw_times
from sprfast.formats.model import Model


class Ncnn:
    """A network of ncnn for each time, converted by pnnx: Winograd on. One draw after the other.

    Args:
        model: what is computed.
        times: (D,) of the draws.
        shape: (D, 3, H, W).
        bits: 32 turns everything of less off, 16 turns on all that ncnn has of the 16-bit format
            for this processor: float16 where it computes in it, else bfloat16.
    """

    def __init__(self, model: Model, times: Tensor, shape: Sequence[int], bits: int = 32) -> None:
        networks = {t: _ncnn(model, t, shape[1:], bits) for t in dict.fromkeys(times.tolist())}
        self._networks = [networks[t] for t in times.tolist()]
        self.threads: int = self._networks[0].opt.num_threads
        self.precision = _of_maps(self._networks[0], shape[1:])

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        import ncnn

        outputs = []
        for network, draw in zip(self._networks, x, strict=True):
            extractor = network.create_extractor()
            extractor.input("in0", ncnn.Mat(draw.numpy()))
            outputs.append(torch.from_numpy(np.array(extractor.extract("out0")[1])))
        return (torch.stack(outputs),)


class NcnnMaps:
    """`ImageMaps` around `Ncnn`."""

    def __init__(self, model: Model, noise: Sequence[Tensor], bits: int = 32) -> None:
        times = draw_times(model.schedule)
        network = Ncnn(model, times, (len(times), *noise[0].shape[2:]), bits)
        self._maps = ImageMaps(model.schedule, noise, lambda x: network(x)[0])
        self.threads, self.precision = network.threads, network.precision

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        maps: tuple[Tensor, Tensor] = self._maps(x)
        return maps


def _ncnn(model: Model, t: float, shape: Sequence[int], bits: int) -> Any:
    """An ncnn.Net: the network at time `t`, for single images of `shape` (3, H, W)."""
    import ncnn
    import pnnx

    with tempfile.TemporaryDirectory() as folder, quiet():
        example = torch.zeros(1, *shape)
        torch.jit.trace(FixedNetwork(model, torch.tensor([t])), example).save(f"{folder}/network.pt")  # type: ignore[no-untyped-call]
        given = ",".join(map(str, example.shape))
        convert([pnnx.EXEC_PATH, "network.pt", f"inputshape=[{given}]", "fp16=0"], folder)
        network = ncnn.Net()
        sixteen = "use_fp16" if ncnn.cpu_support_arm_asimdhp() else "use_bf16"
        for option in dir(network.opt):
            if option.startswith(("use_fp16", "use_bf16", "use_int8")):
                setattr(network.opt, option, bits == 16 and option.startswith(sixteen))
        network.opt.num_threads = torch.get_num_threads()
        network.load_param(f"{folder}/network.ncnn.param")
        network.load_model(f"{folder}/network.ncnn.bin")
    return network


def _of_maps(network: Any, shape: Sequence[int]) -> str:
    """The precision in which an ncnn.Net keeps the maps between its convolutions."""
    import ncnn

    extractor = network.create_extractor()
    extractor.input("in0", ncnn.Mat(np.zeros(shape, np.float32)))
    convolutions = [layer for layer in network.layers() if layer.type == "Convolution"]
    _, stored = extractor.extract(convolutions[1].tops[0], 1)  # as it is, not converted to float32
    if stored.elembits() == 32:
        return "float32"
    return "bfloat16" if network.opt.use_bf16_storage else "float16"
