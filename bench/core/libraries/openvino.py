"""A graph through OpenVINO."""

from __future__ import annotations

import collections
import logging
import sys
from typing import Any

import torch
from torch import Tensor

from sprfast.bench.core.libraries.graph import Graph, exported, quiet
from sprfast.errors import BackendError

_PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}


class OpenVino:
    """An infer request of OpenVINO's CPU plugin for latency.

    Args:
        graph: what to run.
        hint: of the inference precision, such as "f32"; None: the plugin's own, which is bfloat16
            or float16 where the processor has it.
        calibration: inputs of N calls, (N, ..., 3, H, W), from which NNCF quantizes to int8; None:
            it does not.

    Raises:
        BackendError: the calibration images have another size than the graph's.
    """

    def __init__(self, graph: Graph, hint: str | None = "f32", calibration: Tensor | None = None) -> None:
        import openvino

        properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if hint is not None:
            properties["INFERENCE_PRECISION_HINT"] = hint
        core = openvino.Core()
        with exported(graph) as path:
            model = core.read_model(path)
            if calibration is not None:
                given, needed = (tuple(each.shape[-3:]) for each in (calibration, graph.example))
                if given != needed:
                    raise BackendError(f"int8 is calibrated on images of the bench's size {needed}, not of {given}")
                model = _quantized(model, calibration.view(-1, *graph.example.shape))
            compiled = core.compile_model(model, "CPU", properties)
        self._request = compiled.create_infer_request()
        self.threads: int = compiled.get_property("INFERENCE_NUM_THREADS")
        self.precision = _of_convolutions(compiled)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, see `libraries.Runner`."""
        return tuple(torch.from_numpy(output) for output in self._request.infer([x.numpy()]).to_tuple())


def _quantized(model: Any, calibration: Tensor) -> Any:
    """With int8 convolutions; the smoothing after them stays as it is."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # NNCF would report its use with it
    with quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset([inputs.numpy() for inputs in calibration]),
            preset=nncf.QuantizationPreset.MIXED,  # for activations that are not symmetric, as swish is
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(types=["MatMul"], validate=False),  # the network alone has none
        )


def _of_convolutions(compiled: Any) -> str:
    """The precision in which most convolutions run, as the plugin tells of what it has made."""
    layers = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    told = [each["runtimePrecision"].astype(str) for each in layers if each["layerType"].astype(str) == "Convolution"]
    return _PRECISIONS[collections.Counter(told).most_common(1)[0][0]]
