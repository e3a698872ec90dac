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
from sprfast.kernels.triton import reference


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", kernels.__all__)
def test_operator(
    operator: str, precision: Precision, model: Model, device: torch.device, measured: Callable[..., Any]
) -> None:
    """Time one operator, then hold its result against the reference in float64."""
    from sprfast.kernels.triton.self_test import TOLERANCE, relative_rms

    size = model.preprocessing.size
    call = max(
        (each for each in calls.recorded(model, 1, size, size, precision) if each.operator == operator),
        key=lambda each: each.bytes,
    )
    given = call.fresh(device)
    with torch.inference_mode():
        returned = measured(lambda: getattr(kernels, operator)(*given.values()))
        wide = calls.widened(given)
        expected = getattr(reference, operator)(*wide.values())
        if operator == "perturb_conv3x3":  # its affine is that of the values as stored
            expected = reference.group_norm_affine(
                given["out"].double(), *(wide[name] for name in ("bias", "gamma", "beta", "groups"))
            )
    results = calls.results(given, returned)
    for name, truth in calls.results(wide, expected).items():
        assert relative_rms(results[name], truth) <= TOLERANCE[results[name].dtype], name
