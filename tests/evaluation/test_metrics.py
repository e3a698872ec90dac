import itertools
import warnings

import numpy as np
import pytest

from sprfast.errors import InputError
from sprfast.evaluation.metrics import AUPRO_LIMIT, KEYS, Metric, evaluate, mean


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def case(seed=0, levels=None, images=6, side=16):
    """Scores, labels, maps, masks with several regions; `levels` quantises the maps to make
    ties.
    """
    rng = np.random.default_rng(seed)
    labels = (np.arange(images) % 2).astype(int)
    masks = np.zeros((images, side, side), bool)
    for i in np.flatnonzero(labels):
        for top, left, height, width in rng.integers([0, 0, 1, 1], [side - 4, side - 4, 5, 5], (3, 4)):
            masks[i, top : top + height, left : left + width] = True
    maps = (rng.normal(size=masks.shape) + 1.2 * masks).astype(np.float32)
    if levels:
        maps = np.round(maps * levels / 4).astype(np.float32)
    return maps.max(axis=(1, 2)), labels, maps, masks


def regions_of(mask):
    """Pixel lists of the 8-connected regions, by flood fill."""
    left = {tuple(pixel) for pixel in np.argwhere(mask)}
    while left:
        region, front = [], [left.pop()]
        while front:
            y, x = front.pop()
            region.append((y, x))
            for neighbour in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    front.append(neighbour)
        yield tuple(np.transpose(region))


def aupro_by_loops(maps, masks):
    """The definition: a point of (false-positive rate, mean overlap) for each threshold, trapezoids
    to the limit.
    """
    regions = [maps[i][region] for i in range(len(maps)) for region in regions_of(masks[i])]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        false_positive_rate = float(np.mean(maps[~masks] >= threshold))
        points.append((false_positive_rate, float(np.mean([np.mean(values >= threshold) for values in regions]))))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= AUPRO_LIMIT or x1 == x0:
            continue
        end = min(x1, AUPRO_LIMIT)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / AUPRO_LIMIT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 1, 2, 8], ids=["distinct", "4 levels", "8 levels", "32 levels"])
def test_aupro_equals_the_definition_in_loops(seed, levels):
    scores, labels, maps, masks = case(seed, levels)
    assert evaluate(scores, labels, maps, masks)["AUPRO"].value == pytest.approx(aupro_by_loops(maps, masks), abs=1e-12)


def test_aupro_counts_regions_alike_whatever_their_size():
    masks = np.zeros((2, 10, 10), bool)
    masks[1, :6, :6] = True  # 36 pixels, missed
    masks[1, 9, 9] = True  # 1 pixel, found
    maps = np.zeros((2, 10, 10), np.float32)
    maps[1, 9, 9] = 1.0
    # one region of two is found before any false positive; all the rest is tied at the last step, a
    # ramp over [0, 1]
    expected = 0.5 + 0.5 * AUPRO_LIMIT / 2
    assert evaluate([0.0, 1.0], [0, 1], maps, masks)["AUPRO"].value == pytest.approx(expected)


def test_pixels_that_touch_at_a_corner_are_one_region_and_images_do_not_join():
    masks = np.zeros((3, 6, 6), bool)
    masks[1, 0, 0] = masks[1, 1, 1] = True
    masks[2, 1, 1] = True
    maps = np.zeros((3, 6, 6), np.float32)
    maps[1, 0, 0] = 1.0  # half of one region of two
    expected = 0.25 + 0.75 * AUPRO_LIMIT / 2
    assert evaluate([0.0, 1.0, 1.0], [0, 1, 1], maps, masks)["AUPRO"].value == pytest.approx(expected)


@pytest.mark.parametrize("levels", [None, 2])
def test_auroc_equals_hand_counted_pairs(levels):
    scores, labels, maps, masks = case(3, levels, images=4, side=12)
    result = evaluate(scores, labels, maps, masks)
    for key, good, bad in (
        ("image_AUROC", scores[labels == 0], scores[labels == 1]),
        ("pixel_AUROC", maps[~masks], maps[masks]),
    ):
        wins = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
        assert result[key].value == pytest.approx(wins / (len(good) * len(bad)), abs=1e-12)


def test_f1_max_equals_the_best_of_all_thresholds():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 30)
    scores = np.round(rng.normal(size=30) + labels, 1)
    best = max(2 * np.sum(labels[scores >= t]) / (np.sum(scores >= t) + labels.sum()) for t in scores)
    assert evaluate(scores, labels, None, None)["F1_max"].value == pytest.approx(best)


def test_f1_max_with_every_anomalous_image_below_the_good_ones():
    assert evaluate([3.0, 2.0, 1.0], [0, 0, 1], None, None)["F1_max"].value == pytest.approx(0.5)


def test_perfect_maps_and_scores_give_one():
    _, labels, _, masks = case()
    assert [metric.value for metric in evaluate(labels * 1.0, labels, masks.astype(np.float32), masks).values()] == [
        1.0
    ] * len(KEYS)


def test_constant_scores_and_maps_are_finite():
    _, labels, maps, masks = case()
    result = evaluate(np.ones(len(labels)), labels, np.ones_like(maps), masks)
    assert result["image_AUROC"].value == 0.5
    assert result["pixel_AUROC"].value == 0.5
    assert result["AUPRO"].value == pytest.approx(AUPRO_LIMIT / 2)
    assert result["F1_max"].value == pytest.approx(2 / 3)


def test_no_anomalies_makes_all_metrics_undefined():
    scores, _, maps, masks = case()
    result = evaluate(scores, np.zeros(len(scores)), maps, np.zeros_like(masks))
    assert list(result) == list(KEYS)
    assert all(metric.value is None and metric.reason for metric in result.values())
    assert "no anomalous" in result["image_AUROC"].reason
    assert "empty" in result["AUPRO"].reason


