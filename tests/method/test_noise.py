import dataclasses

import numpy as np
import pytest
import torch

from sprfast.config import Level, Schedule
from sprfast.errors import InputError
from sprfast.method.noise import draws, noise_bank, stacked

SCHEDULE = Schedule((Level(1e-3, 2), Level(1e-2, 4)), noise="antithetic")
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


def test_draws_of_all_levels_in_their_order():
    bank, together = draws(SCHEDULE, 16, 20, seed=5), stacked(SCHEDULE, 16, 20, seed=5)
    assert [level.shape for level in bank] == [(2, 3, 16, 20), (4, 3, 16, 20)]
    assert together.shape == (6, 3, 16, 20)
    assert together.dtype == np.float32
    assert np.array_equal(together[:2], bank[0])
    assert np.array_equal(together[2:], bank[1])


def test_torch_gets_the_same_numbers():
    for level, tensor in zip(draws(SCHEDULE, 16, 20, seed=5), noise_bank(SCHEDULE, 16, 20, seed=5), strict=True):
        assert np.array_equal(level, tensor[:, 0].numpy())


def test_signs_are_those_of_the_normal_draws():
    normal = Schedule((Level(1e-3, 3), Level(1e-2, 1)))
    signs = stacked(dataclasses.replace(normal, noise="signs"), 16, 20, seed=5)
    gaussian = stacked(normal, 16, 20, seed=5)
    assert signs.dtype == np.float32
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert np.array_equal(signs > 0, gaussian > 0)
    assert abs(signs.mean()) < 0.05
    assert np.unique(np.abs(gaussian)).size > 1000  # the normal ones are left as they are


def test_more_signs_keep_the_first_ones():
    few, many = (draws(Schedule((Level(1e-3, count),), noise="signs"), 16, 16, seed=1)[0] for count in (1, 4))
    assert np.array_equal(many[:1], few)
    assert len({each.tobytes() for each in many}) == 4


def test_without_noise_there_is_one_draw_of_zeros_a_level():
    bank = draws(Schedule((Level(1e-3, 1), Level(1e-2, 1)), noise="none"), 16, 20, seed=5)
    assert [level.shape for level in bank] == [(1, 3, 16, 20)] * 2
    assert all(level.dtype == np.float32 and not level.any() for level in bank)


def test_without_noise_more_than_one_draw_is_refused():
    with pytest.raises(InputError, match="draws: 2 is not allowed, expected 1 without noise"):
        Schedule((Level(1e-3, 1), Level(1e-2, 2)), noise="none")


@pytest.mark.parametrize("noise", ["gaussian", "antithetic", "signs", "none"])
def test_a_schedule_survives_json_with_its_noise(noise):
    schedule = Schedule((Level(1e-3, 1 if noise == "none" else 2),), noise=noise)
    document = schedule.to_json() | {"levels": [level.to_json() for level in schedule.levels]}
    assert Schedule.from_json(document) == schedule


def test_noise_that_is_not_known_is_an_input_error():
    with pytest.raises(InputError, match=r"Schedule\.noise: 'pink' is not allowed"):
        Schedule.from_json({"noise": "pink"})
    levels = [{"draws": 3}]
    with pytest.raises(InputError, match="even number for antithetic"):
        Schedule.from_json({"levels": levels, "antithetic": True})  # as format 1 wrote it
    assert Schedule.from_json({"levels": levels, "antithetic": False}).noise == "gaussian"
