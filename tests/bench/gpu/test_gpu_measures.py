import json

import pytest
import torch

from sprfast.backends import registry
from sprfast.bench.gpu import determinism, efficientad, steps, timeline
from sprfast.bench.gpu.timeline import Event

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return steps.model(steps.DRY)


def kernel(name, start, duration, category="kernel"):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}


def test_timeline_of_a_trace():
    kernels = []
    for call in (0.0, 1000.0):
        late = 0.0 if call == 0.0 else 2.0
        kernels += [
            kernel("convolution", call + 10.0, 20.0),
            kernel("copy", call, 5.0, "gpu_memcpy"),
            kernel("statistics", call + 34.0 + late, 6.0),
            kernel("convolution", call + 50.0, 30.0),
        ]
    marked = {"ph": "i", "cat": "kernel", "name": "mark", "ts": 1.0}
    host = [kernel("cudaGraphLaunch", 0.0, 3.0, "cuda_runtime"), marked]
    found = timeline.events({"traceEvents": [*host, *kernels]}, timeline.CATEGORIES["cuda"])
    summary = timeline.summary(timeline.split(found, 2))
    json.dumps(summary, allow_nan=False)
    assert summary["launches"] == 4
    assert summary["span_us"]["median"] == 80.0
    assert summary["busy_us"]["median"] == 61.0
    assert summary["idle_us"]["median"] == 19.0
    assert summary["kernels"] == [
        {"name": "copy", "start_us": 0.0, "us": 5.0, "gap_us": 5.0},
        {"name": "convolution", "start_us": 10.0, "us": 20.0, "gap_us": 5.0},
        {"name": "statistics", "start_us": 35.0, "us": 6.0, "gap_us": 9.0},
        {"name": "convolution", "start_us": 50.0, "us": 30.0, "gap_us": None},
    ]
    assert summary["by_name"][0] == {"name": "convolution", "launches": 2, "us": 50.0}


def test_what_runs_within_another_operator_does_not_count():
    outer = [kernel("conv2d", 0.0, 10.0, "cpu_op"), kernel("relu", 10.0, 1.0, "cpu_op")]
    inner = [kernel("convolution", 1.0, 9.0, "cpu_op"), kernel("empty", 0.0, 1.0, "cpu_op")]
    found = timeline.events({"traceEvents": [*inner, *outer]}, ("cpu_op",))
    assert [event.name for event in found] == ["conv2d", "relu"]


@pytest.mark.parametrize("names", ["ab" + "ac", "ab" + "a", ""])
def test_a_trace_that_lost_kernels_is_refused(names):
    found = [Event(name, float(index), 0.5) for index, name in enumerate(names)]
    with pytest.raises(ValueError, match="not the same kernels in each call"):
        timeline.split(found, 2)


def test_timeline_of_a_real_trace(model):
    report = timeline.measure(model, CPU, [1], 16, 16, replays=2)
    json.dumps(report, allow_nan=False)
    (batch,) = report["batches"]
    assert sum("conv" in kernel["name"] for kernel in batch["kernels"]) >= 18
    assert all(kernel["us"] > 0 for kernel in batch["kernels"])
    assert batch["span_us"]["median"] >= batch["busy_us"]["median"] > 0


class Drifting:
    """Another map each time."""

    def __init__(self, step):
        self.calls = 0
        self.step = step

    def maps(self, x, noise):
        self.calls += 1
        return torch.full((len(x), 1, 16, 16), 1.0 + self.step * self.calls), torch.ones(len(x), 1, 256, 256)


def test_other_bits_are_counted(model, monkeypatch):
    monkeypatch.setattr(registry, "create", lambda *given: Drifting(1e-6))
    replays = determinism.replays(model, CPU, [1], 16, 16, times=5)
    assert [(row["different"], row["passed"]) for row in replays["cases"]] == [(4, False)]
    assert determinism.problems(replays) == ["eager, float32: other maps than the same call before"]
    threads = determinism.threads(model, CPU, 16, 16, calls=3)
    assert [(row["bit_equal"], row["passed"]) for row in threads["cases"]] == [(0, True)]  # within the tolerance
    monkeypatch.setattr(registry, "create", lambda *given: Drifting(1e-2))
    assert determinism.problems(determinism.threads(model, CPU, 16, 16, calls=3))


def test_efficientad_has_the_published_layers():
    with torch.device("meta"):
        network = efficientad.EfficientADS()
        x = torch.empty(2, 3, 256, 256)
        assert network.teacher(x).shape == network.autoencoder(x).shape == (2, 384, 64, 64)
        assert network.student(x).shape == (2, 768, 64, 64)
        assert network(x).shape == (2, 1, 256, 256)

    def parameters(layers):
        return sum(value.numel() for value in layers.parameters())

    def convolution(given, channels, size):
        return channels * (given * size * size + 1)

    description = convolution(3, 128, 4) + convolution(128, 256, 4) + convolution(256, 256, 3)
    assert parameters(network.teacher) == description + convolution(256, 384, 4)
    assert parameters(network.student) == description + convolution(256, 768, 4)
    encoder = convolution(3, 32, 4) + convolution(32, 32, 4) + convolution(32, 64, 4) + 2 * convolution(64, 64, 4)
    decoder = 6 * convolution(64, 64, 4) + convolution(64, 64, 3) + convolution(64, 384, 3)
    assert parameters(network.autoencoder) == encoder + convolution(64, 64, 8) + decoder
