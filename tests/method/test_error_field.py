import base64
import dataclasses
import json
import math

import numpy as np
import pytest

from sprfast.errors import InputError
from sprfast.method import error_field
from sprfast.method.error_field import MAX_SIDE, ErrorField
from sprfast.method.scoring import anomaly_map


def of(value, height=32, width=32, samples=3):
    return ErrorField(np.full((height, width), value, np.float32), samples)


def test_where_good_parts_err_alike_everywhere_the_field_is_twice_their_error():
    field = error_field.fit(np.full((4, 20, 31), 0.25, np.float32))  # the average, and once more as the floor
    assert (field.size, field.samples) == ((20, 31), 4)
    assert field.expected.dtype == np.float32
    np.testing.assert_allclose(field.expected, 0.5, rtol=1e-6)


def test_the_mean_is_blurred_over_a_share_of_each_side_and_raised_by_its_average():
    errors = np.zeros((2, 64, 192), np.float32)
    errors[0, 30, 100] = 2.0  # a mean of 1 over the two images
    field = error_field.fit(errors).expected
    expected = np.full((64, 192), 1 / (64 * 192))
    expected[28:33, 93:108] += 1 / (5 * 15)
    np.testing.assert_allclose(field, expected, rtol=1e-6)


def test_at_the_border_the_field_goes_on_as_it_ends():
    errors = np.zeros((1, 64, 64), np.float32)
    errors[0, :, 0] = 1.0
    field = error_field.fit(errors).expected - 1 / 64
    np.testing.assert_allclose(field[:, 0], 3 / 5, rtol=1e-5)  # the pixel, and the two beside it outside


def test_the_order_of_good_images_does_not_matter_and_each_counts_alike():
    errors = np.random.default_rng(0).random((5, 24, 24), np.float32)
    assert np.array_equal(error_field.fit(errors[::-1]).expected, error_field.fit(errors).expected)
    np.testing.assert_allclose(
        error_field.fit(np.repeat(errors, 3, 0)).expected, error_field.fit(errors).expected, rtol=1e-6
    )
    other = np.concatenate([errors, errors[:1] * 4])
    assert (error_field.fit(other).expected > error_field.fit(errors).expected).all()


@pytest.mark.parametrize("size", [(16, 16), (50, 70), (300, 40)])
def test_the_score_is_the_maximum_of_the_smoothed_quotient(size):
    import torch

    rng = np.random.default_rng(1)
    errors, field = rng.random(size, np.float32), ErrorField(rng.random(size, np.float32) + 0.5, 3)
    quotient = torch.from_numpy(errors / field.expected)[None, None]
    # as the definition smooths
    assert field.score(errors) == pytest.approx(float(anomaly_map(quotient).max()), rel=1e-5)
    assert type(field.score(errors)) is float


def test_a_flat_field_divides_every_score_by_the_same():
    errors = np.random.default_rng(2).random((40, 40), np.float32)
    assert of(0.125, 40, 40).score(errors) == pytest.approx(8 * of(1.0, 40, 40).score(errors), rel=1e-6)


