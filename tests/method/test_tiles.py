import numpy as np
import pytest

from sprfast.method import tiles


@pytest.mark.parametrize("tile", [16, 17, 192])
@pytest.mark.parametrize("extra", [1, 3, 11, 12, 13, 100, 1408])
def test_tiles_lie_evenly_flush_with_the_border_and_as_few_as_overlap_by_a_quarter(tile, extra):
    starts = tiles.starts(tile + extra, tile)
    steps = np.diff(starts)
    assert (starts[0], starts[-1]) == (0, extra)
    assert 0 < steps.min() <= steps.max() <= min(steps.min() + 1, 3 * tile / 4)
    assert (len(steps) - 1) * (tile * 3 // 4) < extra


def test_a_side_of_at_most_a_tile_has_one():
    assert tiles.starts(16, 16) == tiles.starts(16, 17) == [0]
    assert tiles.shape((40, 20), 32) == (32, 20)
    assert tiles.shape((40, 20), None) == (40, 20)


@pytest.mark.parametrize("size", [(16, 100), (50, 37), (16, 16)])
def test_what_is_computed_pixel_by_pixel_is_the_same_by_way_of_tiles(size):
    x = np.random.default_rng(0).random((2, 3, *size), np.float32)
    calls = []

    def of_tiles(part):
        calls.append(part.shape)
        return part.max(axis=1, keepdims=True)

    got = tiles.error_maps(x, 16, of_tiles)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, x.max(axis=1, keepdims=True), rtol=1e-6)
    assert {shape[1:] for shape in calls} == {(3, 16, 16)}
    assert max(shape[0] for shape in calls) <= tiles.TOGETHER


def test_where_tiles_overlap_the_error_is_their_mean():
    errors = np.stack([np.full((1, 16, 16), value, np.float32) for value in (1.0, 4.0)])
    joined = tiles.joined(errors, (16, 24), 16)
    assert joined[0, 5].tolist() == [1.0] * 8 + [2.5] * 8 + [4.0] * 8
