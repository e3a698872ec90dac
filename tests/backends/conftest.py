"""Images, noise and maps of the graph in `support.tensorrt_cases`."""

import numpy as np
import pytest

from sprfast.method.noise import stacked
from support.tensorrt_cases import SIZE, graph


@pytest.fixture(scope="module")
def noise(small_model):
    return stacked(small_model.schedule, SIZE, SIZE, small_model.noise_seed)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (40, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(small_model, images, noise):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(graph(small_model), providers=["CPUExecutionProvider"])
    parts = [session.run(("error_map", "anomaly_map"), {"image": x[None], "noise": noise}) for x in images]
    return [np.concatenate(maps) for maps in zip(*parts, strict=True)]
