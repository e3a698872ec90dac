"""Structured corruption: shapes painted into images of good parts, for a training to take out, and
for a choice of the scoring mode to find.

Every random number comes from the generator that is given, for the whole batch, of which a process
paints its share: in a training, what is painted depends on (seed, step) alone.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

SHAPES = 3  # an image, at most
DONORS = 16  # good images whose pixels are painted into others

_GRID = 8  # cells a side of the smooth noise
_KINDS = 4  # ellipse, rectangle, bent scratch, blob of thresholded smooth noise
_FILLS = 5  # a colour, another part, the image shifted, the image brighter or darker, smooth noise
_UNIFORMS = 16  # draws a shape


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Images with shapes painted into them."""

    x: Tensor  # (B, 3, H, W) in [-1, 1]
    painted: Tensor  # (B, 1, H, W): 1.0 where a shape lies, else 0.0


def corrupt(x: Tensor, donors: Tensor, share: float, batch: int, mine: slice, generator: torch.Generator) -> Corrupted:
    """Paint 1 to `SHAPES` shapes, 0.15 to 1 opaque, into a share of the images.

    Args:
        x: (B, 3, H, W) images in [-1, 1], positions `mine` of the global batch.
        donors: (N, 3, H, W) images whose pixels may be painted.
        share: probability that an image is painted at all.
        batch: images of the global batch.
        mine: positions of `x` in it.
        generator: of the step, on the device of x.
    """
    device = x.device
    u = torch.rand((SHAPES, _UNIFORMS, batch), generator=generator, device=device)[:, :, mine]
    colours = torch.rand((SHAPES, batch, 3, 1, 1), generator=generator, device=device)[:, mine] * 2.0 - 1.0
    coarse = torch.randn((SHAPES, batch, 4, _GRID, _GRID), generator=generator, device=device)[:, mine]
    count = torch.rand((2, batch), generator=generator, device=device)[:, mine]
    shapes = torch.where(count[0] < share, 1 + (count[1] * SHAPES).long(), 0)
    result, painted = x, torch.zeros_like(x[:, :1])
    for index in range(SHAPES):
        smooth = functional.interpolate(coarse[index], x.shape[2:], mode="bilinear", align_corners=True)
        mask = _shape(u[index, :7], smooth[:, 3:]) * (shapes > index)[:, None, None, None]
        fill = _fill(u[index, 7:15], x, donors, colours[index], smooth[:, :3])
        result = torch.lerp(result, fill, mask * _column(0.15 + 0.85 * u[index, 15]))
        painted = torch.maximum(painted, mask)
    return Corrupted(result.clamp(-1.0, 1.0), painted)


def _column(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _shape(u: Tensor, smooth: Tensor) -> Tensor:
    """(B, 1, H, W) masks of 0.0 and 1.0 from (7, B) uniform draws and (B, 1, H, W) smooth noise."""
    height, width = smooth.shape[2:]
    short = min(height, width)
    rows = torch.arange(height, device=u.device).view(1, 1, -1, 1) / short
    columns = torch.arange(width, device=u.device).view(1, 1, 1, -1) / short
    kind = _column((u[0] * _KINDS).long())
    y, x = rows - _column(u[1]) * (height / short), columns - _column(u[2]) * (width / short)
    angle = _column(u[3] * math.pi)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    # radii in shares of the short side, evenly on a logarithmic scale; never below a pixel
    a = _column(0.03 * 10.0 ** u[4]).clamp_min(1.0 / short)
    b = (a * _column(0.2 + 0.8 * u[5])).clamp_min(0.6 / short)
    ellipse = (along / a) ** 2 + (across / b) ** 2 <= 1.0
    rectangle = (along.abs() <= a) & (across.abs() <= b)
    length, thickness = _column(0.1 + 0.4 * u[4]), _column(0.5 + 1.5 * u[5]) * max(1.0, short / 64) / short
    bent = across - _column(4.0 * u[6] - 2.0) * (along**2 - length**2 / 2)
    scratch = (along.abs() <= length) & (bent.abs() <= thickness)
    blob = (smooth > 0.3) & ((along / (2.5 * a)) ** 2 + (across / (2.5 * a)) ** 2 <= 1.0)
    mask = torch.where(kind == 0, ellipse, torch.where(kind == 1, rectangle, torch.where(kind == 2, scratch, blob)))
    return mask.to(smooth.dtype)


def _fill(u: Tensor, x: Tensor, donors: Tensor, colour: Tensor, smooth: Tensor) -> Tensor:
    """(B, 3, H, W) pixels to paint, from (8, B) uniform draws."""
    fill, saturation = (u[0] * _FILLS).long(), _column(u[7])
    colour, smooth = (torch.lerp(each.mean(dim=1, keepdim=True), each, saturation) for each in (colour, smooth))
    shifted = _column(fill == 2)
    sources = torch.where(shifted, x, donors[(u[1] * len(donors)).long()])
    moved = _rolled(sources, u[2], u[3])
    step = 0.2 + 0.8 * u[4]
    light = x + _column(torch.where(u[5] < 0.5, -step, step))
    noise = x.mean(dim=(2, 3), keepdim=True) + _column(0.2 + 0.6 * u[6]) * smooth
    kind = _column(fill)
    return torch.where(kind == 0, colour, torch.where(kind <= 2, moved, torch.where(kind == 3, light, noise)))


def _rolled(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Every image of (B, 3, H, W) moved round by its own shares of the height and width, (B,) in
    [0, 1).
    """
    count, _, height, width = images.shape
    rows = (torch.arange(height, device=images.device) + (down * height).long()[:, None]) % height
    columns = (torch.arange(width, device=images.device) + (right * width).long()[:, None]) % width
    each = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
