"""The variance-exploding SDE dx = sigma^t dw with sigma = 25 (Song et al. 2021; used by SPR
unchanged).
"""

from __future__ import annotations

import math
from typing import overload

import torch

SIGMA = 25.0


@overload
def std(t: float) -> float: ...
@overload
def std(t: torch.Tensor) -> torch.Tensor: ...
def std(t: float | torch.Tensor) -> float | torch.Tensor:
    """Standard deviation of x(t) given x(0): sqrt((sigma^(2t) - 1) / (2 ln sigma)).

    Written with expm1, since sigma^(2t) - 1 cancels for small t. A tensor is computed in float64
    and returned in its own dtype.

    Args:
        t: time in (0, 1]; a float, or a tensor of any shape.
    """
    log_sigma = math.log(SIGMA)
    if isinstance(t, torch.Tensor):
        return torch.sqrt(torch.expm1(2.0 * log_sigma * t.double()) / (2.0 * log_sigma)).to(t.dtype)
    return math.sqrt(math.expm1(2.0 * log_sigma * t) / (2.0 * log_sigma))
