"""The heat map as peers compute it: on images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sprfast.method import scoring
from sprfast.method.anomaly_map import BOX_SIZE, LARGEST_BILINEAR, MAP_SIZE


def published_heat_map(errors: Tensor) -> Tensor:
    """The heat map (B, 1, 256, 256) on images, as the published script computes it; where it would
    skip pixels of a long side, as the definition does.
    """
    if max(errors.shape[2:]) > LARGEST_BILINEAR:
        return scoring.anomaly_map(errors)
    resized = F.interpolate(errors, (MAP_SIZE, MAP_SIZE), mode="bilinear", align_corners=False)
    return F.avg_pool2d(resized, BOX_SIZE, stride=1, padding=BOX_SIZE // 2)
