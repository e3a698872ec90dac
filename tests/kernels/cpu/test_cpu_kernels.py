"""Every operator of the CPU kernels, for each instruction set that runs here, against its reference
in float64.
"""

import dataclasses
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprfast.kernels.cpu import library
from sprfast.kernels.cpu.reference import Source
from sprfast.method import scoring
from support import cpu_operators as operators
from support.cpu_kernel_cases import (
    CONVOLUTIONS,
    OPERATORS,
    SMALL,
    Shape,
    arguments,
    assert_correct,
    assert_same_bits,
    inside_nan,
    of_image,
    relative_rms,
    run,
    truth,
)

PANEL = {"avx512": 32, "avx2": 16, "neon": 8, "generic": 8}  # output channels that lie together in a packed weight
THREADS = (2, 3, 5)
BOUNDS = {"raw": 3e-7, "affine": 1e-6, "errors": 5e-7, "maps": 2e-7}  # relative RMS errors against float64
WINOGRAD = 1e-6  # of raw, for sums over at most 128 channels; twice that for more


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.build] * (name == "neon")) for name in library.INSTRUCTION_SETS]
)
def instruction_set(request, monkeypatch):
    """Its name; the operators run as compiled for it, NEON's where need be by an emulator."""
    reason = library.unavailable()
    if reason:
        pytest.skip(reason)
    if request.param in library.available():
        monkeypatch.setattr(library, "operators", lambda precision="float32": library.load(request.param, precision))
    elif request.param == "neon":
        request.getfixturevalue("emulator").replace_operators(monkeypatch)
    else:
        pytest.skip(f"this processor or this build has no {request.param}")
    return request.param


pytestmark = pytest.mark.usefixtures("instruction_set")


@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv3x3(shape):
    narrow = sum(channels for _, channels in shape.sources) <= 128
    assert_correct("conv3x3", shape, {**BOUNDS, "raw": WINOGRAD if narrow else 2 * WINOGRAD})


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (19, 23), (47, 32), (3, 5), (1, 1), (200, 3)])
@pytest.mark.parametrize(
    ("channels", "images", "draws", "noise_per_image"), [(32, 1, 1, False), (64, 2, 3, True), (160, 2, 2, False)]
)
def test_perturb_conv3x3(height, width, channels, images, draws, noise_per_image):
    shape = Shape(height, width, channels, images=images, draws=draws, noise_per_image=noise_per_image)
    assert_correct("perturb_conv3x3", shape, BOUNDS)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (19, 23), (47, 32), (3, 5), (1, 1)])
@pytest.mark.parametrize(
    ("channels", "images", "draws", "noise_per_image"), [(32, 1, 1, False), (64, 2, 3, True), (160, 2, 2, False)]
)
def test_head(height, width, channels, images, draws, noise_per_image):
    shape = Shape(height, width, channels, images=images, draws=draws, noise_per_image=noise_per_image)
    assert_correct("head", shape, BOUNDS)


@pytest.mark.parametrize(
    ("height", "width", "images", "size"),
    [(16, 16, 1, 64), (17, 33, 3, 37), (47, 32, 1, 256), (3, 5, 2, 7), (1, 1, 1, 1)],
)
def test_anomaly_map(height, width, images, size):
    assert_correct("anomaly_map", Shape(height, width, images=images, size=size), BOUNDS)


def test_anomaly_map_with_the_matrices_of_the_score():
    shape = Shape(48, 35, size=256)
    matrices = {
        name: scoring.smoothing_matrix(size, torch.device("cpu")).numpy()
        for name, size in (("rows", 48), ("columns", 35))
    }
    passed = {**arguments("anomaly_map", shape), **matrices}
    assert (
        relative_rms(run("anomaly_map", shape, passed)["maps"], truth("anomaly_map", shape, passed)["maps"])
        <= BOUNDS["maps"]
    )


@pytest.mark.parametrize("operator", ["conv3x3", "perturb_conv3x3"])
def test_mean_far_above_the_deviation(operator):
    """Channels whose mean is 300 deviations: an affine is little worse than those of others."""
    shape = Shape(24, 24, images=2)
    passed = dict(arguments(operator, shape))
    generator = np.random.default_rng(1)
    # swish is the identity at 100; a weight at the centre keeps the border out of the statistics
    if operator == "conv3x3":
        source = passed["sources"][0]
        affine = np.stack([np.ones((2, 32)), np.full((2, 32), 100.0)], axis=1).astype(np.float32)
        raw = (generator.standard_normal(source.raw.shape) * 100 / 300 * math.sqrt(32)).astype(np.float32)
        passed["sources"] = [Source(raw, affine, None, "activation")]
        weight = np.zeros_like(passed["weight"])
        weight[:, :, 1, 1] = generator.choice([-1, 1], (32, 1)) / 32
    else:
        passed["image"] = (100 + generator.standard_normal(passed["image"].shape) * 100 / 300 * math.sqrt(3)).astype(
            np.float32
        )
        passed["std"] = np.full(1, 1e-3, dtype=np.float32)
        weight = np.zeros_like(passed["weight"])
        weight[4::9] = generator.choice([-1, 1], 32) / 3
    passed["weight"], passed["groups"] = weight, 32
    expected = truth(operator, shape, passed)
    ratio = np.abs(expected["raw"].mean(axis=(1, 2))) / expected["raw"].std(axis=(1, 2))
    assert 270 < ratio.min() <= ratio.max() < 330
    got = run(operator, shape, passed)
    for row in range(2):
        assert relative_rms(got["affine"][:, row], expected["affine"][:, row]) <= 3e-6  # from the rounding of raw


