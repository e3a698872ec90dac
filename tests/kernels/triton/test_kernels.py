"""Every operator against its reference in float64."""

import dataclasses
import math

import pytest
import torch

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch, reference
from sprfast.kernels.triton.trials import relative_rms
from sprfast.method.anomaly_map import MAP_SIZE, reach, smoothing_matrix
from support.kernel_cases import DEVICE, OPERATORS, SEED, Shape, arguments, assert_correct, of_images, rows_of, run

RAGGED = Shape(32, 33, 37, more_columns=1)
SHAPES = {
    "two-channels-a-group": Shape(64, 6, 8),
    "one-channel-a-group": Shape(32, 5, 8, images=2),
    "one-group": Shape(16, 6, 8, groups=1),
    "one-row": Shape(64, 1, 40, more_rows=1),
    "one-column": Shape(64, 40, 1, more_columns=1),
    # as the deepest stage of a 16x16 image; statistics of channels alone
    "one-pixel": Shape(128, 1, 1, groups=16, images=3, draws=2),
    "width-not-a-power-of-two": Shape(64, 6, 12),
    "odd-height-and-width": Shape(64, 7, 13, more_rows=1, more_columns=1),
    "12x12x512": Shape(512, 12, 12),  # the deepest stage of a 192x192 image
    "blocks-with-a-ragged-tail": RAGGED,
    "embedding-and-noise-of-each-draw": Shape(32, 6, 10, images=2, draws=3),
    "noise-of-each-image": Shape(32, 6, 10, images=3, draws=2, noise_per_image=True),
}
SIXTEEN_BIT = ("two-channels-a-group", "one-group", "odd-height-and-width", "noise-of-each-image")


def cases(shapes):
    return [
        pytest.param(name, shape, id=f"{name}-{key}")
        for key, shape in shapes.items()
        for name in OPERATORS
        if shape.takes(name)
    ]


@pytest.mark.parametrize(("operator", "shape"), cases(SHAPES))
def test_operator_equals_its_reference(operator, shape):
    given = arguments(operator, shape, torch.float32)
    assert_correct(operator, given, run(operator, given))


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("operator", "shape"), cases({key: SHAPES[key] for key in SIXTEEN_BIT}))
def test_operator_equals_its_reference_in_16_bit_storage(operator, shape, storage):
    # perturb_conv3x3 in bfloat16 also shows that no product has bfloat16 operands: the interpreter
    # multiplies their bit patterns
    given = arguments(operator, shape, storage)
    assert_correct(operator, given, run(operator, given))


@pytest.mark.parametrize("operator", OPERATORS)
def test_ragged_shape_takes_several_programs_and_does_not_fill_the_last(operator):
    with launch.recorded(90) as launches:
        run(operator, arguments(operator, RAGGED, torch.float32, "meta"))
    first = launches[0]
    if operator == "group_norm_swish":  # one program goes through all pixels of its channels
        assert RAGGED.height * RAGGED.width > first.constants["BLOCK"]
    elif operator.startswith("norm_swish"):  # one program, in the interpreter
        assert first.arguments["chunks"] > 1
    else:
        assert math.prod(first.grid) > 1  # of one sample
    assert RAGGED.height * RAGGED.width % first.constants["BLOCK"]


def test_more_chunks_than_are_merged_at_once():
    shape = Shape(16, 67, 65, groups=16)
    with launch.recorded(90) as launches:
        run("perturb_conv3x3", arguments("perturb_conv3x3", shape, torch.float32, "meta"))
    assert launches[1].arguments["chunks"] > launches[1].constants["CHUNKS"]
    given = arguments("perturb_conv3x3", shape, torch.float32)
    assert_correct("perturb_conv3x3", given, run("perturb_conv3x3", given))


@pytest.mark.skipif(not launch.INTERPRETED, reason="a GPU has an order of its own")
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_statistics_have_the_same_bits_in_any_order_of_programs(monkeypatch, storage):
    from triton.runtime.interpreter import interpreter_builder as builder

    given = arguments("group_norm_affine", dataclasses.replace(RAGGED, images=2), storage)
    expected, set_index, ran = run("group_norm_affine", given)["result"].clone(), builder.set_grid_idx, []
    sizes = (*builder.grid_dim[:2],)  # chunks and samples
    programs = [(chunk, sample, 0) for chunk in range(sizes[0]) for sample in range(sizes[1])]
    assert sizes == (3, 2)
    generator = torch.Generator().manual_seed(SEED)
    for order in (range(5, -1, -1), *(torch.randperm(6, generator=generator).tolist() for _ in range(5))):
        turns = iter(order)

        def shuffled(*index, turns=turns):
            ran.append(programs[next(turns)])
            set_index(*ran[-1])

        monkeypatch.setattr(builder, "set_grid_idx", shuffled)
        assert torch.equal(run("group_norm_affine", given)["result"], expected), f"SPRFAST_TEST_SEED={SEED}"
        assert not given["arrived"].any()
    assert ran[:6] == programs[::-1]
    assert sorted(ran) == sorted(6 * programs)


