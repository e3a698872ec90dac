import math

import pytest
import torch

from sprfast.config import NetworkConfig
from sprfast.method import sde, unet

SMALL = NetworkConfig(base_width=32, embedding_dim=8)


def relative_rms(got, expected):
    return float((got - expected).norm() / expected.norm())


def network(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return unet.ScoreUNet(config).eval()


@pytest.fixture(scope="module")
def small():
    return network(SMALL).requires_grad_(False)


def test_names_and_shapes_are_those_of_the_published_checkpoints(golden_document):
    expected = {name: tuple(shape) for name, shape in golden_document["state_dict"].items()}
    assert unet.parameter_shapes(NetworkConfig()) == expected
    assert sum(math.prod(shape) for shape in expected.values()) == 17_843_331


def test_a_new_network_has_the_stated_names_and_shapes():
    state = unet.ScoreUNet(SMALL).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == unet.parameter_shapes(SMALL)
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("width", [32, 96])
def test_base_width_sets_every_width(width):
    config = NetworkConfig(base_width=width, embedding_dim=16)
    shapes = unet.parameter_shapes(config)
    assert shapes["inc.double_conv.0.weight"] == (width, 3, 3, 3)
    assert shapes["down4.maxpool_conv.1.double_conv.3.weight"] == (8 * width, 8 * width, 3, 3)
    assert shapes["up1.conv.double_conv.0.weight"] == (8 * width, 16 * width, 3, 3)
    assert shapes["up1.conv.double_conv.3.weight"] == (4 * width, 8 * width, 3, 3)
    assert shapes["dense_u2.dense.weight"] == (2 * width, 16)
    with torch.inference_mode():
        score = network(config)(torch.zeros(2, 3, 16, 16), torch.tensor([1e-3, 0.5]))
    assert score.shape == (2, 3, 16, 16)
    assert score.isfinite().all()


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (50, 70), (47, 16), (16, 100)])
def test_any_size_from_16_up_gives_a_score_of_the_same_size(small, size):
    score = small(torch.randn(1, 3, *size), torch.tensor([0.1]))
    assert score.shape == (1, 3, *size)
    assert score.isfinite().all()


def test_upsampled_map_is_padded_right_and_bottom_first():
    up = unet.Up(64, 32)
    seen = []
    up.conv.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    skip = torch.full((1, 32, 5, 7), 2.0)
    up(torch.ones(1, 32, 2, 2), skip)
    (joined,) = seen
    assert torch.equal(joined[:, :32], skip)
    expected = torch.zeros(5, 7)
    expected[0:4, 1:5] = 1  # 1 row and 3 columns are missing: 0 above, 1 below, 1 left, 2 right
    torch.testing.assert_close(joined[0, 32], expected)


@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
def test_channels_last_equals_contiguous(small, size):
    x, t = torch.randn(2, 3, *size), torch.tensor([1e-3, 0.7])
    expected = small(x, t)
    other = network(SMALL).requires_grad_(False).to(memory_format=torch.channels_last)
    assert relative_rms(other(x.contiguous(memory_format=torch.channels_last), t), expected) < 1e-5


def test_score_is_the_scaled_score_over_std(small):
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1e-3, 0.7])
    expected = small.scaled_score(x, t) / torch.tensor([sde.std(1e-3), sde.std(0.7)])[:, None, None, None]
    torch.testing.assert_close(small(x, t), expected)


def test_each_image_has_its_own_time(small):
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1e-3, 0.7])
    both = small(x, t)
    for i in range(2):
        assert relative_rms(small(x[i : i + 1], t[i : i + 1]), both[i : i + 1]) < 1e-5
    assert relative_rms(small(x, t.flip(0)), both) > 0.1


def test_fourier_features_are_sines_then_cosines():
    features = unet.FourierFeatures(6)
    t = torch.tensor([0.25])
    angles = [2 * math.pi * 0.25 * w for w in features.W.tolist()]
    expected = torch.tensor([[math.sin(a) for a in angles] + [math.cos(a) for a in angles]])
    torch.testing.assert_close(features(t), expected, atol=1e-4, rtol=0)


def test_everything_is_trained_but_the_frequencies():
    trained = network(SMALL).train()
    trained(torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.9])).square().mean().backward()
    without = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    assert without == ["embed.0.W"]
    assert not trained.embed[0].W.requires_grad


def test_from_weights_shares_memory_and_needs_no_gradient():
    weights = network(SMALL).state_dict()
    rebuilt = unet.from_weights(SMALL, weights)
    assert not rebuilt.training
    for name, parameter in rebuilt.named_parameters():
        assert parameter.data_ptr() == weights[name].data_ptr()
        assert not parameter.requires_grad
