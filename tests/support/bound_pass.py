"""A function of the kind that `LaunchList` binds: two convolutions and all kinds of memory."""

import torch
import torch.nn.functional as F

from sprfast.kernels import triton as kernels

DRAWS, CHANNELS, GROUPS, SIDE = 2, 16, 4, 6


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed, images=1):
    """x, z, rows and columns."""
    x = numbers(images * DRAWS, CHANNELS, SIDE, SIDE, seed=seed).contiguous(memory_format=torch.channels_last)
    return x, numbers(DRAWS, 1, 3, SIDE, SIDE, seed=seed + 1), numbers(8, SIDE), numbers(8, SIDE, seed=1)


class Pass:
    """The function and its constants."""

    def __init__(self):
        self.first = numbers(CHANNELS, CHANNELS, 3, 3)
        self.second = numbers(CHANNELS, 2 * CHANNELS, 3, 3)
        self.norm = [numbers(CHANNELS, seed=seed) for seed in range(3)]
        self.arrived = torch.zeros(DRAWS + 2, dtype=torch.int32)  # of one image; launches take turns in the interpreter
        self.head = numbers(3, CHANNELS), numbers(DRAWS, 3), numbers(DRAWS)

    def __call__(self, convolve, x, z, rows, columns):
        samples, memory_format = x.shape[0], torch.channels_last
        joined = torch.empty(samples, 2 * CHANNELS, SIDE, SIDE, device=x.device, memory_format=memory_format)
        raw = convolve(x, self.first)
        affine = kernels.group_norm_affine(raw, *self.norm, GROUPS, self.arrived)
        for half in joined.chunk(2, dim=1):
            kernels.affine_swish(raw, affine, half)
        raw = convolve(joined, self.second)
        affine = kernels.group_norm_affine(raw, *self.norm, GROUPS, self.arrived)
        weight, bias, scale = self.head
        images = samples // DRAWS
        places = len(rows)
        result = torch.empty(images * (places**2 + SIDE**2), device=x.device)
        anomaly_maps, errors = result.split([images * places**2, images * SIDE**2])
        errors = errors.view(images, 1, SIDE, SIDE)
        kernels.affine_swish_head(raw, affine, weight, bias, z, scale, errors)
        kernels.anomaly_map(errors, rows, columns, places, anomaly_maps.view(images, 1, places, places))
        return result


def convolve(x, weight):
    return F.conv2d(x, weight, padding=1).contiguous(memory_format=torch.channels_last)
