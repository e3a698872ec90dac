"""Noise of the C++ engine against `method.noise`, bit for bit."""

import ctypes

import numpy as np
import pytest

from sprfast.config import Level, Schedule
from sprfast.method import noise
from support.cpu_units import full, units

pytestmark = pytest.mark.usefixtures("machine")
KINDS = ("gaussian", "antithetic", "signs", "none")  # as NoiseKind has them


def drawn(schedule, height, width, seed):
    """(D, 3, height, width), inside memory that must stay as it is."""
    counts = (ctypes.c_int * len(schedule.levels))(*(level.draws for level in schedule.levels))
    guarded = full(schedule.draws * 3 * height * width + 2, 7.5, np.float32)
    start = ctypes.c_void_p(guarded.ctypes.data + 4)
    kind = KINDS.index(schedule.noise)
    units().unit_draws(len(schedule.levels), counts, kind, height, width, ctypes.c_uint32(seed), start)
    assert guarded[0] == guarded[-1] == 7.5
    return guarded[1:-1].reshape(-1, 3, height, width)


@pytest.mark.parametrize("seed", [0, 1, 20260101, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (16, 16), (19, 33), (64, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_bits_of_numpy(seed, height, width, kind):
    draws = (1,) if kind == "none" else (4, 2)
    schedule = Schedule(tuple(Level(draws=count) for count in draws), noise=kind)
    expected = noise.stacked(schedule, height, width, seed)
    np.testing.assert_array_equal(drawn(schedule, height, width, seed).view(np.uint32), expected.view(np.uint32))


def test_many_levels_and_draws():
    schedule = Schedule(tuple(Level(draws=count) for count in (1, 3, 2, 7, 1)))
    expected = noise.stacked(schedule, 5, 4, 12345)
    np.testing.assert_array_equal(drawn(schedule, 5, 4, 12345).view(np.uint32), expected.view(np.uint32))


def test_a_draw_of_the_networks_usual_size():
    schedule = Schedule((Level(draws=1),))
    expected = noise.stacked(schedule, 192, 307, 3)
    np.testing.assert_array_equal(drawn(schedule, 192, 307, 3).view(np.uint32), expected.view(np.uint32))
