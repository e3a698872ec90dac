"""GroupNorm of backend eager: PyTorch's own up to 512x512, right beyond, and NaN where it is not a
number.
"""

import pytest
import torch
import torch.nn.functional as F

from sprfast.backends import group_norm
from sprfast.backends.eager import EagerBackend
from sprfast.backends.group_norm import GroupNorm
from sprfast.method.folded import HALVINGS


def layer(**attributes):
    norm = GroupNorm(4, 8)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
        norm.bias.copy_(torch.linspace(-1, 1, 8))
    for name, value in attributes.items():
        setattr(norm, name, value)
    return norm


def a_map(height, width, mean=3.0):
    x = torch.randn(2, 8, height, width, generator=torch.Generator().manual_seed(0))
    return (x * torch.linspace(0.1, 2, 8)[:, None, None] + mean).contiguous(memory_format=torch.channels_last)


def relative(got, x, norm):
    expected = F.group_norm(x.double().contiguous(), 4, norm.weight.double(), norm.bias.double())
    return float((got.double() - expected).norm() / expected.norm())


@torch.inference_mode()
def test_up_to_512_pixels_a_side_it_has_the_bits_of_torch():
    norm, x = layer(), a_map(31, 17)
    assert torch.equal(norm(x), F.group_norm(x, 4, norm.weight, norm.bias))
    assert group_norm.PIXELS == 512 * 512


@torch.inference_mode()
@pytest.mark.parametrize("mean", [0.0, 3.0, 1000.0])
def test_a_large_map_is_normalised_as_in_float64(mean):
    norm, x = layer(pixels=96 * 128 - 1), a_map(96, 128, mean)
    got = norm(x)
    assert relative(got, x, norm) < 3e-7 * (1 + mean / 30)
    assert got.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_a_map_of_1024_is_as_good_as_a_small_one():
    norm, x = layer(), a_map(1024, 1024)[:1]
    assert relative(norm(x), x, norm) < 3e-7
    assert relative(F.group_norm(x, 4, norm.weight, norm.bias), x, norm) > 3e-6  # why there is this one


@torch.inference_mode()
def test_an_infinite_variance_is_nan_where_it_is_watched():
    x = a_map(4, 4)
    x[1, 2:4] *= 1e25
    out = layer(watched=True)(x)
    assert out.isnan().all((2, 3)).nonzero().tolist() == [[1, 2], [1, 3]]
    torch.testing.assert_close(out[0], layer()(x)[0])


def test_eager_watches_no_layer_of_ordinary_weights(small_model):
    norms = [
        each for each in EagerBackend(small_model, torch.device("cpu")).network.modules() if isinstance(each, GroupNorm)
    ]
    assert [each.watched for each in norms] == [False] * 18


def test_maps_of_an_input_above_512_a_side_are_large_in_every_block(small_model):
    network = EagerBackend(small_model, torch.device("cpu")).network
    norms = {name: each.pixels for name, each in network.named_modules() if isinstance(each, GroupNorm)}
    sides = {name.split(".")[0]: round(pixels**0.5) for name, pixels in norms.items()}
    assert sides == {name: 512 >> halvings for name, halvings in HALVINGS.items()}
