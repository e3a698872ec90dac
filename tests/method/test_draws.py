import dataclasses

import numpy as np
import pytest

from sprfast.config import Level, Schedule
from sprfast.errors import InputError
from sprfast.method.draws import draws, stacked
from sprfast.method.noise import noise_bank

SCHEDULE = Schedule((Level(1e-3, 2), Level(1e-2, 4)), noise="antithetic")


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
