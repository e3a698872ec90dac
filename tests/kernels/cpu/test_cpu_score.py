"""Score, verdict, mask and probe of the C++ engine against `method` and `formats`, bit for bit."""

import ctypes
import math

import numpy as np
import pytest

from sprfast.errors import BackendError, InputError
from sprfast.formats.export_metadata import Probe, probe_image
from sprfast.method import threshold
from sprfast.method.anomaly_map import MAP_SIZE, anomaly_map, smoothing_matrix
from sprfast.method.error_field import ErrorField
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold, Verdict, verdict
from support.cpu_units import TEXT, UnitError, checked, full, pointer, units

pytestmark = pytest.mark.usefixtures("machine")
VERDICTS = (Verdict.PASS, Verdict.REJECT, Verdict.ERROR)  # as C++ has them
BAD_IMAGE, INTERNAL = 3, 6  # of Code
SIZES = [(16, 16), (16, 17), (47, 31), (256, 256), (257, 255), (300, 19), (1, 1), (1, 40), (600, 513)]


def score(errors, anomalies, field=None, window=None):
    result, text = ctypes.c_double(), ctypes.create_string_buffer(TEXT)
    expected = None if field is None else field.expected
    sizes = (1, 1) if field is None else field.size
    code = units().unit_score(
        pointer(expected),
        *sizes,
        window or 0,
        pointer(errors),
        *errors.shape,
        pointer(anomalies),
        ctypes.byref(result),
        text,
    )
    checked(code, text)
    return result.value


def same_bits(one, other):
    return np.float64(one).tobytes() == np.float64(other).tobytes() or (math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize("window", [None, 1, 2, 8, 31, 500, 4096])
@pytest.mark.parametrize("size", [1, 2, 3, 16, 31, 192, 255, 256, 257, 307, 511, 512, 513, 700, 1024])
def test_smoothing_matrix(size, window):
    matrix = full(MAP_SIZE * size + 2, 7.5, np.float32)
    units().unit_smoothing_matrix(size, window or 0, ctypes.c_void_p(matrix.ctypes.data + 4))
    assert matrix[0] == matrix[-1] == 7.5
    expected = smoothing_matrix(size, window)
    np.testing.assert_array_equal(matrix[1:-1].reshape(expected.shape).view(np.uint32), expected.view(np.uint32))


def test_the_score_is_the_maximum_of_the_map():
    random = np.random.default_rng(0)
    errors = np.ones((16, 16), np.float32)
    for _ in range(20):
        anomalies = random.standard_normal((MAP_SIZE, MAP_SIZE), np.float32)
        assert same_bits(score(errors, anomalies), ScoringMode().score(errors, anomalies))
    for place in (0, 1, 15, 16, 4711, MAP_SIZE**2 - 1):
        for value in (np.nan, np.inf, 1e30):
            marked = anomalies.copy()
            marked.reshape(-1)[place] = value
            assert same_bits(score(errors, marked), ScoringMode().score(errors, marked))
    anomalies.fill(-np.inf)
    assert score(errors, anomalies) == -np.inf


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_score_with_an_error_field(height, width, window):
    random = np.random.default_rng(height + width)
    field = ErrorField(random.uniform(1e-3, 5, (height, width)).astype(np.float32), 3)
    mode = ScoringMode(error_field=field, window=window)
    errors = random.chisquare(3, (height, width)).astype(np.float32)
    anomalies = anomaly_map(errors)
    assert same_bits(score(errors, anomalies, field, window), mode.score(errors, anomalies))
    for value in (np.nan, np.inf, 3e38, 0.0):
        errors[height // 2, width // 3] = value
        assert same_bits(score(errors, anomalies, field, window), mode.score(errors, anomalies))


def test_errors_that_are_not_of_the_fields_size_are_refused():
    field = ErrorField(np.ones((16, 17), np.float32), 1)
    with pytest.raises(InputError) as expected:
        field.require_size((17, 16), "frame")
    errors = np.ones((17, 16), np.float32)
    with pytest.raises(UnitError) as refused:
        score(errors, anomaly_map(errors), field)
    assert refused.value.args == (BAD_IMAGE, str(expected.value).removeprefix("frame: "))


@pytest.mark.parametrize(
    "value", [0.0, 0.1, float(np.float32(0.1)), 1e-300, 5e-324, math.inf, -math.inf, math.nan, 1e38]
)
@pytest.mark.parametrize("limit", [None, 0.1, 0.0, -1.0, 1e300])
def test_verdict(value, limit):
    given = None if limit is None else ctypes.byref(ctypes.c_double(limit))
    text = ctypes.create_string_buffer(TEXT)
    decided = VERDICTS[units().unit_verdict(ctypes.c_double(value), given, text)]
    assert decided is verdict(value, None if limit is None else threshold.manual(limit))
    reasons = {None: "the model has no threshold: run `sprfast calibrate`"}
    expected = reasons.get(limit, "") if math.isfinite(value) else f"the score is {value}"
    assert text.value.decode() == expected


@pytest.mark.parametrize("with_field", [False, True])
@pytest.mark.parametrize("limit", [None, 0.1])
@pytest.mark.parametrize("map_limit", [None, 0.3, float(np.float32(0.3))])
def test_pred_mask(with_field, limit, map_limit):
    field = ErrorField(np.ones((1, 1), np.float32), 1) if with_field else None
    limits = (threshold.manual(limit) if limit else None, MapThreshold(map_limit, 1, 0.1) if map_limit else None)
    value = ScoringMode(error_field=field, threshold=limits[0], map_threshold=limits[1]).map_value
    anomalies = np.random.default_rng(0).random((MAP_SIZE, MAP_SIZE), np.float32)
    anomalies[0, :5] = np.nan, np.inf, -np.inf, np.float32(0.1), np.float32(0.3)
    mask = full(MAP_SIZE**2 + 2, 7, np.uint8)
    doubles = [ctypes.byref(ctypes.c_double(each)) if each else None for each in (limit, map_limit)]
    marked = units().unit_pred_mask(
        pointer(field.expected if field else None), *doubles, pointer(anomalies), ctypes.c_void_p(mask.ctypes.data + 1)
    )
    assert marked == (value is not None)
    assert mask[0] == mask[-1] == 7
    if value is not None:
        expected = ~(anomalies.astype(np.float64) <= value)  # of engine.predictor.Result
        np.testing.assert_array_equal(mask[1:-1].reshape(expected.shape), expected)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (19, 43), (192, 192), (33, 307), (1, 1), (2, 3)])
