import math

import pytest
import torch

from sprfast.method import sde


def test_std_equals_the_published_values(golden_document):
    for t, expected in golden_document["std"].items():
        assert sde.std(float(t)) == pytest.approx(expected, rel=1e-12)


def test_std_does_not_cancel_for_small_t():
    for t in (1e-5, 1e-8, 1e-12):  # to first order std is sqrt(t)
        assert sde.std(t) == pytest.approx(math.sqrt(t), rel=4 * t + 1e-15)


def test_float32_times_lose_nothing_but_their_own_rounding(golden_document):
    times = torch.tensor([float(t) for t in golden_document["std"]])
    expected = torch.tensor(list(golden_document["std"].values()), dtype=torch.float64)
    got = sde.std(times)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=2e-7, atol=0)


def test_a_tensor_keeps_its_shape_and_equals_the_float():
    times = torch.rand(2, 3, dtype=torch.float64) + 1e-3
    got = sde.std(times)
    assert got.shape == (2, 3)
    torch.testing.assert_close(
        got.flatten().tolist(), [sde.std(t) for t in times.flatten().tolist()], rtol=1e-14, atol=0
    )