ENDINGS = ("swish", "swish_pool", "swish_head")
ONE_LAUNCH = Shape(32, 33, 37, draws=2)  # three chunks a sample, and several blocks of each ending


def one_launch_of(ending, given, phases, programs):
    """Run these phases alone, in so many programs."""
    from sprfast.kernels.triton import one_launch

    with launch.recorded(90) as launches:
        getattr(kernels, f"norm_{ending}")(*given.values())
    constants = {**launches[0].constants, "PHASES": getattr(one_launch, phases)}
    return dataclasses.replace(launches[0], constants=constants, grid=(programs,))


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_one_launch_gives_the_bits_of_two(ending, storage):
    given = arguments(f"norm_{ending}", ONE_LAUNCH, storage)
    once = {name: value.clone() for name, value in run(f"norm_{ending}", given).items()}
    assert not given["arrived"].any()
    assert set(once) == {"out", "pooled"} & set(given)
    for name in once:
        given[name].fill_(torch.nan)
    common = [given.pop(name) for name in ("raw", "bias", "gamma", "beta", "groups", "arrived")]
    affine = kernels.group_norm_affine(*common)
    getattr(kernels, f"affine_{ending}")(common[0], affine, *given.values())
    for name, value in once.items():
        assert torch.equal(value, given[name]), f"{name}, SPRFAST_TEST_SEED={SEED}"


@pytest.mark.skipif(not launch.INTERPRETED, reason="a GPU runs both phases together")
@pytest.mark.parametrize("programs", [1, 4, 50])  # all, some and none with several chunks
@pytest.mark.parametrize("ending", ENDINGS)
def test_phases_of_one_launch_apart_give_the_bits_of_both_together(ending, programs):
    given = arguments(f"norm_{ending}", ONE_LAUNCH, torch.bfloat16)
    together = {name: value.clone() for name, value in run(f"norm_{ending}", given).items()}
    for name in together:
        given[name].fill_(torch.nan)
    statistics = one_launch_of(ending, given, "STATISTICS", programs)
    activation = one_launch_of(ending, given, "ACTIVATION", programs)
    statistics.run()
    assert not given["arrived"].any()
    assert all(given[name].isnan().all() for name in together)
    dataclasses.replace(
        activation, arguments={**activation.arguments, "p_affine": statistics.arguments["p_affine"]}
    ).run()
    for name, value in together.items():
        assert torch.equal(value, given[name]), f"{name}, SPRFAST_TEST_SEED={SEED}"