def test_probe_image(height, width):
    image = full(3 * height * width + 2, 7.5, np.float32)
    units().unit_probe_image(height, width, ctypes.c_void_p(image.ctypes.data + 4))
    assert image[0] == image[-1] == 7.5
    expected = probe_image(height, width).reshape(-1)
    np.testing.assert_array_equal(image[1:-1].view(np.uint32), expected.view(np.uint32))


def checked_probe(expected, errors):
    """The relative RMS error of a probe's error map."""
    error, text = ctypes.c_double(), ctypes.create_string_buffer(TEXT)
    code = units().unit_check_probe(
        pointer(expected), pointer(errors), errors.size, ctypes.c_double(1e-4), ctypes.byref(error), text
    )
    checked(code, text)
    return error.value


PROBED = np.random.default_rng(0).random((5, 7), np.float32)


@pytest.mark.parametrize("change", [0.0, 1e-6, 1e-5])
def test_the_probes_error_map_may_be_off_by_the_tolerance(change):
    errors = PROBED + np.float32(change)
    assert checked_probe(PROBED, errors) == pytest.approx(Probe(PROBED, 1e-4).check(errors, "cpu"), rel=1e-12)


@pytest.mark.parametrize("change", [1e-3, 0.5, math.nan, math.inf, 1e38])
def test_a_probes_error_map_that_is_off_by_more_is_refused_as_in_python(change):
    errors = PROBED.copy()
    errors[2, 3] += np.float32(change)
    with pytest.raises(BackendError) as expected:
        Probe(PROBED, 1e-4).check(errors, "cpu")
    with pytest.raises(UnitError) as refused:
        checked_probe(PROBED, errors)
    assert refused.value.args == (INTERNAL, str(expected.value).removeprefix("cpu: "))
