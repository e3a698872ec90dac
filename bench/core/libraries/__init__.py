"""What else a bench compares: the same network through torch.compile, onnxruntime, OpenVINO, ncnn
and MNN, in float32 and in the fastest precision that each of them has for this processor.

Each library gets what a competent user gives it: the time embedding folded into constants, an image
with all its draws as one batch (ncnn knows no batches: one draw after the other), as many threads
as torch uses. On a CPU a batch of images is worked off image by image. Everything is converted
while a candidate is built, and the files of the conversion are deleted again.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sprfast.bench.core import peers
from sprfast.bench.core.libraries.graph import Graph, maps_graph, network_graph, unfolded_graph
from sprfast.bench.core.libraries.mnn import ALL_TILES, SMALL_TILES, Mnn
from sprfast.bench.core.libraries.ncnn import Ncnn, NcnnMaps
from sprfast.bench.core.libraries.onnxruntime import OnnxRuntime
from sprfast.bench.core.libraries.openvino import OpenVino
from sprfast.bench.core.libraries.torch_compile import compiled_maps, compiled_network, compiler_missing
from sprfast.bench.core.peers import Candidate, Maps, Network
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model

# What is imported for each library, beside torch.
_MODULES: dict[str, tuple[str, ...]] = {
    "onnx_unfolded": ("onnx", "onnxscript", "onnxruntime"),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    **dict.fromkeys(("openvino", "openvino_auto"), ("onnx", "onnxscript", "openvino")),
    "openvino_int8": ("onnx", "onnxscript", "openvino", "nncf"),
    **dict.fromkeys(("ncnn", "ncnn_16bit"), ("ncnn", "pnnx")),
    **dict.fromkeys(("mnn", "mnn_normal", "mnn_low"), ("onnx", "onnxscript", "MNN")),
}
# of MNN as it comes: above float32's, so that its speed is shown with the error that it costs
_ALL_TILES_TOLERANCE = 3e-3


class Runner(Protocol):
    """A graph in one library, for inputs of one shape, with the threads that torch has when it is
    made.
    """

    threads: int  # as the library itself tells

    @property
    def precision(self) -> str | None:
        """Of the convolutions, as the library tells of what it runs; None: it does not."""

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Float32 to float32: (1, 3, H, W) to the error map (1, 1, H, W) and the anomaly map (1, 1,
        256, 256), or the D draws of an image (D, 3, H, W) to the network's undivided output of the
        same shape.
        """
        ...


def unavailable(name: str, device: torch.device) -> str | None:
    """None where the library can run on `device`, else one sentence: why not, and what to install
    where that helps.
    """
    if name == "torch_compile":
        return None if device.type == "cuda" else compiler_missing()
    if device.type != "cpu":
        return f"{name} is measured on the CPU only, not on {device}"
    missing = [module for module in _MODULES[name] if importlib.util.find_spec(module) is None]
    advice = f"{name} needs {', '.join(missing)}, not installed here: run pip install 'sprfast[peers]'"
    return advice if missing else None


