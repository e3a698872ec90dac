"""Every operator at its largest map in the network: time from Python, launches included, and its
result.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sprfast.bench.gpu import calls
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import trials


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", kernels.__all__)
def test_operator(
    operator: str, precision: Precision, model: Model, device: torch.device, measured: Callable[..., Any]
) -> None:
    """Time one operator, then hold its result against the reference in float64."""
    from sprfast.kernels.triton.self_test import TOLERANCE

    size = model.preprocessing.size
    call = max(
        (each for each in calls.recorded(model, 1, size, size, precision) if each.operator == operator),
        key=lambda each: each.bytes,
    )
    given = call.fresh(device)
    with torch.inference_mode():
        returned = measured(lambda: getattr(kernels, operator)(*given.values()))
        expected = trials.truth(operator, given)
    results = trials.results(given, returned)
    for name, truth in expected.items():
        assert trials.relative_rms(results[name], truth) <= TOLERANCE[results[name].dtype], name