@pytest.mark.parametrize(("storage", "resident"), [(torch.bfloat16, 16), (torch.float32, 12)])
def test_one_launch_is_refused_where_not_all_of_its_programs_run_at_once(storage, resident):
    """Of 4 warps each, on a GPU of one multiprocessor."""
    from sprfast.kernels.triton import one_launch

    def chunks(count):
        return arguments("norm_swish", Shape(32, 512, count), storage, "meta")

    for count, taken in ((resident // 4, True), (resident // 4 + 1, False)):
        given = chunks(count)
        with launch.recorded(90, multiprocessors=1) as launches:
            assert (one_launch.unsupported(given["raw"]) is None) == taken
            if taken:
                kernels.norm_swish(*given.values())
                assert launches[0].cooperative
            else:
                with pytest.raises(launch.UnsupportedError, match=f"raw: {count} programs that wait for each other"):
                    kernels.norm_swish(*given.values())


def test_first_convolution_clears_the_counters_of_the_statistics_that_follow():
    given = arguments("perturb_conv3x3", Shape(32, 6, 8, images=2), torch.float32)
    given["arrived"].fill_(-7)
    run("perturb_conv3x3", given)
    assert not given["arrived"].any()


@pytest.mark.parametrize(("height", "width"), [(1, 6), (6, 1), (1, 1)])
def test_pooling_less_than_a_window_writes_the_map_alone(height, width):
    given = arguments("affine_swish_pool", Shape(32, height, width), torch.float32)
    assert given["pooled"].numel() == 0
    expected = torch.empty_like(given["raw"])
    reference.affine_swish(given["raw"], given["affine"], expected)
    expected += given["embedding"][:, :, None, None]
    torch.testing.assert_close(run("affine_swish_pool", given)["out"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((16, 70), None),
        ((16, 70), 12),
        *(pytest.param(size, None, marks=pytest.mark.interpreter) for size in ((192, 40), (40, 600))),
    ],
)
def test_steps_that_an_anomaly_map_leaves_out_change_no_bit(size, window):
    errors = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(SEED))
    matrices = [torch.tensor(smoothing_matrix(side, window)) for side in size]
    banded, whole = (torch.full((1, 1, MAP_SIZE, MAP_SIZE), torch.nan) for _ in range(2))
    kernels.anomaly_map(errors, *matrices, max(reach(side, window) for side in size), banded)
    kernels.anomaly_map(errors, *matrices, MAP_SIZE, whole)
    assert torch.equal(banded, whole), f"SPRFAST_TEST_SEED={SEED}"


@pytest.mark.parametrize("window", [None, 1, 8, 40])
@pytest.mark.parametrize("size", [1, 2, 16, 70, 192, 255, 256, 257, 600, 1537, 16_384])
def test_every_weight_of_a_smoothing_matrix_is_reached_and_little_else(size, window):
    half = reach(size, window)
    matrix, reached = torch.tensor(smoothing_matrix(size, window)), reference.reached(MAP_SIZE, size, half)
    assert reached[matrix != 0].all()
    assert reached.sum(1).max() <= math.ceil((2 * half + 2) * size / MAP_SIZE) + 4


def test_no_pixel_is_left_out_of_the_steps_of_an_anomaly_map():
    """So a NaN anywhere reaches the map."""
    size = 1100, 16
    matrices = [torch.tensor(smoothing_matrix(side), device=DEVICE) for side in size]
    pixels = (0, 547, size[0] - 1)
    errors = torch.zeros(len(pixels), 1, *size, device=DEVICE)
    errors[range(len(pixels)), 0, pixels, 8] = torch.nan
    out = torch.empty(len(pixels), 1, MAP_SIZE, MAP_SIZE, device=DEVICE)
    kernels.anomaly_map(errors, *matrices, 15, out)
    assert out.isnan().flatten(1).any(1).all()
    assert not out.isnan().flatten(1).all(1).any()


@pytest.mark.parametrize("operator", OPERATORS)
def test_nan_in_an_image_reaches_its_output_and_no_other_image(operator):
    shape = Shape(32, 4, 6, images=2, noise_per_image=True)
    given = arguments(operator, shape, torch.float32)
    first = next(iter(given))  # raw, x, z or errors
    clean = {name: rows_of(name, value, [1], shape).clone() for name, value in run(operator, given).items()}
    rows_of(first, given[first], slice(1), shape)[..., 2, 3] = torch.nan
    for name, value in run(operator, given).items():
        assert rows_of(name, value, [0], shape).isnan().any(), name
        assert torch.equal(rows_of(name, value, [1], shape), clean[name]), name


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_image_gives_the_same_bits_alone_and_anywhere_in_a_batch(operator, storage):
    shape = Shape(32, 6, 10, images=3, draws=2, noise_per_image=True)
    given = arguments(operator, shape, storage)
    together = {name: value.clone() for name, value in run(operator, given).items()}
    for name, value in run(operator, given).items():
        assert torch.equal(value, together[name]), f"{name}, second run, SPRFAST_TEST_SEED={SEED}"
    for images in ([1], [2, 0, 1]):
        for name, value in run(operator, of_images(operator, shape, storage, given, images)).items():
            assert torch.equal(value, rows_of(name, together[name], images, shape)), (
                f"{name}, images {images}, SPRFAST_TEST_SEED={SEED}"
            )


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@pytest.mark.parametrize("of", [reference, kernels], ids=["reference", "kernels"])
def test_an_infinite_variance_is_nan_in_its_group_and_in_no_other(of):
    """The map is finite; its squares are not, and an affine of 0·x + beta would hide that."""
    given = arguments("group_norm_affine", Shape(32, 5, 8), torch.float32)
    given["raw"][:, 3] *= 1e25
    assert of.group_norm_affine(**given).isnan().all(1)[0].nonzero().flatten().tolist() == [3]
    given["out"] = out = torch.empty_like(given["raw"])
    del given["arrived"]
    of.group_norm_swish(**given)
    assert out.isnan().all((2, 3))[0].nonzero().flatten().tolist() == [3]
    given = arguments("perturb_conv3x3", Shape(32, 5, 8), torch.float32)
    given["weight"][:, 3] *= 1e25
    assert of.perturb_conv3x3(**given).isnan().all(1)[0].nonzero().flatten().tolist() == [3]
    assert given["out"].isfinite().all()


# The scale of a group is 1 / std when gamma is one; these give it as each operator with statistics
# computes it.


def affine_rstd(raw, groups):
    ones, zeros = torch.ones(raw.shape[1], device=DEVICE), torch.zeros(raw.shape[1], device=DEVICE)
    arrived = torch.zeros(raw.shape[0] + 2, dtype=torch.int32, device=DEVICE)
    return kernels.group_norm_affine(raw, zeros, ones, zeros, groups, arrived)[:, 0].unflatten(1, (groups, -1))[:, :, 0]


def fitted_rstd(raw, groups):
    """From the output of `group_norm_swish`: with beta = 30 swish is the identity, and the output a
    straight line over the input.
    """
    ones, out = torch.ones(raw.shape[1], device=DEVICE), torch.full_like(raw, torch.nan)
    kernels.group_norm_swish(raw, 0 * ones, ones, 30 * ones, groups, out)
    x, y = (value.double().reshape(raw.shape[0], groups, -1) for value in (raw, out))
    x, y = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    return (x * y).sum(2) / x.square().sum(2)


def convolved_rstd(raw, groups):
    """From `perturb_conv3x3` with weights that copy channel c of `raw` from channel c % 3 of an
    image.
    """
    channels = raw.shape[1]
    weight = torch.zeros(channels, 3, 3, 3, device=DEVICE)
    weight[range(channels), [c % 3 for c in range(channels)], 1, 1] = 1
    ones, zeros = torch.ones(channels, device=DEVICE), torch.zeros(channels, device=DEVICE)
    out, noise = torch.full_like(raw, torch.nan), torch.zeros_like(raw[:1])
    arrived = torch.empty(raw.shape[0] + 2, dtype=torch.int32, device=DEVICE)
    affine = kernels.perturb_conv3x3(
        raw[:, :3].contiguous(), noise, reference.pack_weight(weight), zeros, ones, zeros, groups, out, arrived
    )
    assert torch.equal(out, raw)
    return affine[:, 0].unflatten(1, (groups, -1))[:, :, 0]


def naive_rstd(raw, groups):
    x = raw.reshape(raw.shape[0], groups, -1)
    return (x.square().mean(2) - x.mean(2).square() + reference.EPS).rsqrt()


def map_of_mean(ratio, channels=16):
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator(DEVICE).manual_seed(SEED), device=DEVICE) + ratio
    return x[:, [c % 3 for c in range(channels)]].contiguous(memory_format=torch.channels_last)


