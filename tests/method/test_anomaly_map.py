import tracemalloc

import numpy as np
import pytest
import torch

from sprfast.method.anomaly_map import BOX_SIZE, MAP_SIZE, anomaly_map, skipped, smoothing_matrix


@pytest.mark.parametrize("size", [16, 70, 255, 256, 257, 600])
def test_a_row_is_a_mean_of_pixels_and_padding(size):
    matrix = smoothing_matrix(size)
    assert matrix.shape == (MAP_SIZE, size)
    assert matrix.dtype == np.float32
    assert matrix.min() >= 0.0
    counts = np.minimum(np.arange(MAP_SIZE), BOX_SIZE // 2) + np.minimum(np.arange(MAP_SIZE)[::-1], BOX_SIZE // 2) + 1
    np.testing.assert_allclose(matrix.sum(axis=1), counts / BOX_SIZE, rtol=1e-6)


def test_a_map_of_256_pixels_is_averaged_only():
    row = smoothing_matrix(MAP_SIZE)[100]
    assert np.flatnonzero(row).tolist() == list(range(85, 116))
    np.testing.assert_allclose(row[85:116], 1 / 31, rtol=1e-6)


def test_the_matrix_that_all_share_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        smoothing_matrix(64)[0, 0] = 1.0
    assert smoothing_matrix(64) is smoothing_matrix(64)


@pytest.mark.parametrize("size", [(16, 70), (64, 64), (300, 256)])
def test_a_map_is_what_pytorch_resamples_and_averages(size):
    errors = np.random.default_rng(0).random(size, np.float32)
    resampled = torch.nn.functional.interpolate(
        torch.from_numpy(errors)[None, None].double(), (MAP_SIZE, MAP_SIZE), mode="bilinear"
    )
    expected = torch.nn.functional.avg_pool2d(resampled, BOX_SIZE, stride=1, padding=BOX_SIZE // 2)[0, 0].numpy()
    found = anomaly_map(errors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(smoothing_matrix(size[0]) @ errors @ smoothing_matrix(size[1]).T, expected, rtol=1e-5)


@pytest.mark.parametrize("side", [513, 700, 1537])
def test_pixels_that_no_place_looks_at_are_counted(side):
    share = 1 - float((smoothing_matrix(side) > 0).any(axis=0).mean())
    assert f"here {share:.0%} of them" in skipped(side, 256)


def test_the_longest_input_takes_little_memory_before_it_is_scored():
    tracemalloc.start()
    try:
        skipped(16, 262_144)
        smoothing_matrix(16_384)
        assert tracemalloc.get_traced_memory()[1] < 2**28  # a square of the side would be 2 GiB
    finally:
        tracemalloc.stop()
