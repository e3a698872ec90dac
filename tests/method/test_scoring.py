import math
import types

import pytest
import torch
import torch.nn.functional as F

from sprfast.config import Level, NetworkConfig, Schedule
from sprfast.method import scoring, sde, unet
from sprfast.method.noise import noise_bank


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet.ScoreUNet(NetworkConfig(base_width=32, embedding_dim=8)).double().eval().requires_grad_(False)


class Constant:
    """A network whose undivided output is t everywhere, so that error maps can be worked out by
    hand.
    """

    def scaled_score(self, x, t):
        return t[:, None, None, None].expand_as(x)


def images(count, height=16, width=16):
    return torch.rand(count, 3, height, width, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(
    "size",
    # up, down, both, and none at all
    [(16, 16), (32, 32), (50, 70), (192, 192), (255, 257), (256, 256), (300, 180), (512, 40)],
)
def test_two_matrices_equal_upsampling_and_averaging(size):
    errors = torch.rand(2, 1, *size)
    # in float64, since float32 pooling is itself off by up to 2e-6
    upsampled = F.interpolate(errors.double(), size=(256, 256), mode="bilinear", align_corners=False)
    expected = F.avg_pool2d(upsampled, 31, stride=1, padding=15, count_include_pad=True)
    got = scoring.anomaly_map(errors)
    assert got.shape == (2, 1, 256, 256)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() <= 1e-6


def test_padding_counts_in_the_average():
    assert scoring.anomaly_map(torch.ones(1, 1, 64, 64))[0, 0, 0, 0] == pytest.approx((16 / 31) ** 2, rel=1e-6)


def test_every_stream_that_gets_a_smoothing_matrix_is_recorded(monkeypatch):
    """Without that, memory of a dropped matrix would be given away while another stream reads
    it.
    """
    streams = []
    matrix = types.SimpleNamespace(record_stream=streams.append)  # there is no CUDA memory here
    monkeypatch.setattr(scoring, "_kept_matrix", lambda size, device, window: matrix)
    current = iter(["first", "second", "first"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: next(current))
    for _ in range(3):
        assert scoring.smoothing_matrix(16, torch.device("cuda", 0)) is matrix
    assert streams == ["first", "second", "first"]


def test_anomaly_map_can_be_differentiated_after_use_in_inference_mode():
    with torch.inference_mode():
        scoring.anomaly_map(torch.ones(1, 1, 37, 41))
    errors = torch.ones(1, 1, 37, 41, requires_grad=True)
    scoring.anomaly_map(errors).sum().backward()
    assert errors.grad is not None
    assert errors.grad.min() > 0


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0])
def test_residual_is_the_literal_formula(network, t):
    x, z = images(2), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    n = sde.std(t) * z
    score = network(x + n, torch.full((2,), t, dtype=torch.float64))
    expected = score * sde.std(t) ** 2 + n
    torch.testing.assert_close(scoring.residual(network, x, t, z), expected, rtol=1e-9, atol=1e-12)


def test_error_map_is_the_mean_over_draws_and_channels(network):
    x, z = images(2), torch.randn(3, 2, 3, 16, 16, dtype=torch.float64)
    passes = [scoring.residual(network, x, 1e-3, z[k]).square().mean(dim=1, keepdim=True) for k in range(3)]
    got = scoring.error_map(network, x, Schedule((Level(1e-3, 3),)), [z])
    assert got.shape == (2, 1, 16, 16)
    torch.testing.assert_close(got, sum(passes) / 3, rtol=1e-9, atol=0)


def test_shared_noise_equals_the_same_noise_for_each_image(network):
    x, schedule = images(3), Schedule((Level(1e-3, 2),))
    shared = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    each = shared.expand(2, 3, 3, 16, 16).contiguous()
    assert torch.equal(
        scoring.error_map(network, x, schedule, [shared]), scoring.error_map(network, x, schedule, [each])
    )


def test_noise_of_one_image_does_not_reach_another(network):
    x, schedule = images(2), Schedule((Level(1e-3, 2),))
    noise = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    both = scoring.error_map(network, x, schedule, [noise])
    for i in range(2):
        alone = scoring.error_map(network, x[i : i + 1], schedule, [noise[:, i : i + 1]])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-9, atol=0)


def test_levels_are_averaged_by_weight():
    schedule = Schedule((Level(0.1, 1, weight=3.0), Level(0.5, 2, weight=1.0)))
    noise = [torch.full((1, 1, 3, 16, 16), 2.0, dtype=torch.float64), torch.zeros(2, 1, 3, 16, 16, dtype=torch.float64)]
    first, second = (sde.std(0.1) * (0.1 + 2.0)) ** 2, (sde.std(0.5) * 0.5) ** 2
    got = scoring.error_map(Constant(), images(2), schedule, noise)
    torch.testing.assert_close(got, torch.full_like(got, 0.75 * first + 0.25 * second))


def test_only_ratios_of_weights_matter():
    noise = noise_bank(Schedule((Level(0.1, 1), Level(0.5, 1))), 16, 16, 0)
    light, heavy = (Schedule((Level(0.1, 1, weight), Level(0.5, 1, weight))) for weight in (0.01, 100.0))
    x = images(1).float()
    torch.testing.assert_close(
        scoring.error_map(Constant(), x, light, noise), scoring.error_map(Constant(), x, heavy, noise)
    )


def test_several_levels_equal_their_weighted_single_maps(network):
    x, levels = images(2), (Level(1e-3, 3, weight=2.0), Level(0.01, 1), Level(0.2, 2, weight=5.0))
    noise = [torch.randn(level.draws, 1, 3, 16, 16, dtype=torch.float64) for level in levels]
    singles = [scoring.error_map(network, x, Schedule((level,)), [z]) for level, z in zip(levels, noise, strict=True)]
    expected = sum(level.weight * single for level, single in zip(levels, singles, strict=True)) / 8.0
    torch.testing.assert_close(scoring.error_map(network, x, Schedule(levels), noise), expected, rtol=1e-9, atol=0)


def test_noise_that_does_not_fit_the_schedule_raises(network):
    x, schedule = images(1), Schedule((Level(1e-3, 2), Level(0.1, 2)))
    fitting = torch.zeros(2, 1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="shorter"):
        scoring.error_map(network, x, schedule, [fitting])
    with pytest.raises(RuntimeError):
        scoring.error_map(network, x, schedule, [fitting, fitting[:, :, :, :8]])


def test_score_is_the_maximum_of_each_map():
    maps = torch.zeros(2, 1, 256, 256)
    maps[0, 0, 3, 250], maps[1, 0, 255, 0] = 5.0, 7.0
    assert scoring.image_score(maps).tolist() == [5.0, 7.0]


@pytest.mark.parametrize("place", [(0, 0), (31, 47), (63, 5)])
def test_nan_anywhere_in_an_error_map_is_a_nan_score_of_that_image_only(place):
    errors = torch.rand(3, 1, 64, 48)
    clean = scoring.image_score(scoring.anomaly_map(errors))
    errors[1, 0, place[0], place[1]] = math.nan
    scores = scoring.image_score(scoring.anomaly_map(errors))
    assert math.isnan(scores[1])
    assert torch.equal(scores[[0, 2]], clean[[0, 2]])


def test_infinity_anywhere_is_never_a_finite_score():
    errors = torch.rand(1, 1, 300, 64)
    errors[0, 0, 299, 63] = math.inf
    assert not math.isfinite(scoring.image_score(scoring.anomaly_map(errors)))