def _candidate(
    name: str,
    description: str,
    maps_runner: Callable[[Model, Sequence[Tensor]], Runner],
    network_runner: Callable[[Model, Tensor, Sequence[int]], Runner],
    precision: str = "float32",
) -> Candidate:
    """A candidate whose `build` and `network` raise BackendError with the reason where the library
    cannot run.

    Args:
        maps_runner: given a model and its noise.
        network_runner: given a model, the times (D,) of the draws and the shape (D, 3, H, W). As
            the shape is known with the first images, that call converts the network.
        precision: that is asked for.
    """
    told: list[str | None] = [None]  # by the runner that was made last

    def noted(run: Runner) -> Runner:
        told[0] = run.precision
        return run

    def build(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
        _require(name, device)
        run = noted(maps_runner(model, noise))

        @torch.inference_mode()
        def maps(x: Tensor) -> tuple[Tensor, Tensor]:
            if device.type == "cuda":
                errors, anomaly_maps = run(x)
            else:
                errors, anomaly_maps = map(torch.cat, zip(*(run(image[None]) for image in x), strict=True))
            return errors, anomaly_maps

        return maps

    def network(model: Model, times: Tensor, device: torch.device) -> Network:
        _require(name, device)
        runner = functools.cache(lambda shape: noted(network_runner(model, times.to(device), shape)))

        def scores(x: Tensor) -> Tensor:
            run = runner(x.shape[1:])
            with torch.inference_mode():
                if device.type == "cuda":
                    return run(x.flatten(0, 1))[0].view_as(x)
                return torch.stack([run(draws)[0] for draws in x])

        return scores

    return Candidate(name, description, build, precision, network=network, ran=lambda: told[0])


def _of_graph(
    name: str,
    description: str,
    runner: Callable[[Graph], Runner],
    graph: Callable[[Model, Sequence[Tensor]], Graph] = maps_graph,
    precision: str = "float32",
) -> Candidate:
    return _candidate(
        name,
        f"{description}, an image with all its draws in one graph",
        lambda model, noise: runner(graph(model, noise)),
        lambda model, times, shape: runner(network_graph(model, times, shape)),
        precision,
    )


def _int8(calibration: Tensor) -> Candidate:
    return _of_graph(
        "openvino_int8",
        "OpenVINO, CPU plugin, latency hint, quantized after training by NNCF",
        functools.partial(OpenVino, hint=None, calibration=calibration),
        precision="int8",
    )


def _require(name: str, device: torch.device) -> None:
    reason = unavailable(name, device)
    if reason:
        raise BackendError(reason)


CANDIDATES = (
    _candidate(
        "torch_compile",
        "torch.compile of the plain definition in channels-last, default mode",
        compiled_maps,
        compiled_network,
    ),
    _of_graph(
        "onnx_unfolded", "onnxruntime, the published pipeline exported as it is written", OnnxRuntime, unfolded_graph
    ),
    _of_graph("onnxruntime", "onnxruntime, CPU provider", OnnxRuntime),
    _of_graph("openvino", "OpenVINO, CPU plugin, latency hint", OpenVino),
    _candidate("ncnn", "ncnn, Winograd convolutions, one draw after the other", NcnnMaps, Ncnn),
    _of_graph(
        "mnn",
        "MNN, high precision without the largest Winograd tiles",
        functools.partial(Mnn, precision="high", tiles=SMALL_TILES),
    ),
    dataclasses.replace(
        _of_graph(
            "mnn_normal",
            "MNN as it comes: normal precision, all Winograd tiles",
            functools.partial(Mnn, precision="normal", tiles=ALL_TILES),
        ),
        own_tolerance=_ALL_TILES_TOLERANCE,
    ),
    _of_graph(
        "mnn_low",
        "MNN, low precision, all Winograd tiles",
        functools.partial(Mnn, precision="low", tiles=ALL_TILES),
        precision="float16",
    ),
    _candidate(
        "ncnn_16bit",
        "ncnn with its 16-bit options, Winograd convolutions, one draw after the other",
        functools.partial(NcnnMaps, bits=16),
        functools.partial(Ncnn, bits=16),
        "bfloat16",
    ),
    _of_graph(
        "openvino_auto",
        "OpenVINO as it comes: the precision that its CPU plugin chooses, latency hint",
        functools.partial(OpenVino, hint=None),
        precision="bfloat16",
    ),
    dataclasses.replace(_int8(torch.empty(0)), calibrated=_int8),
)


def candidates(device: torch.device) -> tuple[Candidate, ...]:
    """`CANDIDATES`; torch.compile runs with PyTorch's defaults, which on CUDA are TensorFloat-32
    convolutions.
    """
    if device.type != "cuda":
        return CANDIDATES
    return tuple(
        dataclasses.replace(each, precision="tf32") if each.name == "torch_compile" else each for each in CANDIDATES
    )


def chosen(device: torch.device, names: Sequence[str] | None = None) -> tuple[Candidate, ...]:
    """All that `sprfast bench` knows on this device, or of that what has one of these names.

    Raises:
        InputError: a name is not known.
    """
    known = {each.name: each for each in (*peers.candidates(device), *candidates(device))}
    for name in names or ():
        if name not in known:
            raise InputError(f"--candidates: {name!r} is not known, choose from {', '.join(known)}")
    return tuple(each for name, each in known.items() if names is None or name in names)