@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_for_any_number_of_threads(operator, shape):
    passed = arguments(operator, shape)
    once = run(operator, shape, passed)
    for threads in THREADS:
        assert_same_bits(run(operator, shape, passed, threads), once)


@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_for_an_image_alone(operator, shape):
    passed = arguments(operator, shape)
    batch = run(operator, shape, passed, threads=2)
    for image in range(shape.images):
        alone = run(operator, dataclasses.replace(shape, images=1), of_image(shape, passed, image))
        assert_same_bits(
            alone, {name: value.reshape(shape.images, -1, *value.shape[1:])[image] for name, value in batch.items()}
        )


@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_for_two_calls_at_once(operator):
    shape = SMALL["own-noise"]
    passed = arguments(operator, shape)
    once = run(operator, shape, passed)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(lambda _: run(operator, shape, passed, threads=2), range(8)):
            assert_same_bits(got, once)


def paths(passed):
    """Where the arrays are among the arguments: (name,) or ("sources", index, field)."""
    for name, value in passed.items():
        if name == "sources":
            yield from itertools.product([name], range(len(value)), ("raw", "affine", "embedding"))
        elif isinstance(value, np.ndarray):
            yield (name,)


def array_at(passed, name, index=None, field=None):
    return passed[name] if index is None else getattr(passed[name][index], field)


def replaced_at(array, passed, name, index=None, field=None):
    if index is None:
        return {**passed, name: array}
    sources = list(passed[name])
    sources[index] = dataclasses.replace(sources[index], **{field: array})
    return {**passed, name: sources}


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_not_finite_stays_visible(operator, special):
    """Wherever the definition has NaN or infinity, so has the result."""
    kinds = ("activation", "pooled", "upsampled")
    shape = Shape(9, 11, 32, tuple((kind, 32) for kind in kinds), images=2, draws=2, noise_per_image=True)
    passed = arguments(operator, shape)
    generator = np.random.default_rng(2)
    for path in paths(passed):
        if path == ("sources", kinds.index("pooled"), "raw") and special == -np.inf:
            # the maximum of a window hides it; the statistics of such a map are NaN, so it comes
            # with an affine of NaN
            continue
        changed = inside_nan(array_at(passed, *path))
        changed.reshape(-1)[generator.choice(np.flatnonzero(changed))] = special
        given = replaced_at(changed, passed, *path)
        got = run(operator, shape, given, threads=2)
        for output, touched in non_finite(operator, shape, given).items():
            assert touched.any() or output == "raw", f"{path} reaches no {output}"
            assert not np.isfinite(got[output][touched]).any(), f"{special} in {path} is lost in {output}"


def non_finite(operator, shape, passed):
    """Which results of the definition are not finite; for a matrix's zeros, what they would be
    multiplied with does not count.
    """
    if operator != "anomaly_map":
        return {name: ~np.isfinite(value) for name, value in truth(operator, shape, passed).items()}
    errors, rows, columns = (passed[name] for name in ("errors", "rows", "columns"))
    weighed = [(each != 0).astype(float) for each in (rows, columns)]
    in_rows, in_columns = (~np.isfinite(each).all(axis=1) for each in (rows, columns))
    return {"maps": (weighed[0] @ ~np.isfinite(errors) @ weighed[1].T > 0) | in_rows[:, None] | in_columns}


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_is_not_finite_stays_visible_anywhere_in_a_window(at, special):
    shape = Shape(1, 1, sources=(("pooled", 32),))
    passed = arguments("conv3x3", shape)
    passed["sources"][0].raw[(0, *at)] = special
    assert not np.isfinite(run("conv3x3", shape, passed)["raw"]).any()


