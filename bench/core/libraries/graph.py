"""What the libraries run, as modules with everything fixed folded into constants and as ONNX files,
and what converters need.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprfast.bench.core.heat_map import published_heat_map
from sprfast.bench.core.peers import draw_times
from sprfast.config import Schedule
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.method import scoring, sde, unet

INPUT = "input"  # name in the ONNX file


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a library is given."""

    module: nn.Module
    example: Tensor  # an input; all have its shape
    outputs: tuple[str, ...]  # names in the ONNX file


class FixedNetwork(nn.Module):
    """`ScoreUNet.scaled_score` for draws at fixed times (D,): (D, 3, H, W) to (D, 3, H, W), without
    the time-embedding network.
    """

    def __init__(self, model: Model, t: Tensor) -> None:
        super().__init__()
        self.network = unet.from_weights(model.network, model.weights)
        e = F.silu(self.network.embed(t))
        for name, module in list(self.network.named_children()):
            if isinstance(module, unet.Dense):
                setattr(self.network, name, _Constant(module(e)))
        self.network.embed = _Constant(e)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """The undivided output of the network."""
        return self.network.scaled_score(x, x)  # no module looks at the times any more


class _Constant(nn.Module):
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: Tensor) -> Tensor:
        return self.value


class ImageMaps(nn.Module):
    """Both maps of one image: (1, 3, H, W) to (1, 1, H, W) and (1, 1, 256, 256). All draws of all
    levels are one batch of D.
    """

    z: Tensor  # (D, 3, H, W)
    std: Tensor  # (D, 1, 1, 1)
    scale: Tensor  # (D, 1, 1, 1)
    rows: Tensor  # (256, H)
    columns: Tensor  # (256, W)

    def __init__(self, schedule: Schedule, noise: Sequence[Tensor], network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network  # of the draws: (D, 3, H, W) to (D, 3, H, W)
        self.register_buffer("z", torch.cat([z[:, 0] for z in noise]))
        std = [sde.std(level.t) for level in schedule.levels for _ in range(level.draws)]
        self.register_buffer("std", torch.tensor(std)[:, None, None, None])
        self.register_buffer("scale", _scales(schedule))
        for name, size in zip(("rows", "columns"), self.z.shape[2:], strict=True):
            self.register_buffer(name, scoring.smoothing_matrix(size, self.z.device))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error map and anomaly map."""
        r = self.std * (self.network(x + self.std * self.z) + self.z)
        errors = (self.scale * r.square()).sum(dim=(0, 1), keepdim=True)
        return errors, self.rows @ errors @ self.columns.mT


class UnfoldedMaps(nn.Module):
    """Both maps of one image by the published pipeline as it is written, all draws in one batch.

    With the time-embedding network, division and multiplication by std, upsampling and average
    pooling in it.
    """

    z: Tensor  # (D, 3, H, W)
    t: Tensor  # (D,)
    scale: Tensor  # (D, 1, 1, 1)

    def __init__(self, model: Model, noise: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = unet.from_weights(model.network, model.weights)
        self.register_buffer("z", torch.cat([z[:, 0] for z in noise]))
        self.register_buffer("t", draw_times(model.schedule))
        self.register_buffer("scale", _scales(model.schedule))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error map and anomaly map."""
        std = sde.std(self.t)[:, None, None, None]
        n = self.z * std
        r = self.network(x + n, self.t) * std**2 + n
        errors = (self.scale * r**2).sum(dim=(0, 1), keepdim=True)
        return errors, published_heat_map(errors)


def _scales(schedule: Schedule) -> Tensor:
    """(D, 1, 1, 1): by which every draw's squares are multiplied before all are added up."""
    shares = zip(schedule.levels, schedule.weights, strict=True)
    scales = [weight / (3 * level.draws) for level, weight in shares for _ in range(level.draws)]
    return torch.tensor(scales)[:, None, None, None]


def unfolded_graph(model: Model, noise: Sequence[Tensor]) -> Graph:
    """From image to maps in one graph: `UnfoldedMaps`."""
    maps = UnfoldedMaps(model, noise).eval()
    return Graph(maps, maps.z[:1], ("error_map", "anomaly_map"))


def maps_graph(model: Model, noise: Sequence[Tensor]) -> Graph:
    """From image to maps in one graph: `ImageMaps` around `FixedNetwork`."""
    maps = ImageMaps(model.schedule, noise, FixedNetwork(model, draw_times(model.schedule)))
    return Graph(maps.eval(), maps.z[:1], ("error_map", "anomaly_map"))


def network_graph(model: Model, times: Tensor, shape: Sequence[int]) -> Graph:
    """`FixedNetwork` alone, for draws of `shape` (D, 3, H, W)."""
    return Graph(FixedNetwork(model, times).eval(), torch.zeros(*shape), ("scaled_score",))


@contextlib.contextmanager
def exported(graph: Graph) -> Iterator[Path]:
    """The graph as an ONNX file, alone in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        with quiet():
            program = torch.onnx.export(
                graph.module,
                (graph.example,),
                input_names=[INPUT],
                output_names=graph.outputs,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(path)
        yield path


def convert(command: Sequence[str], folder: str | Path) -> None:
    """Run a converter in `folder`; BackendError with the end of what it printed where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        printed = (done.stdout + done.stderr).strip()
        raise BackendError(f"the converter {Path(command[0]).name} ended with {done.returncode}: {printed[-300:]}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries print on standard output, from C too, and without the exporters'
    warnings.
    """
    flush = ctypes.CDLL(None).fflush
    logger = logging.getLogger("torch.onnx")
    level, kept = logger.level, os.dup(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        flush(None)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(kept, 1)
            os.close(kept)
            logger.setLevel(level)
