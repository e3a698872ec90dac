"""What the arithmetic promised for an H200 at 192x192, K = 3, base width 64, bfloat16: computed
before any run.

Source: 45.0 GFLOP a forward at the matrix units' measured 790 TFLOP/s, and the bytes that each
design moves at a copy's 4.3 TB/s. The ranges lie around what follows if convolutions reach 65 % of
the matrix rate and the passes between them 85 % of a copy.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A range for the time of one image."""

    name: str  # of a candidate of the waterfall, or "convolutions"
    images: int  # of a call
    low: float  # microseconds
    high: float  # microseconds


PREDICTIONS = (
    Prediction("convolutions", 16, 240.0, 300.0),
    Prediction("compile_bfloat16", 16, 330.0, 450.0),
    Prediction("cuda_graph_bfloat16", 16, 330.0, 400.0),
    Prediction("cuda_graph_bfloat16", 1, 500.0, 700.0),
)


def predicted(name: str, images: int) -> dict[str, Any] | None:
    """The prediction to hold against a measurement with so many images, or None; between 8 and 32
    images the time of one hardly changes.
    """
    for each in PREDICTIONS:
        if each.name == name and (each.images == images or (each.images == 16 and 8 <= images <= 32)):
            return {"us_per_image": [each.low, each.high], "for_images": each.images, "note": "computed before any run"}
    return None