@pytest.mark.parametrize("operator", ["conv3x3", "perturb_conv3x3"])
def test_an_infinite_variance_is_nan_in_its_group_and_in_no_other(operator):
    """The map is finite; its squares are not, and an affine of 0·x + beta would hide that."""
    shape = Shape(9, 11)
    passed = arguments(operator, shape)
    loud = (slice(None), 3) if operator == "perturb_conv3x3" else 3
    passed["weight"][loud] *= np.float32(1e25)
    got = run(operator, shape, passed)
    assert np.isfinite(got["raw"]).all()
    assert np.isnan(got["affine"]).any(axis=(0, 1)).nonzero()[0].tolist() == [3]
    assert np.isnan(got["affine"][:, :, 3]).all()


def test_swish():
    """Within 4 units in the last place of the exact value; below -87, where that is under 2e-36,
    within |x|·1.7e-38.
    """
    generator = np.random.default_rng(3)
    x = np.concatenate(
        [np.linspace(-100, 100, 400_001), generator.uniform(-100, 100, 200_000), generator.standard_normal(100_000)]
    )
    x = x.astype(np.float32)
    wide = x.astype(np.longdouble)
    exact = wide / (1 + np.exp(-wide))
    error = np.abs(operators.swish(x) - exact)
    assert (error <= np.where(x < -87, 1.7e-38 * np.abs(wide), 4 * np.spacing(np.abs(exact).astype(np.float32)))).all()


def test_swish_of_special_values():
    smallest = np.float32(1e-45)
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, smallest, -smallest, 1e-39, 1e30, -1e30], dtype=np.float32)
    y = operators.swish(x)
    np.testing.assert_array_equal(y[:3], x[:3])
    assert np.signbit(y[1])
    assert not np.isfinite(y[3:5]).any()
    assert (np.abs(y[5:8] - x[5:8] / 2) <= smallest).all()
    assert y[8] == x[8]
    assert 0 <= -y[9] <= 1.7e-8


POINTS = [Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(7, 4), Fraction(-7, 4)]  # and infinity


def winograd():
    """G (6, 3), Bᵀ (6, 6) and Aᵀ (4, 6) as fractions, from the points."""

    def product(points):
        """Coefficients of the product of (x - point), lowest first, six of them."""
        coefficients = [Fraction(1)]
        for point in points:
            coefficients = [
                low - point * high for low, high in zip([0, *coefficients], [*coefficients, 0], strict=True)
            ]
        return coefficients + [Fraction(0)] * (6 - len(coefficients))

    others = [[q for q in POINTS if q != p] for p in POINTS]
    weights = [
        [p**k / math.prod(p - q for q in rest) for k in range(3)] for p, rest in zip(POINTS, others, strict=True)
    ]
    outputs = [[*(p**k for p in POINTS), Fraction(k == 3)] for k in range(4)]
    return [*weights, [Fraction(k == 2) for k in range(3)]], [*map(product, others), product(POINTS)], outputs


def test_transforms_are_exactly_a_correlation():
    g, b, a = winograd()
    for output, tap, inside in itertools.product(range(4), range(3), range(6)):
        assert sum(a[output][i] * g[i][tap] * b[i][inside] for i in range(6)) == (inside == output + tap)


def test_packed_weights_are_the_transform_rounded_once(instruction_set):
    channels_out, channels_in, panel = 64, 96, PANEL[instruction_set]
    weight = np.random.default_rng(4).standard_normal((channels_out, channels_in, 3, 3)).astype(np.float32)
    g = np.array(winograd()[0], dtype=np.float64)
    exact = np.einsum("iy,okyx,jx->ijok", g, weight.astype(np.float64), g).reshape(
        36, channels_out // panel, panel, channels_in
    )
    expected = exact.transpose(0, 1, 3, 2).ravel()  # planes, panels, input channels, channels of a panel
    packed = operators.pack_conv3x3(weight)
    assert packed.shape == expected.shape
    assert (np.abs(packed - expected) <= np.spacing(np.abs(packed)) / 2 + 1e-15).all()


KINDS = st.sampled_from(["activation", "pooled", "upsampled"])
SHAPES = st.builds(
    Shape,
    height=st.integers(2, 21),
    width=st.integers(2, 21),
    channels=st.sampled_from([32, 64, 96]),
    sources=st.lists(st.tuples(KINDS, st.sampled_from([32, 64])), min_size=1, max_size=3).map(tuple),
    groups=st.sampled_from([1, 2, 8, 16, 32]),
    images=st.integers(1, 2),
    draws=st.integers(1, 3),
    noise_per_image=st.booleans(),
    embedding=st.booleans(),
    size=st.integers(1, 40),
)


@pytest.mark.parametrize("operator", OPERATORS)
def test_any_shape(operator):
    @settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @given(shape=SHAPES, threads=st.integers(1, 4))
    def check(shape, threads):
        assert_correct(
            operator, shape, {**BOUNDS, "raw": WINOGRAD if operator == "conv3x3" else BOUNDS["raw"]}, threads
        )

    check()
