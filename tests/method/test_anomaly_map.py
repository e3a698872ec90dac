import tracemalloc

import numpy as np
import pytest
import torch

from sprfast.method.anomaly_map import BOX_SIZE, LARGEST_BILINEAR, MAP_SIZE, anomaly_map, reach, smoothing_matrix


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
def test_above_512_a_place_is_the_mean_of_what_it_covers(side):
    """Of pixels cut into 256 parts each, of which every place covers `side`."""
    errors = np.random.default_rng(0).random((side, 16), np.float32)
    covered = np.repeat(errors.astype(np.float64), MAP_SIZE, axis=0).reshape(MAP_SIZE, side, 16).mean(axis=1)
    resampled = torch.nn.functional.interpolate(
        torch.from_numpy(covered)[None, None], (MAP_SIZE, MAP_SIZE), mode="bilinear"
    )
    expected = torch.nn.functional.avg_pool2d(resampled, BOX_SIZE, stride=1, padding=BOX_SIZE // 2)[0, 0].numpy()
    np.testing.assert_allclose(anomaly_map(errors), expected, rtol=1e-6)
    np.testing.assert_allclose(smoothing_matrix(side) @ errors @ smoothing_matrix(16).T, expected, rtol=1e-5)


@pytest.mark.parametrize("side", [512, 513, 700, 1537, 5000])
def test_every_pixel_of_a_large_side_counts_alike(side):
    """Near the edges the box filter takes padding in place of pixels, and so a pixel for less."""
    weights, inside = smoothing_matrix(side).sum(axis=0), slice(side // 8, -side // 8)
    np.testing.assert_allclose(weights[inside], MAP_SIZE / side, rtol=1e-6)
    assert weights.min() > 0.5 * MAP_SIZE / side


def test_the_change_of_definition_is_seamless():
    """At 512 pixels bilinear resampling is the mean of what a place covers."""
    assert LARGEST_BILINEAR == 512
    by_area = np.kron(np.eye(MAP_SIZE), [0.5, 0.5])
    half = BOX_SIZE // 2
    box = sum(np.eye(MAP_SIZE, k=shift) for shift in range(-half, half + 1)) / BOX_SIZE
    np.testing.assert_allclose(smoothing_matrix(512), box @ by_area, rtol=1e-6)


def scratched(height, width, row, column):
    """The score of a scratch one pixel wide and seven long in noise, over that of the noise."""
    errors = np.random.default_rng(0).chisquare(3, (height, width)).astype(np.float32)
    plain = anomaly_map(errors).max()
    errors[row : row + 7, column] += 400.0
    return anomaly_map(errors).max() / plain


def test_a_scratch_on_a_strip_is_found_at_each_of_32_places_as_on_a_square_of_its_area():
    places = np.random.default_rng(1).integers(0, (57, 1600), (32, 2))
    strip = [scratched(64, 1600, *place) for place in places]
    square = [scratched(320, 320, 20 + 9 * index, 300 - 9 * index) for index in range(32)]
    assert min(strip) > 1.2
    assert min(strip) > 0.9 * min(square)


@pytest.mark.parametrize(
    ("size", "window", "places"),
    [(64, 8, 33), (1600, 8, 1), (256, 31, 31), (256, 2, 3), (256, 1, 1), (64, 64, 255), (16, 4096, 255), (65536, 1, 1)],
)
def test_a_window_is_the_odd_number_of_places_nearest_to_its_pixels(size, window, places):
    assert 2 * reach(size, window) + 1 == places
    weights = smoothing_matrix(size, window).sum(axis=1, dtype=np.float64)
    assert weights[MAP_SIZE // 2] == pytest.approx(1.0, rel=1e-5)
    assert weights[0] == pytest.approx((places + 1) / 2 / places, rel=1e-5)  # the rest is padding


@pytest.mark.parametrize("size", [(16, 70), (64, 700)])
def test_a_map_of_a_window_is_what_its_matrices_say(size):
    errors = np.random.default_rng(0).random(size, np.float32)
    rows, columns = (smoothing_matrix(side, 8) for side in size)
    np.testing.assert_allclose(anomaly_map(errors, 8), rows @ errors @ columns.T, rtol=1e-5)


def good_part(height, width, seed):
    """The errors of one: noise whose strength follows a smooth texture."""
    texture = 1 + 0.3 * np.sin(np.arange(width) / 9) * np.cos(np.arange(height) / 7)[:, None]
    return (texture * np.random.default_rng(seed).chisquare(3, (height, width))).astype(np.float32)


def found(height, width, window):
    """Of 32 faint scratches of eleven pixels, along and across, those above the score of every good
    part.
    """
    limit = max(anomaly_map(good_part(height, width, seed), window).max() for seed in range(5))
    count = 0
    for index, (row, column) in enumerate(np.random.default_rng(1).integers(0, (height - 11, width - 11), (32, 2))):
        errors = good_part(height, width, 100 + index)
        errors[row : row + 11 ** (index % 2), column : column + 11 ** (1 - index % 2)] += 30.0
        count += anomaly_map(errors, window).max() > limit
    return count


def test_with_a_window_of_its_size_a_scratch_is_found_on_a_strip_as_on_a_square():
    assert found(64, 1600, 8) == found(320, 320, 8) == 32
    assert found(64, 1600, None) < 20


def test_the_longest_input_takes_little_memory_before_it_is_scored():
    tracemalloc.start()
    try:
        smoothing_matrix(16_384)
        assert tracemalloc.get_traced_memory()[1] < 2**28  # a square of the side would be 2 GiB
    finally:
        tracemalloc.stop()
