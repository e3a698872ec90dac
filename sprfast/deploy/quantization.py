"""The scale of every quantized convolution's input, from images of good parts.

A scale covers the largest value that the images show, and then some: a defect drives the network
beyond all that good images do, and what is clipped there is missing from its error map. Percentiles
and entropy clip even the rare values of good images to have finer steps for the others; on drawn
defects they changed error maps by 13 to 28 % where the maximum changes them by 7 % and `HEADROOM`
by 3 %, while good images gain next to nothing.
"""

from __future__ import annotations

import numpy as np

from sprfast.backends.sessions import onnxruntime as runtime
from sprfast.backends.sessions import session as runtimes
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import Map, Quantization
from sprfast.lowering.onnx_graph import LARGEST, QUANTIZED, onnx_model
from sprfast.method.folded import FoldedModel
from sprfast.system.libraries import require

# Largest number that can be stored, in largest values of good images. Of int8 it costs steps, of
# float8 nothing.
HEADROOM: dict[Quantization, float] = {"int8": 1.25, "float8": 2.0}


def calibrate(folded: FoldedModel, x: Map, noise: Map, quantization: Quantization) -> dict[str, float]:
    """The scales that `graph.onnx_model` takes, by convolution.

    Args:
        folded: in float32.
        x: (N, 3, H, W) images of good parts in [-1, 1], at least one; they go one by one, so that
            memory does not grow with their number.
        noise: (D, 3, H, W), all draws.
        quantization: what the scales are for.

    Raises:
        BackendError: onnxruntime is not installed.
    """
    if reason := runtime.unavailable():
        raise BackendError(f"quantization: {reason}")
    largest = _largest(folded, x, noise)
    return {
        name: HEADROOM[quantization] * value / LARGEST[quantization]
        for name, value in zip(QUANTIZED, largest, strict=True)
    }


def _largest(folded: FoldedModel, x: Map, noise: Map) -> list[float]:
    """Largest magnitude in each input of `QUANTIZED`, over all images and draws."""
    onnxruntime, onnx = runtime.library(), require("onnx", "onnx")
    helper = onnx.helper
    model = onnx_model(folded, *x.shape[2:], batch=1, normalization="instance")
    inputs = {node.name.removesuffix(".conv"): node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    del model.graph.output[:]  # the maxima are all that leaves the graph
    for name in QUANTIZED:
        model.graph.node.append(helper.make_node("Abs", [inputs[name]], [f"{name}.magnitude"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{name}.magnitude"], [f"{name}.largest"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}.largest", onnx.TensorProto.FLOAT, ()))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the head, which nothing reads now, is no warning
    options.intra_op_num_threads = runtimes.default_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run(None, {"image": image[None], "noise": noise}) for image in x]
    return [float(value) for value in np.max(found, axis=0)]
