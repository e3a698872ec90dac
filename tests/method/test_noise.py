import pytest
import torch

from sprfast.config import Level, Schedule
from sprfast.errors import InputError
from sprfast.method.noise import noise_bank

TWO_LEVELS = Schedule((Level(1e-3, 2), Level(1e-2, 4)))


def test_the_stream_is_pinned():
    # were these to change, every stored threshold would silently belong to other noise
    first, second = noise_bank(TWO_LEVELS, 4, 5, seed=7)
    expected = torch.tensor([0.983802318572998, -1.4327963590621948, 0.2325132191181183, -1.3612029552459717])
    assert torch.equal(first.flatten()[:4], expected)
    expected = torch.tensor([0.12700358033180237, -0.62722247838974, 0.799038827419281, -0.47992247343063354])
    assert torch.equal(second.flatten()[:4], expected)


def test_shape_dtype_and_distribution():
    (bank,) = noise_bank(Schedule((Level(1e-3, 3),)), 64, 80, seed=0)
    assert bank.shape == (3, 1, 3, 64, 80)
    assert bank.dtype == torch.float32
    assert abs(float(bank.mean())) < 0.02
    assert abs(float(bank.std()) - 1) < 0.02


def test_the_same_arguments_give_the_same_bits():
    for one, other in zip(noise_bank(TWO_LEVELS, 16, 24, 5), noise_bank(TWO_LEVELS, 16, 24, 5), strict=True):
        assert torch.equal(one, other)


def test_another_seed_gives_other_noise():
    assert not torch.equal(noise_bank(TWO_LEVELS, 16, 24, 5)[0], noise_bank(TWO_LEVELS, 16, 24, 6)[0])


def test_more_draws_keep_the_first_ones():
    (few,) = noise_bank(Schedule((Level(1e-3, 2),)), 16, 16, 1)
    (many,) = noise_bank(Schedule((Level(1e-3, 5),)), 16, 16, 1)
    assert torch.equal(many[:2], few)


def test_levels_and_draws_are_independent():
    first, second = noise_bank(TWO_LEVELS, 32, 32, 1)
    draws = torch.cat([first, second]).flatten(1)
    assert (torch.corrcoef(draws) - torch.eye(6)).abs().max() < 0.08


def test_a_level_keeps_its_noise_when_others_change():
    wider = Schedule((Level(0.5, 7), Level(1e-2, 4), Level(0.1, 1)))
    assert torch.equal(noise_bank(wider, 16, 16, 1)[1], noise_bank(TWO_LEVELS, 16, 16, 1)[1])


def test_antithetic_draws_are_pairs_of_opposite_sign():
    (pairs,) = noise_bank(Schedule((Level(1e-3, 4),), noise="antithetic"), 16, 16, 1)
    (plain,) = noise_bank(Schedule((Level(1e-3, 2),)), 16, 16, 1)
    assert torch.equal(pairs[0::2], plain)
    assert torch.equal(pairs[1::2], -plain)


def test_antithetic_noise_refuses_an_odd_number_of_draws():
    with pytest.raises(InputError, match="even number"):
        Schedule((Level(1e-3, 3),), noise="antithetic")
