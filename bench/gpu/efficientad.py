"""EfficientAD-S beside our network: its published layers with random weights, since time is all
that is asked of it here.

Source: Batzner, Heckler, König, "EfficientAD", WACV 2024: the tables of the small patch description
network and of the autoencoder, and the algorithm of inference, at 256x256.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprfast.bench.core import peers, scenarios, timing
from sprfast.bench.gpu.operators import Save
from sprfast.bench.gpu.truth import pictures
from sprfast.formats.model import Model
from sprfast.kernels.triton import trials
from sprfast.method.noise import noise_bank
from sprfast.system import environment

SCHEMA_VERSION = 1
SIZE = 256  # pixels of an image, both sides
FEATURES = 384  # channels of the teacher and of the autoencoder
FEATURE_SIZE = 64  # pixels of their maps
ROUNDS_SECONDS = 12.0  # a batch
TOLERANCE = peers.TOLERANCES["bfloat16"]
OURS, EFFICIENTAD = "ours", "efficientad_s"


class EfficientADS(nn.Module):
    """Images (B, 3, 256, 256) to anomaly maps (B, 1, 256, 256).

    The normalisations that training would fit (of the teacher's features, and of the two maps by
    their quantiles) have values of no meaning here, but are computed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.teacher = _patch_description(FEATURES)
        self.student = _patch_description(2 * FEATURES)
        self.autoencoder = _autoencoder()
        self.register_buffer("mean", torch.zeros(1, FEATURES, 1, 1))
        self.register_buffer("std", torch.ones(1, FEATURES, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The anomaly maps."""
        teacher = (self.teacher(x) - self.mean) / self.std
        local, of_autoencoder = self.student(x).chunk(2, dim=1)
        pairs = ((teacher, local), (self.autoencoder(x), of_autoencoder))
        maps = [(expected - given).square().mean(1, keepdim=True) for expected, given in pairs]
        resized = [F.interpolate(each, (SIZE, SIZE), mode="bilinear", align_corners=False) for each in maps]
        return sum(0.1 * each.float() + 0.01 for each in resized) / 2  # type: ignore[return-value]


def _patch_description(channels: int) -> nn.Sequential:
    """PDN-S: 64x64 places, each of which sees 33x33 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 128, 4, padding=3),
        nn.ReLU(),
        nn.AvgPool2d(2, 2, padding=1),
        nn.Conv2d(128, 256, 4, padding=3),
        nn.ReLU(),
        nn.AvgPool2d(2, 2, padding=1),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, channels, 4),
    )


def _autoencoder() -> nn.Sequential:
    """To a vector of 64 and back to 64x64 places, without the dropout of training."""
    layers: list[nn.Module] = []
    for given, channels in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(given, channels, 4, stride=2, padding=1), nn.ReLU()]
    layers.append(nn.Conv2d(64, 64, 8))
    for size in (3, 8, 15, 32, 63, 127):
        layers += [nn.Upsample(size, mode="bilinear"), nn.Conv2d(64, 64, 4, padding=2), nn.ReLU()]
    layers += [nn.Upsample(FEATURE_SIZE, mode="bilinear"), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    layers.append(nn.Conv2d(64, FEATURES, 3, padding=1))
    return nn.Sequential(*layers)


@torch.inference_mode()
def measure(
    model: Model,
    device: torch.device,
    batches: Sequence[int],
    height: int,
    width: int,
    *,
    turn: int = 1,
    minimum: int = 10,
    budget: float = ROUNDS_SECONDS,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """EfficientAD-S and our fastest backend in turns, each at its own size of images.

    EfficientAD-S runs in bfloat16, channels-last, with cuDNN's search, in a CUDA graph; its map is
    held against its own in float32 on the CPU.

    Args:
        batches: numbers of images in a call.
        height, width: of our images.
        turn: calls of a candidate at one image before the other has its turn; of more images so
            many fewer.
        minimum: rounds that are measured whatever they cost.
        budget: seconds of rounds for a batch.
        save: called with the report after each batch.

    Returns:
        The report, plain JSON values; `ratio` is how many times faster ours is.
    """
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {OURS: [height, width], EFFICIENTAD: [SIZE, SIZE], "draws": model.schedule.draws},
        "weights": "random",
        "batches": [],
    }
    noise = [z.to(device) for z in noise_bank(model.schedule, height, width, model.noise_seed)]
    on_cuda = device.type == "cuda"
    build = peers.backend("cuda_graph", "bfloat16") if on_cuda else peers.backend("eager")
    ours = build(model, noise, device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EfficientADS().eval()
    one = pictures(1, SIZE, SIZE)
    expected = network(one)
    network = network.to(device, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for images in batches:
        x, given = pictures(images, height, width).to(device), one.repeat(images, 1, 1, 1).to(device)
        theirs = _captured(network, given)
        error = trials.relative_rms(theirs(given)[:1].cpu(), expected)
        calls: dict[str, Callable[[int], object]] = {
            OURS: lambda index, x=x: ours(x),  # type: ignore[misc]
            EFFICIENTAD: lambda index, run=theirs, x=given: run(x),  # type: ignore[misc]
        }
        for call in calls.values():
            timing.timed(functools.partial(call, 0), device)
        rounds = list(timing.rounds(calls, device, budget, minimum, turn=max(1, turn // images)))
        row: dict[str, Any] = {"images": images, "relative_rms": error, "passed": error <= TOLERANCE}
        if row["passed"]:
            row["ratio"] = timing.ratio(rounds, EFFICIENTAD, OURS)
            row["candidates"] = {name: _speed([times[name] for times in rounds], images) for name in calls}
        report["batches"].append(row)
        save(report)
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """One sentence for each batch whose maps are not those of float32."""
    rows = [row for row in report["batches"] if not row["passed"]]
    return [f"efficientad_s, {row['images']} images: its bfloat16 maps are not its float32 maps" for row in rows]


def _speed(seconds: list[float], images: int) -> dict[str, Any]:
    return {
        "images_per_s": scenarios.OFFLINE.figures(seconds, images)["images_per_s"],
        "us_per_image": timing.spread([1e6 * value / images for value in seconds]),
        "latency": scenarios.SINGLE_STREAM.figures(seconds, 1) if images == 1 else None,
    }


def _captured(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The network in a graph on CUDA, with the images copied in and converted."""

    def run(x: Tensor) -> Tensor:
        result: Tensor = network(x.to(torch.bfloat16, memory_format=torch.channels_last))
        return result

    if x.device.type != "cuda":
        return run
    static = x.clone()
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run(static)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = run(static)

    def replay(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        return result

    return replay