def test_an_error_on_flat_surface_counts_for_more_than_as_large_a_one_on_an_edge():
    good = np.full((6, 64, 64), 0.01, np.float32)
    good[:, :, 40:56] = 0.09  # where good parts err anyway
    field = error_field.fit(good)
    flat, edge = good[0].copy(), good[0].copy()
    flat[20:30, 8:18] += 0.2
    edge[20:30, 42:52] += 0.2
    assert of(1.0, 64, 64).score(edge) > of(1.0, 64, 64).score(flat)
    assert field.score(flat) > 1.5 * field.score(edge)
    assert field.score(flat) > 3 * field.score(good[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_one_error_that_is_no_number_leaves_no_finite_score(poison):
    errors = np.ones((32, 32), np.float32)
    errors[31, 0] = poison
    assert not math.isfinite(of(2.0).score(errors))
    if math.isnan(poison):
        assert math.isnan(of(2.0).score(errors))


@pytest.mark.parametrize(
    ("errors", "match"),
    [
        (np.ones((0, 32, 32), np.float32), "at least one good image"),
        (np.ones((32, 32), np.float32), r"of one size .*, got \[\(32,\)\]"),
        (np.zeros((2, 32, 32), np.float32), "finite, positive"),
        (np.full((2, 32, 32), math.nan, np.float32), "finite, positive"),
        (np.ones((1, 2, MAX_SIDE + 1), np.float32), f"at most {MAX_SIDE}"),
    ],
)
def test_what_cannot_be_fitted_on_is_an_input_error(errors, match):
    with pytest.raises(InputError, match=f"^error field: .*{match}"):
        error_field.fit(errors)


def test_a_pixel_without_any_error_on_good_parts_divides_by_the_floor_and_not_by_zero():
    errors = np.zeros((3, 64, 64), np.float32)
    errors[:, :8] = 0.8
    field = error_field.fit(errors)
    assert field.expected[40:].min() == pytest.approx(0.1)
    assert math.isfinite(field.score(errors[0]))


@pytest.mark.parametrize(
    "expected",
    [
        np.ones(32, np.float32),
        np.ones((1, 32, 32), np.float32),
        np.ones((0, 32), np.float32),
        np.ones((1, MAX_SIDE + 1), np.float32),
        np.ones((32, 32)),
        np.zeros((32, 32), np.float32),
        np.where(np.eye(32) == 1, -1, 1).astype(np.float32),
        np.where(np.eye(32) == 1, np.nan, 1).astype(np.float32),
        np.where(np.eye(32) == 1, np.inf, 1).astype(np.float32),
    ],
    ids=["1-d", "3-d", "empty", "too-wide", "float64", "zeros", "negative", "nan", "infinite"],
)
def test_a_field_that_cannot_divide_is_an_input_error(expected):
    with pytest.raises(InputError, match=r"^error field: "):
        ErrorField(expected, 3)


@pytest.mark.parametrize("samples", [0, -1, True, 2.0, None, "3"])
def test_a_field_of_no_image_is_an_input_error(samples):
    with pytest.raises(InputError, match="samples"):
        of(1.0, samples=samples)


def test_json_and_back_bit_for_bit():
    field = error_field.fit(np.random.default_rng(3).random((2, 17, 40), np.float32) * 1e-6)
    got = ErrorField.from_json(json.loads(json.dumps(field.to_json(), allow_nan=False)))
    assert got.expected.tobytes() == field.expected.tobytes()
    assert (got.expected.dtype, got.size, got.samples) == (np.float32, (17, 40), 2)
    assert ErrorField.from_json(of(1.0, MAX_SIDE, 1).to_json()).size == (MAX_SIDE, 1)


def encoded(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": shape} for shape in (None, 5, [32], [32, 32, 1], [-1, 32], [-32, -32], [16, 32])),
        *({"shape": shape} for shape in ([32.0, 32], ["32", 32], [2**70, 1], {})),
        *({"expected": text} for text in (None, 7, "", "?", "é")),
        *({"expected": encoded(values)} for values in (np.ones(1023), np.zeros(1024), np.full(1024, np.nan))),
        *({"samples": samples} for samples in (None, 0, 3.0, True)),
    ],
)
def test_a_damaged_field_is_an_input_error_in_one_line(change):
    with pytest.raises(InputError, match=r"^error field: ") as caught:
        ErrorField.from_json(of(1.0).to_json() | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [None, 5, "field", [], {}, {"shape": [32, 32]}])
def test_what_is_not_a_field_is_an_input_error(document):
    with pytest.raises(InputError, match=r"^error field: "):
        ErrorField.from_json(document)


def test_another_size_than_it_was_fitted_at_is_refused_with_both():
    of(1.0, 32, 48).require_size((32, 48), "part.png")
    for size in ((48, 32), (32, 32), (1, 32, 48)):
        with pytest.raises(InputError, match=r"^part\.png: [0-9x]+ pixels .* the error field was fitted at 32x48"):
            of(1.0, 32, 48).require_size(size, "part.png")


def test_a_field_cannot_be_given_another_map():
    with pytest.raises(dataclasses.FrozenInstanceError):
        of(1.0).samples = 4
