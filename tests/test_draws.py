import numpy as np

from sprfast.config import Level, Schedule
from sprfast.draws import draws, stacked
from sprfast.noise import noise_bank

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
