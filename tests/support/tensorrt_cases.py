"""The graph that TensorRT sessions are tested with."""

import numpy as np

from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import onnx_model

FLAVOURS = ("tensorrt", "tensorrt_rtx")
SIZE = 32


def graph(model, batch=None):
    return onnx_model(fold(model), SIZE, SIZE, normalization="instance", batch=batch).SerializeToString()


def close_to(maps, expected, count):
    for got, whole in zip(maps, expected, strict=True):
        np.testing.assert_allclose(got, whole[:count], rtol=1e-4, atol=1e-6)
