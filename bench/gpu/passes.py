"""What lies between two convolutions, in two ways: our operators, and plain torch as one writes a
network.

The plain way works in the storage type on channels-last maps: group_norm, silu, the embedding
added, then pooling, interpolation and concatenation, or the 1x1 convolution and the squared
residual. It is given the convolution's output with its bias, which our operators add themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sprfast.bench.core.heat_map import published_heat_map
from sprfast.bench.gpu.calls import Call
from sprfast.kernels.triton import reference
from sprfast.kernels.triton.trials import Arguments, results
from sprfast.method import scoring


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """One or two operator calls that follow each other; the first of two returns the affine for the
    second to apply.
    """

    calls: tuple[Call, ...]

    @property
    def name(self) -> str:
        """Name of the plain way."""
        return self.plain_function.__name__

    @property
    def bytes(self) -> int:
        """The algorithmic minimum as if one kernel did it: the convolution's output read once,
        every result written once.
        """
        first, last = self.calls[0], self.calls[-1]
        # the map between convolution and activation is none of the results
        if first.operator == "perturb_conv3x3":
            return first.bytes - int(first.arguments["out"].nbytes) + int(last.arguments["out"].nbytes)
        return last.bytes

    def inputs(self, device: torch.device, seed: int) -> list[Arguments]:
        """Fresh arguments of every call."""
        given = [call.fresh(device, seed + index) for index, call in enumerate(self.calls)]
        if self.plain_function is anomaly_map:  # interpolation knows only these matrices
            height, width = given[0]["errors"].shape[2:]
            given[0]["rows"] = scoring.smoothing_matrix(height, device)
            given[0]["columns"] = scoring.smoothing_matrix(width, device)
        return given

    def ours(self, operators: Any, *given: Arguments) -> dict[str, Tensor]:
        """Through `operators`; the arguments of each call in turn. The second call's map is the
        first one's.
        """
        first, last = given[0], given[-1]
        returned = getattr(operators, self.calls[0].operator)(*first.values())
        if len(given) == 2:
            last = last | {"raw": first["raw" if "raw" in first else "out"], "affine": returned}
            returned = getattr(operators, self.calls[1].operator)(*last.values())
        return results(last, returned)

    def plain(self, function: Callable[..., tuple[Tensor, ...]], *given: Any) -> dict[str, Tensor]:
        """Through `function`, which is `plain_function` or that compiled; arguments are those of
        `plain_arguments`.
        """
        outputs = function(*given)
        if self.plain_function is norm_swish_up2:
            outputs = (outputs[0].chunk(2, dim=1)[1],)  # the other half is the skip connection
        names = results(self.calls[-1].arguments, self.calls[-1].returned)
        return dict(zip(names, outputs, strict=True))

    @property
    def plain_function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The plain way."""
        first = self.calls[0].operator
        return perturb_conv_norm_swish if first == "perturb_conv3x3" else PLAIN[self.calls[-1].operator]

    def plain_arguments(self, given: Sequence[Arguments]) -> tuple[Any, ...]:
        """What the plain way takes, from the arguments of our operators."""
        first, last = given[0], given[-1]
        if self.plain_function is anomaly_map:
            return (first["errors"],)
        raw: Tensor = first["raw" if "raw" in first else "out"]
        storage, channels_last = raw.dtype, torch.channels_last
        norm = (first["gamma"].to(storage), first["beta"].to(storage), first["groups"])
        if self.plain_function is perturb_conv_norm_swish:
            weight = first["weight"][: reference.TAPS].mT.reshape(-1, 3, 3, 3).to(storage, memory_format=channels_last)
            return (first["x"], first["noise"], weight, first["bias"].to(storage), *norm)
        x = (raw.float() + first["bias"][:, None, None]).to(storage, memory_format=channels_last)
        if self.plain_function is norm_swish:
            return (x, *norm)
        if self.plain_function is norm_swish_head:
            embedding = raw.new_zeros(1, raw.shape[1], 1, 1)  # our operator has it in its bias
            weight = last["weight"].to(storage)[:, :, None, None]
            return (x, *norm, embedding, weight, last["head_bias"], last["z"], last["scale"])
        rows: Tensor = last["embedding"].to(storage)
        embedding = rows.repeat(raw.shape[0] // rows.shape[0], 1)[:, :, None, None]
        if self.plain_function is norm_swish_pool:
            return (x, *norm, embedding)
        return (x, *norm, embedding, torch.ones_like(last["out"], memory_format=channels_last))


def distinct(calls: Sequence[Call]) -> list[Pass]:
    """The passes of a recorded forward, each kind once."""
    found: dict[tuple[Any, ...], Pass] = {}
    index = sum(call.operator == "noise_conv3x3" for call in calls[:1])  # of new draws only
    while index < len(calls):
        count = 2 if calls[index].operator in ("perturb_conv3x3", "group_norm_affine") else 1
        part = tuple(calls[index : index + count])
        found.setdefault(tuple(call.key for call in part), Pass(part))
        index += count
    return list(found.values())


def norm_swish(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> tuple[Tensor, ...]:
    """(N, C, H, W) to the activation."""
    return (F.silu(F.group_norm(x, groups, gamma, beta, reference.EPS)),)


def norm_swish_pool(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, embedding: Tensor) -> tuple[Tensor, ...]:
    """The activation with the embedding, and its 2x2 maximum."""
    h = norm_swish(x, gamma, beta, groups)[0] + embedding
    return h, F.max_pool2d(h, 2)


def norm_swish_up2(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, embedding: Tensor, skip: Tensor
) -> tuple[Tensor, ...]:
    """The activation with the embedding, upsampled, behind the skip connection."""
    h = norm_swish(x, gamma, beta, groups)[0] + embedding
    h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=True)
    h = F.pad(h, (0, skip.shape[3] - h.shape[3], 0, skip.shape[2] - h.shape[2]))
    return (torch.cat([skip, h], dim=1),)


def norm_swish_head(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor,
    z: Tensor,
    scale: Tensor,
) -> tuple[Tensor, ...]:
    """The error map, from the last activation."""
    h = norm_swish(x, gamma, beta, groups)[0] + embedding
    f = F.conv2d(h, weight).float().reshape(-1, *bias.shape, *h.shape[2:])  # (B, D, 3, H, W)
    r = f + bias[:, :, None, None] + z.transpose(0, 1)
    return ((scale[:, None, None] * r.square().sum(2)).sum(1, keepdim=True),)


def perturb_conv_norm_swish(
    x: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, groups: int
) -> tuple[Tensor, ...]:
    """The first convolution of the images, with what the draws add to it, and its activation; the
    same draws for all images.
    """
    images = x.to(weight.dtype, memory_format=torch.channels_last)
    draws = noise.shape[0]
    h = F.conv2d(images, weight, bias, padding=1).repeat_interleave(draws, 0) + noise.repeat(len(x), 1, 1, 1)
    return norm_swish(h, gamma, beta, groups)


def anomaly_map(errors: Tensor) -> tuple[Tensor, ...]:
    """Upsampling and 31x31 average."""
    return (published_heat_map(errors),)


PLAIN: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "affine_swish": norm_swish,
    "group_norm_swish": norm_swish,
    "norm_swish": norm_swish,
    "norm_swish_pool": norm_swish_pool,
    "norm_swish_head": norm_swish_head,
    "affine_swish_pool": norm_swish_pool,
    "affine_swish_up2": norm_swish_up2,
    "affine_swish_head": norm_swish_head,
    "anomaly_map": anomaly_map,
}