def rstd_error(rstd, raw, groups):
    """Relative RMS over samples and groups."""
    variance = raw.double().reshape(raw.shape[0], groups, -1).var(2, correction=0)
    return relative_rms(rstd, (variance + reference.EPS).rsqrt())


@pytest.mark.parametrize("ratio", [0, 30, 300])
@pytest.mark.parametrize("rstd", [affine_rstd, fitted_rstd, convolved_rstd])
def test_statistics_are_right_where_the_mean_is_many_standard_deviations(rstd, ratio):
    raw = map_of_mean(ratio)
    # the fit sees the rounding of a·x + b, whose terms are 300 times larger
    bound = 3e-6 if rstd is fitted_rstd and ratio == 300 else 1e-6
    assert rstd_error(rstd(raw, 4), raw, 4) <= bound, f"SPRFAST_TEST_SEED={SEED}"


@pytest.mark.parametrize("ratio", [30, 300])
def test_mean_of_squares_less_square_of_mean_would_not_be(ratio):
    raw = map_of_mean(ratio)
    assert rstd_error(naive_rstd(raw, 4), raw, 4) > 1e-5


def test_perturbed_images_are_padded_with_zeros_and_normalised_afterwards():
    # an affine or a bias taken in before the padding would make the border of a constant image like
    # its inside
    given = arguments("perturb_conv3x3", Shape(32, 6, 8), torch.float32)
    given["x"].fill_(5)
    given["noise"].zero_()
    got = run("perturb_conv3x3", given)
    assert_correct("perturb_conv3x3", given, got)
    inside = got["out"][0, :, 1:-1, 1:-1]
    # the interpreter's matrix product may round columns differently
    assert torch.allclose(inside, inside[:, :1, :1], rtol=1e-5, atol=1e-4)
    border = got["out"][0, :, 0, 1:-1]
    assert ((border - inside[:, 0]).abs() > 1e-3).any(dim=1).all()
    given["bias"] += 100
    assert torch.equal(run("perturb_conv3x3", given)["out"][0, :, 1:-1, 1:-1], inside)
