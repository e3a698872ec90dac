"""The operators between the convolutions, as Triton kernels, each with its plain-torch reference.

Needs torch and triton only. Feature maps are channels-last: (N, C, H, W) tensors whose channels lie
side by side. Storage is float32, bfloat16 or float16; statistics, embeddings, residual and maps are
float32 throughout. Every operator has the signature of the function of its name in `reference`;
what it cannot take, it refuses in words, as a `launch.UnsupportedError`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sprfast.kernels.triton.activation import affine_swish, affine_swish_head, affine_swish_pool, affine_swish_up2
    from sprfast.kernels.triton.group_norm import group_norm_affine, group_norm_swish
    from sprfast.kernels.triton.one_launch import norm_swish, norm_swish_head, norm_swish_pool
    from sprfast.kernels.triton.perturb_conv import noise_conv3x3, perturb_conv3x3
    from sprfast.kernels.triton.smoothing import anomaly_map

__all__ = [
    "affine_swish",
    "affine_swish_head",
    "affine_swish_pool",
    "affine_swish_up2",
    "anomaly_map",
    "group_norm_affine",
    "group_norm_swish",
    "noise_conv3x3",
    "norm_swish",
    "norm_swish_head",
    "norm_swish_pool",
    "perturb_conv3x3",
]

_HOMES = {
    "group_norm_affine": "group_norm",
    "group_norm_swish": "group_norm",
    "anomaly_map": "smoothing",
    "affine_swish": "activation",
    "affine_swish_head": "activation",
    "affine_swish_pool": "activation",
    "affine_swish_up2": "activation",
    "noise_conv3x3": "perturb_conv",
    "norm_swish": "one_launch",
    "norm_swish_head": "one_launch",
    "norm_swish_pool": "one_launch",
    "perturb_conv3x3": "perturb_conv",
}


def __getattr__(name: str) -> Any:
    """Operators load Triton on first use, so that the references need nothing but torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sprfast.kernels.triton' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sprfast.kernels.triton.{_HOMES[name]}"), name)