def test_no_good_images_leaves_only_pixel_metrics():
    scores, _, maps, masks = case()
    result = evaluate(scores, np.ones(len(scores)), maps, masks)
    assert result["image_AUROC"] == result["F1_max"] == Metric(None, "there are no good images")
    assert result["AUPRO"].value is not None
    assert result["pixel_AUROC"].value is not None


def test_missing_maps_or_masks_leave_only_image_metrics():
    scores, labels, maps, masks = case()
    for result, word in (
        (evaluate(scores, labels, maps, None), "masks"),
        (evaluate(scores, labels, None, masks), "maps"),
    ):
        assert result["image_AUROC"].value is not None
        assert result["AUPRO"].value is None
        assert word in result["pixel_AUROC"].reason


def test_masks_without_a_good_pixel_are_undefined():
    result = evaluate([1.0], [1], np.ones((1, 4, 4), np.float32), np.ones((1, 4, 4), bool))
    assert result["AUPRO"].value is None
    assert result["pixel_AUROC"].value is None


def test_no_images_at_all_is_undefined():
    assert evaluate(np.empty(0), np.empty(0), None, None)["image_AUROC"].value is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_score_or_map_is_an_input_error_that_names_the_image(bad):
    scores, labels, maps, masks = case()
    scores[2] = bad
    with pytest.raises(InputError, match="scores: image 2"):
        evaluate(scores, labels, maps, masks)
    scores, labels, maps, masks = case()
    maps[3, 0, 0] = bad
    with pytest.raises(InputError, match="maps: image 3"):
        evaluate(scores, labels, maps, masks)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": [0, 1]}, "scores and labels: shapes"),
        ({"labels": np.arange(6)}, "labels: expected 0"),
        ({"scores": np.arange(6)}, "expected floats"),
        ({"maps": np.zeros((6, 8, 8), np.float32)}, "maps and masks: shapes"),
        ({"maps": np.zeros((6, 16, 16), int)}, "expected float and bool"),
        ({"masks": np.zeros((6, 16, 16))}, "expected float and bool"),
        ({"labels": [1, 0, 1, 0, 1, 0]}, "image 1 is labelled good"),
    ],
)
def test_arrays_that_do_not_belong_together_are_input_errors(change, match):
    arrays = dict(zip(("scores", "labels", "maps", "masks"), case(), strict=True)) | change
    with pytest.raises(InputError, match=match):
        evaluate(**arrays)


def test_mean_of_categories():
    rows = [dict.fromkeys(KEYS, Metric(0.5)), dict.fromkeys(KEYS, Metric(1.0))]
    assert mean(rows) == dict.fromkeys(KEYS, Metric(0.75))


def test_mean_with_an_undefined_category_is_undefined_and_says_how_many():
    rows = [dict.fromkeys(KEYS, Metric(0.5)), {**dict.fromkeys(KEYS, Metric(1.0)), "AUPRO": Metric(None, "no masks")}]
    assert mean(rows)["AUPRO"] == Metric(None, "undefined in 1 of 2 categories")
    assert mean(rows)["image_AUROC"] == Metric(0.75)


def test_mean_of_nothing_is_an_input_error():
    with pytest.raises(InputError, match="no categories"):
        mean([])


def caught(good, bad):
    labels = np.r_[np.zeros(len(good)), np.ones(len(bad))]
    return evaluate(np.r_[good, bad].astype(np.float64), labels, None, None)["caught"].value


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        (np.arange(10), [8, 9, 9.5, 10], 2 / 4),  # above the largest good score, and not at it
        (np.arange(999), [997.5, 998, 998.5], 1 / 3),  # 0.1 % of 999 is no whole image
        (np.arange(1000), [997.5, 998, 998.5], 1 / 3),  # of 1000 it is one: above the second largest
        (np.arange(1999), [1996.5, 1997, 1997.5], 1 / 3),
        (np.arange(3000), [2995.5, 2996, 2996.5, 2997], 2 / 4),
        (np.r_[np.arange(998), 998, 998], [997.5, 998, 999], 1 / 3),  # the two largest are tied: neither may be above
        (np.ones(5), [1, 1, 1], 0.0),
        (np.ones(5), [2, 3], 1.0),
    ],
)
def test_caught_is_what_lies_above_all_but_a_thousandth_of_the_good_images(good, bad, expected):
    rng = np.random.default_rng(0)
    assert caught(rng.permutation(good), rng.permutation(bad)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [999, 1000, 2500, 10_000])
def test_caught_rejects_at_most_a_thousandth_of_the_good_images_and_no_lower_threshold_does(count):
    rng = np.random.default_rng(count)
    good, bad = np.round(rng.normal(size=count), 3), np.round(rng.normal(size=200) + 3, 3)
    allowed = [t for t in np.unique(good) if np.sum(good > t) * 1000 <= count]
    assert caught(good, bad) == np.mean(bad > min(allowed))


def test_caught_is_undefined_where_there_are_images_of_one_kind_only():
    for labels, reason in ((np.zeros(3), "no anomalous"), (np.ones(3), "no good")):
        metric = evaluate(np.arange(3.0), labels, None, None)["caught"]
        assert metric.value is None
        assert reason in metric.reason


@pytest.mark.parametrize("levels", [None, 1, 2, 8], ids=["distinct", "4 levels", "8 levels", "32 levels"])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_auroc_equals_that_of_scikit_learn(seed, levels):
    from sklearn.metrics import roc_auc_score

    scores, labels, maps, masks = case(seed, levels)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert 0.55 < expected < 0.95
    assert evaluate(scores, labels, maps, masks)["pixel_AUROC"].value == pytest.approx(expected, abs=1e-12)
