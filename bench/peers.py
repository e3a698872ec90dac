"""What a bench compares: our backends, the published pipeline, and the plain definition in channels-last."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprfast import backends, scoring, sde, unet
from sprfast.model_file import Model

# (B, 3, H, W) float32 in [-1, 1] to error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256), all on one device.
Maps = Callable[[Tensor], tuple[Tensor, Tensor]]
BASELINE = "published"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute the maps of a model."""

    name: str
    description: str
    build: Callable[[Model, Sequence[Tensor], torch.device], Maps]  # model and its noise (one (K, 1, 3, H, W) a level), on the device


def plain(model: Model, noise: Sequence[Tensor], device: torch.device, memory_format: torch.memory_format) -> Maps:
    """The definition as it is written, with the network in `memory_format`; the truth that parity is measured against is contiguous."""
    network = _network(model, device).to(memory_format=memory_format)  # type: ignore[call-overload]

    @torch.inference_mode()
    def maps(x: Tensor) -> tuple[Tensor, Tensor]:
        errors = scoring.error_map(network, x, model.schedule, noise)
        return errors, scoring.anomaly_map(errors)

    return maps


def published(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
    """The published test script's arithmetic: float32, contiguous, one pass a draw, no fused swish.

    Its network divides by std and the script multiplies by std² again; the heat map is upsampled and
    averaged on images. Where the script's cost depends on details (zero-width padding, copies to the
    host, drawing of noise), this peer has the cheaper form.
    """
    network = _network(model, device)
    _split_swish(network)

    @torch.no_grad()
    def maps(x: Tensor) -> tuple[Tensor, Tensor]:
        errors = torch.zeros_like(x[:, :1])
        for level, weight, draws in zip(model.schedule.levels, model.schedule.weights, noise, strict=True):
            t = torch.full((x.shape[0],), level.t, dtype=x.dtype, device=device)
            std = sde.std(t)[:, None, None, None]
            for z in draws:
                n = z * std
                restored = network(x + n, t) * std**2 + n
                errors += weight / level.draws * (restored**2).mean(1, keepdim=True)
        resized = F.interpolate(errors, (scoring.MAP_SIZE, scoring.MAP_SIZE), mode="bilinear", align_corners=False)
        return errors, F.avg_pool2d(resized, scoring.BOX_SIZE, stride=1, padding=scoring.BOX_SIZE // 2)

    return maps


def backend(name: str) -> Callable[[Model, Sequence[Tensor], torch.device], Maps]:
    """A builder for our backend `name`."""

    def build(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
        ours = backends.create(name, model, device)

        def maps(x: Tensor) -> tuple[Tensor, Tensor]:
            errors = ours.error_map(x, noise)
            return errors, scoring.anomaly_map(errors)

        return maps

    return build


class _Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def _split_swish(network: nn.Module) -> None:
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, _Swish())


def _network(model: Model, device: torch.device) -> unet.ScoreUNet:
    return unet.from_weights(model.network, {name: value.to(device) for name, value in model.weights.items()})


CANDIDATES = (
    Candidate(
        BASELINE,
        "the published pipeline: float32, contiguous, one pass a draw, x * sigmoid(x), division and multiplication by std, "
        "upsampling and 31x31 average pooling",
        published,
    ),
    Candidate(
        "channels_last",
        "the plain definition: network in channels-last, all draws in one batch",
        functools.partial(plain, memory_format=torch.channels_last),
    ),
    Candidate("eager", "sprfast, backend eager", backend("eager")),
)
